"""Entropy of a softmax over scores that are not made: what a training run watches beside its loss."""

import torch
from torch import Tensor

from .operator.computation import without_autocast
from .operator.statistic import statistic
from .problem import compute_dtype, validation
from .scores import PairwiseScores


def softmax_entropy(scores: PairwiseScores, backend: str | None = None) -> Tensor:
    """(N,) entropy in nats of the softmax of each row's scores, without gradient; 0 of a row without pairs.

    log-sum-exp less the mean score, sum_j p_ij s_ij, which is <x_i, d logsumexp_i / d x_i> where s_ij = <x_i, y_j>; a
    column bias is one more coordinate of y. So every backend has it, for a forward and the gradient of x, 3 g.
    `backend` is that of the statistics of `PairwiseScores`. Of class scores: PairwiseScores(x, weight, col_bias=bias).

    Raises TypeError for what are no scores, NotImplementedError for those with a group, and ValueError for scores of a
    network and for clamped ones, which are no inner products.
    """
    validation.scores(scores, PairwiseScores)
    if scores._shards is not None:
        raise NotImplementedError("softmax_entropy cannot be had of scores with a group")
    p = scores._problem
    if p.form != "inner_product" or p.clamped:
        raise ValueError(f"scores must be inner products that are not clamped, got {scores!r}")
    with torch.enable_grad(), without_autocast(p.x.device):
        # In the compute dtype, so that both terms of the difference are of the same scores.
        dtype = compute_dtype(p.x.dtype)
        x, y = (p.parameters[0] * p.x.to(dtype)).detach(), p.y.detach().to(dtype)
        if p.col_bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
            y = torch.cat([y, p.col_bias.detach().to(dtype)[:, None]], 1)
        x.requires_grad_()
        alone = p.replace(
            x=x, y=y, parameters=[x.new_ones(())], row_bias=None, col_bias=None, mirrored=False, dims="rows"
        )
        rows = statistic(alone, backend)[0]
        (gradient,) = torch.autograd.grad(rows.sum(), x)
    rows = rows.detach()
    return (rows - (x.detach() * gradient).sum(1)).masked_fill(rows == -torch.inf, 0).clamp(min=0)
