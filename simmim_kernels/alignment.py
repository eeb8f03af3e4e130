"""Alignment and uniformity on the hypersphere (Wang and Isola 2020, arXiv:2005.10242, sec. 4 and fig. 5).

Features have shape (N, d); dtypes, `temperature`, `reduction` and errors (TypeError or ValueError, raised with the
argument's name) are as in losses.py, and losses are in nats.
"""

import torch.nn.functional as F
from torch import Tensor

from .loss_parts import Loss
from .operator.computation import without_autocast
from .problem import compute_dtype, validation
from .scores import PairwiseScores


def alignment(z1: Tensor, z2: Tensor, alpha: float = 2.0) -> Tensor:
    """() mean over the pairs of |z1_i - z2_i|^alpha of normalised rows; z1, z2: (N, d), one pair a row."""
    validation.operands(z1, z2, ("z1", "z2"), same_length=True)
    validation.positive_number(alpha, "alpha")
    with without_autocast(z1.device):
        dtype = compute_dtype(z1.dtype)
        difference = F.normalize(z1.to(dtype), dim=1) - F.normalize(z2.to(dtype), dim=1)
        return difference.square().sum(1).mean() if alpha == 2 else difference.norm(dim=1).pow(alpha).mean()


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """() log mean over all pairs of two rows of exp(-t |z_i - z_j|^2), rows normalised; z: (N, d) with N >= 2.

    The log-mean-exp of a Gaussian critic's marginal scores, which for unit vectors are 2 t <z_i, z_j> - 2 t.
    """
    validation.positive_number(t, "t")
    if len(validation.features(z, "z")) < 2:
        raise ValueError(f"z must have at least two rows, got {tuple(z.shape)}")
    z = F.normalize(z, dim=1)
    return PairwiseScores(z, z, scale=2 * t).marginal.logmeanexp((0, 1)) - 2 * t


def alignment_uniformity_loss(
    z1: Tensor, z2: Tensor, alpha: float = 2.0, t: float = 2.0, uniformity_weight: float = 1.0
) -> Tensor:
    """() alignment(z1, z2, alpha) + uniformity_weight times the mean of uniformity(z1, t) and uniformity(z2, t).

    Wang and Isola 2020; z1, z2: (N, d), one pair a row, with N >= 2.
    """
    weight = validation.number(uniformity_weight, "uniformity_weight")
    return alignment(z1, z2, alpha) + weight * (uniformity(z1, t) + uniformity(z2, t)) / 2


class AlignmentUniformityLoss(Loss):
    """`alignment_uniformity_loss` as a Module: forward(z1 (N, d), z2 (N, d)); the loss has no other reduction."""

    def __init__(self, alpha: float = 2.0, t: float = 2.0, uniformity_weight: float = 1.0):
        super().__init__(alpha=alpha, t=t, uniformity_weight=uniformity_weight)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        return alignment_uniformity_loss(z1, z2, **self._options)
