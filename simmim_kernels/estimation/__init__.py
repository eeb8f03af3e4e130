"""Estimates of mutual information from paired samples: what `simmim_kernels.estimate` and its command are made of."""

from .baselines import Baseline
from .conditional import ConditionalEstimate, estimate_conditional
from .critics import CRITICS
from .cross_fitting import Progress, estimate
from .features import TRANSFORMS
from .report import BOUNDS, LABELS, BoundEstimate, Fold, MutualInformationEstimate
from .samples import DataError, Table, samples, stacked

__all__ = [
    "BOUNDS",
    "CRITICS",
    "LABELS",
    "TRANSFORMS",
    "Baseline",
    "BoundEstimate",
    "ConditionalEstimate",
    "DataError",
    "Fold",
    "MutualInformationEstimate",
    "Progress",
    "Table",
    "estimate",
    "estimate_conditional",
    "samples",
    "stacked",
]
