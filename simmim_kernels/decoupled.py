"""Decoupled contrastive losses, whose denominator lacks the positive pair.

Features have shape (N, d); dtypes, `temperature`, `reduction`, `group` and errors (TypeError or ValueError, raised with
the argument's name) are as in losses.py, and losses are in nats.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss_parts import REDUCTIONS, Loss, inverse, reduced
from .operator import sharded
from .operator.global_batch import shards_of
from .problem import Problem, validation
from .scores import PairwiseScores


def dcl_loss(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    group: Any = None,
) -> Tensor:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6), as lightly 1.6's DCLLoss.

    NT-Xent without the positive pair in the denominator: -w_i s_ii + the log-sum-exp over the other rows of both views,
    averaged over the two views as anchors. z1, z2: (N, d), two views of an example a row, with N >= 2. The weights w
    (N,) are 1, or weight_fn(anchors, positives) of the normalised views, asked once for each order of them:
    mises_fisher_weights gives DCLW. With a group it is asked of this rank's own pairs.
    """
    validation.choice(reduction, "reduction", REDUCTIONS)
    validation.positive(temperature, "temperature")
    validation.operands(z1, z2, ("z1", "z2"), same_length=True, may_be_empty=group is not None)
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    scale = inverse(temperature, z1)
    across = PairwiseScores(z1, z2, scale=scale, group=group)
    if across.anchors < 2:
        raise ValueError(f"z1 and z2 must have at least two rows, got {tuple(z1.shape)}")
    shards = across._shards
    rows, columns = across.marginal.logsumexps()
    within = [PairwiseScores(z, z, scale=scale, group=shards).marginal.logsumexp(1) for z in (z1, z2)]
    negatives = torch.logaddexp(rows, within[0]) + torch.logaddexp(columns, within[1])
    weight = 1 if weight_fn is None else (weight_fn(z1, z2) + weight_fn(z2, z1)) / 2
    return reduced(negatives / 2 - weight * across.joint, reduction, shards)


def mises_fisher_weights(z1: Tensor, z2: Tensor, sigma: float = 0.5, group: Any = None) -> Tensor:
    """(N,) 2 - N softmax(<z1_i, z2_i> / sigma), without gradient: DCLW's weights (Yeh et al. 2022, sec. 3.3).

    z1, z2: (N, d), normalised. Pairs that agree weigh less; the mean weight, with a group over all ranks, is 1.
    """
    z1, z2 = z1.detach(), z2.detach()
    similarity = (z1 * z2).sum(1) / sigma
    shards = shards_of(group, Problem(z1, z2, []))
    if shards is None:
        return 2 - len(z1) * similarity.softmax(0)
    return 2 - shards.all_rows * (similarity - sharded.logsumexp(similarity, shards)).exp()


class DCLLoss(Loss):
    """`dcl_loss` as a Module: forward(z1 (N, d), z2 (N, d))."""

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        reduction: str = "mean",
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        group: Any = None,
    ):
        super().__init__(temperature=temperature, reduction=reduction, weight_fn=weight_fn, group=group)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        return dcl_loss(z1, z2, **self._options)


class DCLWLoss(DCLLoss):
    """`dcl_loss` with `mises_fisher_weights` of a sigma as a Module: forward(z1 (N, d), z2 (N, d))."""

    def __init__(
        self, temperature: float | Tensor = 0.1, sigma: float = 0.5, reduction: str = "mean", group: Any = None
    ):
        super().__init__(temperature, reduction, partial(mises_fisher_weights, sigma=sigma, group=group), group)
