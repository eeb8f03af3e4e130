"""Entropy of a softmax over scores that are not made: what a training run watches beside its loss, in nats.

From one more sum a row along with the log-sum-exps; no gradient goes through it.
"""

import torch
from torch import Tensor

from .operator import cross_entropy, sharded
from .problem import validation
from .scores import PairwiseScores


def softmax_entropy(scores: PairwiseScores, backend: str | None = None) -> Tensor:
    """(N,) entropy of the softmax of each row's scores, in nats, without gradient; 0 of a row without pairs.

    From one pass over the scores, 1 g; the losses that take `return_entropy` have it from their own. `backend` is that
    of the statistics of `PairwiseScores`. Of class scores: PairwiseScores(x, weight, col_bias=bias).

    Raises TypeError for what are no scores.
    """
    validation.scores(scores, PairwiseScores)
    with torch.no_grad():
        return logsumexp_with_entropy(scores, backend)[1]


def logsumexp_with_entropy(scores: PairwiseScores, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """logsumexp(1) (N,), differentiable, and the entropies (N,)."""
    problem = scores._problem.replace(fn="logsumexp", dims="rows", wants_entropy=True)
    found = sharded.statistic(problem, backend, scores._shards)
    return found.rows, found.entropies


def cross_entropies_with_entropy(scores: PairwiseScores, dims: str) -> tuple[Tensor, Tensor]:
    """(1 or 2, N) cross entropies by "rows", or by rows and by columns ("both"), and the entropies (N,) of rows."""
    scores._need_positives()
    return cross_entropy.cross_entropies_with_entropy(scores._problem, dims, shards=scores._shards)
