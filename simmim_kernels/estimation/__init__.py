"""Estimates of mutual information from paired samples: what `simmim_kernels.estimate` and its command are made of."""

from .cross_fitting import Progress, estimate
from .report import BOUNDS, BoundEstimate, Fold, MutualInformationEstimate
from .rows import TRANSFORMS, DataError, samples
from .training import CRITICS

__all__ = [
    "BOUNDS",
    "CRITICS",
    "TRANSFORMS",
    "BoundEstimate",
    "DataError",
    "Fold",
    "MutualInformationEstimate",
    "Progress",
    "estimate",
    "samples",
]
