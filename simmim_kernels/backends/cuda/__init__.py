"""CUDA C++ kernels for NVIDIA GPUs (csrc/cuda), called through a plain C interface: tensors go in as addresses.

Hopper has kernels of its own. Those for the others, from compute capability 8.0 on, are not verified on hardware.

Statistics of inner products, of half precision and, where PyTorch's setting allows it, of float32 as TF32. calls.py
hands a problem to the library, strips.py makes the products of the backward, cross_entropy.py those of cross entropies.
"""

from functools import cache

import torch
from torch import Tensor

from ...problem import Problem
from ...problem.half_weights import BOUNDED
from . import strips
from .calls import FUNCTIONS, OPERANDS, Call
from .cross_entropy import (
    cross_entropies,
    cross_entropy_gradients,
    cross_entropy_total,
    cross_entropy_total_gradients,
)
from .library import architectures, has_code_for, why_not, without_driver

__all__ = [
    "backward",
    "cross_entropies",
    "cross_entropy_gradients",
    "cross_entropy_total",
    "cross_entropy_total_gradients",
    "forward",
    "not_by_default",
    "supports",
    "unavailable",
    "value_and_gradients",
]

_FORM = "inner_product"
_HOPPER = (9, 0)
# Coordinates of tiles are 32 bits; see csrc/cuda/interface.hpp.
_MOST = 2**31 - 2**15


# torch.compile does not look into what asks the machine, but takes the answer for a constant.
@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    return why_not() or _no_device()


@cache
def _no_device() -> str | None:
    reason = without_driver()
    if reason is None and (torch.version.hip is not None or not torch.cuda.is_available()):
        reason = "needs an NVIDIA GPU, and a PyTorch for CUDA"
    return reason


def not_by_default(device: torch.device) -> str | None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) == _HOPPER:
        return None  # benchmarks/results/cuda_backend.json
    return "not verified on hardware: no run of the kernels for GPUs other than Hopper is recorded"


def supports(problem: Problem) -> str | None:
    if problem.form != _FORM:
        return f"the form {problem.form!r} has no CUDA kernel"
    if problem.fn not in FUNCTIONS:
        return f"the function {problem.fn!r} has no CUDA kernel"
    dtype = problem.x.dtype
    if dtype not in OPERANDS:
        return f"{dtype} operands have no CUDA kernel"
    if dtype == torch.float16 and problem.fn not in BOUNDED:
        return f"sums of {problem.fn!r} of float16 operands have no CUDA kernel: float16 would not hold the weights"
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return (
            "float32 operands are multiplied as TF32 alone, and torch.get_float32_matmul_precision() is 'highest': "
            "torch.set_float32_matmul_precision('high') allows it"
        )
    if problem.guided:
        return "pairs that a guide's scores leave out have no CUDA kernel"
    if problem.wants_entropy:
        return "entropies of softmaxes have no CUDA kernel"
    if max(problem.shape) > _MOST:
        return f"the kernels take up to {_MOST} rows and columns; there are {max(problem.shape)}"
    return _cannot_run_on(problem.x.device)


@torch.compiler.assume_constant_result
def _cannot_run_on(device: torch.device) -> str | None:
    return _unfit(device)


@cache
def _unfit(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the kernels need an NVIDIA GPU; operands are on {device}"
    capability = torch.cuda.get_device_capability(device)
    if has_code_for(capability):
        return None
    major, minor = capability
    return f"the library has code for {', '.join(architectures())}; {device} has compute capability {major}.{minor}"


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    return Call(problem).statistics()


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`."""
    by_logarithm = problem.fn == "logsumexp"
    of_rows = (rows if by_logarithm else None, grad_rows) if problem.wants_rows else None
    of_columns = (columns if by_logarithm else None, grad_columns) if problem.wants_columns else None
    return strips.gradients(problem, of_rows, of_columns, needs)


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients."""
    return strips.value_and_gradients(problem, needs)
