"""torch-mist's estimators that compare all pairs of a batch (of 0.2.17), without their N x M scores.

With a SeparableCritic, x and y of two dimensions and neg_samples 0 (all rows) or -1 (all but the pair's own). Sampled
negatives (neg_samples > 0 or below -1), other critics and other proposals raise NotImplementedError. JS and SMILE train
without the joint pairs where neg_samples is -1, which torch-mist's own leave in.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch_mist.critic import SeparableCritic
from torch_mist.distributions.empirical import EmpiricalDistribution
from torch_mist.estimators import discriminative as original

from ..scores import PairwiseScores


class _Fused:
    """The log partition by row of scores that are not made. Comes before an estimator of theirs."""

    critic: Any
    neg_samples: int
    proposal: Any

    def approx_log_partition(self, x, y, x_, y_, log_w) -> Tensor:
        # Log-mean-exps of the rows are all that a baseline and its log partition take from the scores.
        rows = self._negatives(x, y).logmeanexp(1)
        return self._approx_log_partition(x=x, y=y, f_=rows[None], log_w=log_w)

    def _negatives(self, x: Tensor, y: Tensor) -> PairwiseScores:
        if self.neg_samples not in (0, -1):
            raise NotImplementedError(f"neg_samples must be 0 or -1, got {self.neg_samples}: negatives are not sampled")
        if not isinstance(self.critic, SeparableCritic):
            raise NotImplementedError(f"critic must be a SeparableCritic, got {type(self.critic).__name__}")
        if not isinstance(self.proposal, EmpiricalDistribution):
            raise NotImplementedError(f"proposal must be the batch itself, got {type(self.proposal).__name__}")
        if x.dim() != 2 or y.dim() != 2:
            raise NotImplementedError(f"x and y must have two dimensions, got {tuple(x.shape)} and {tuple(y.shape)}")
        scores = PairwiseScores(self.critic.f_x(x), self.critic.f_y(y), scale=1 / self.critic.temperature)
        return scores.marginal if self.neg_samples else scores


class InfoNCE(_Fused, original.InfoNCE):
    """torch-mist's InfoNCE."""


class NWJ(_Fused, original.NWJ):
    """torch-mist's NWJ."""


class TUBA(_Fused, original.TUBA):
    """torch-mist's TUBA."""


class MINE(_Fused, original.MINE):
    """torch-mist's MINE, with its running mean within [1e-4, 1e4]."""


class JS(_Fused, original.JS):
    """torch-mist's JS."""

    def batch_loss(self, x: Tensor, y: Tensor) -> Tensor:
        negatives = self._negatives(x, y)
        off = negatives.sum(1, fn="softplus") / negatives.count(1)
        return F.softplus(-self.unnormalized_log_ratio(x=x, y=y)) + off


class SMILE(JS, original.SMILE):
    """torch-mist's SMILE."""

    def batch_loss(self, x: Tensor, y: Tensor) -> Tensor:
        return JS.batch_loss(self, x, y)

    def approx_log_partition(self, x, y, x_, y_, log_w) -> Tensor:
        rows = self._negatives(x, y).clamp(-self.tau, self.tau).logmeanexp(1)
        return self._approx_log_partition(x=x, y=y, f_=rows[None], log_w=log_w)
