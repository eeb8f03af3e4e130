"""The losses of a GPU run: ours, the dense formula, and the float64 truth of each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import simmim_kernels as sk
from simmim_kernels.comparison import dense

from .spot_truth import SpotTruth

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

SCALE = 1 / 0.07


@dataclass(frozen=True)
class Loss:
    """One loss of features x, y (N, d) and a logit scale."""

    ours: LossFunction
    dense: LossFunction
    truth: Callable[[Tensor, Tensor, float], SpotTruth]
    statistics: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]] | None = None
    """The row statistic that the loss is made of and, where it has one, the column statistic."""
    products: int = 4
    """Products of the operands that forward and backward need; the forward alone needs one."""
    views: int = 1
    """How many times the N rows enter the matrix of scores, in either direction."""

    def required_flop(self, n: int, d: int, passes: str) -> float:
        pairs = (self.views * n) ** 2
        return 2.0 * pairs * d * (1 if passes == "forward" else self.products)


def _clip_truth(x: Tensor, y: Tensor, scale: float) -> SpotTruth:
    n = len(x)
    return SpotTruth(x, y, scale, row_weight=0.5 / n, column_weight=0.5 / n, joint_weight=1 / n)


def _siglip_truth(x: Tensor, y: Tensor, scale: float) -> SpotTruth:
    # -log sigmoid(s) = softplus(s) - s for the joint pairs.
    n = len(x)
    return SpotTruth(x, y, scale, fn="softplus", bias=dense.SIGLIP_BIAS, row_weight=1 / n, joint_weight=1 / n)


def _info_nce_truth(x: Tensor, y: Tensor, scale: float) -> SpotTruth:
    n = len(x)
    return SpotTruth(x, y, scale, row_weight=1 / n, joint_weight=1 / n, normalise=True)


def _nt_xent_truth(x: Tensor, y: Tensor, scale: float) -> SpotTruth:
    """Scores of all views with all views are symmetric: half of each row's weight is its column's.

    The gradient of a view, which is an anchor and a candidate, takes both halves.
    """
    n, z = len(x), torch.cat([x, y]).detach()
    partner = torch.arange(2 * n, device=z.device).roll(n)
    weights = {"row_weight": 0.5 / n, "column_weight": 0.5 / n, "joint_weight": 1 / n}
    return SpotTruth(z, z, scale, **weights, partner=partner, normalise=True, without_diagonal=True)


def _siglip_statistics(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    bias = torch.full((len(x),), dense.SIGLIP_BIAS, device=x.device)
    scores = sk.PairwiseScores(x, y, scale=scale, row_bias=bias)
    return scores.sum(1, fn="softplus"), scores.sum(0, fn="softplus")


LOSSES = {
    "clip": Loss(
        lambda x, y, t: sk.clip_loss(x, y, t),
        dense.clip_loss,
        _clip_truth,
        lambda x, y, t: sk.PairwiseScores(x, y, scale=t).logsumexps(),
    ),
    "siglip": Loss(
        lambda x, y, t: sk.siglip_loss(x, y, t, dense.SIGLIP_BIAS),
        dense.siglip_loss,
        _siglip_truth,
        _siglip_statistics,
        products=3,
    ),
    "info_nce": Loss(
        lambda x, y, t: sk.info_nce_loss(x, y, temperature=1 / t),
        dense.info_nce_loss,
        _info_nce_truth,
        lambda x, y, t: (sk.PairwiseScores(F.normalize(x, dim=1), F.normalize(y, dim=1), scale=t).logsumexp(1),),
    ),
    "nt_xent": Loss(
        lambda x, y, t: sk.nt_xent_loss(x, y, temperature=1 / t), dense.nt_xent_loss, _nt_xent_truth, views=2
    ),
}
