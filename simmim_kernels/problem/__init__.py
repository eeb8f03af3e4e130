"""What a backend is asked: scores of all pairs, as a symbol, a statistic of them, and the mathematics it is made of."""

from .half_weights import weight_unit
from .problem import Problem, compute_dtype, total_gradient_dtype

__all__ = ["Problem", "compute_dtype", "total_gradient_dtype", "weight_unit"]
