"""Statistics over the candidates of all ranks, beneath PairwiseScores: each rank holds some rows of x and of y.

A rank looks at its own rows and all columns, so that row statistics are complete at once; those of columns are of its
rows alone, and go to the ranks whose columns they are, to be merged there. Gradients take the same ways back. Without
shards every function here is the local one.

Of vectors over columns (biases, ids, statistics) every rank has all, O(M); of features, a guide's too, with the
schedule "ring", at no time more than a few ranks'.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..problem import Problem
from ..problem.ids import excluded_counts
from ..problem.pointwise import logsumexp_over_first
from . import ring
from . import statistic as local
from .collectives import AllGather, AllToAll, all_reduced, gathered
from .computation import Statistic, without_autocast
from .global_batch import Shards, shards_of
from .joint import joint_scores as local_joint_scores


def spread(problem: Problem, shards: Shards) -> Problem:
    """A rank's own problem as one of its rows and all columns; with "ring", of all columns but for their features.

    Positives, where there are any, are counted among the columns of all ranks from here on.
    """
    if problem.positives is None and shards.have_a_diagonal:
        positives = torch.arange(len(problem.x), device=problem.x.device) + shards.first_column
        problem = problem.replace(positives=positives)
    y = problem.y if shards.batch.schedule == "ring" else all_columns(problem.y, shards)
    col_bias = None if problem.col_bias is None else all_columns(problem.col_bias, shards)
    return problem.replace(y=y, col_bias=col_bias, mirrored=False)


def guide(guide_x: Tensor, guide_y: Tensor, limit: Tensor, shards: Shards | None) -> dict[str, Any]:
    """The fields of a spread problem with a guide: (n, g), (m, g) and (n,) of own rows and own columns.

    Raises ValueError on every rank where widths or dtypes of guides differ between ranks.
    """
    if shards is not None:
        shards_of(shards.batch, Problem(guide_x, guide_y, []), " of the guide")
        if shards.batch.schedule == "gather":
            guide_y = all_columns(guide_y, shards)
    return {"guide_x": guide_x, "guide_y": guide_y, "guide_limit": limit}


def all_columns(values: Tensor, shards: Shards) -> Tensor:
    """(M, ...) of all ranks, of this rank's own columns' values."""
    return gathered(values, shards.columns, shards.batch.name)


def statistic(problem: Problem, backend: str | None, shards: Shards | None) -> Statistic:
    """operator/statistic.py's: of own rows, but for columns, which are of own columns."""
    found = _of_own_rows(problem, backend, shards)
    if problem.wants_columns and shards is not None:
        parts = _parts(found.columns, shards)
        return found._replace(columns=logsumexp_over_first(parts) if problem.fn == "logsumexp" else parts.sum(0))
    return found


def _of_own_rows(problem: Problem, backend: str | None, shards: Shards | None) -> Statistic:
    if shards is not None and shards.batch.schedule == "ring":
        return ring.statistic(problem, backend, shards)
    if len(problem.x):
        return local.statistic(problem, backend)
    # No backend takes a matrix without rows. Its gradients, all zero, must be asked for all the same: other ranks wait.
    with without_autocast(problem.x.device):
        joint = local_joint_scores(problem) if problem.wants_joint else problem.x.new_empty(0)
        return Statistic(*reference.forward(problem), joint, problem.x.new_empty(0))


def _parts(columns: Tensor, shards: Shards) -> Tensor:
    """(W, m): what every rank's rows make of this rank's columns, from what its own make of all (M,)."""
    batch, own = shards.batch, shards.columns[shards.batch.rank]
    parts = AllToAll.apply(columns, [own] * batch.size, list(shards.columns), batch.name)
    return parts.view(batch.size, own)


def total(problem: Problem, backend: str | None, shards: Shards | None, divisor: float = 1) -> Tensor:
    """() the sum over all pairs of all ranks, by a divisor."""
    if shards is not None and shards.batch.schedule == "ring" and local.wants_gradients(problem):
        own = ring.total(problem, backend, shards) / divisor
    elif len(problem.x) and (shards is None or shards.batch.schedule == "gather"):
        own = local.total(problem, backend, divisor)
    else:
        own = _of_own_rows(problem, backend, shards)[0].sum() / divisor
    return add(own, shards)


def joint_scores(problem: Problem, shards: Shards | None) -> Tensor:
    """(n,) scores of own rows' joint pairs."""
    if shards is None or shards.batch.schedule == "gather":
        return local_joint_scores(problem)
    return ring.joint_scores(problem, shards)


def dense(problem: Problem, shards: Shards | None) -> Tensor:
    """(n, M) scores of own rows."""
    if shards is None or shards.batch.schedule == "gather":
        return reference.dense(problem)
    guide_y = None if problem.guide_y is None else all_columns(problem.guide_y, shards)
    return reference.dense(problem.replace(y=all_columns(problem.y, shards), guide_y=guide_y))


def pair_counts(problem: Problem, dims: str, shards: Shards | None) -> Tensor:
    """int64, how many pairs each entry of a statistic sums: (n,) "rows", (m,) "columns", () "total".

    Where a guide leaves pairs out they are counted one by one, as a sum of ones.
    """
    if problem.guided:
        return _pairs_by_guide(problem, dims, shards)
    if shards is not None:
        # Of the features but their number matters.
        problem = problem.replace(y=problem.x.new_empty(shards.all_columns, 0))
    n, m = problem.shape
    counts = (n if dims == "columns" else m) - excluded_counts(problem, by_column=dims == "columns")
    if dims == "total":
        return add(counts.sum(), shards)
    return counts if shards is None or dims == "rows" else _parts(counts, shards).sum(0)


def _pairs_by_guide(problem: Problem, dims: str, shards: Shards | None) -> Tensor:
    n, m = problem.shape
    one, x, y = (problem.x.new_ones(size, dtype=torch.float64) for size in ((), (n, 1), (m, 1)))
    ones = {"x": x, "y": y, "parameters": [one], "row_bias": None, "col_bias": None, "form": "inner_product"}
    of_rows = "rows" if dims == "total" else dims
    counted = problem.replace(**ones, fn="identity", dims=of_rows, lo=-math.inf, hi=math.inf)
    found = statistic(counted, None, shards)
    counts = (found.columns if dims == "columns" else found.rows).round().long()
    return add(counts.sum(), shards) if dims == "total" else counts


def replicated(value: Tensor, shards: Shards) -> Tensor:
    """(W, ...): every rank's value, the same on all.

    What every rank makes of it is the same loss W times over: that is what gradients averaged over ranks want, and
    those that are summed want once.
    """
    batch = shards.batch
    return AllGather.apply(value[None], batch.size, batch.name, 1 if batch.averaging else 1 / batch.size)


def add(value: Tensor, shards: Shards | None) -> Tensor:
    """The sum of every rank's value, the same on all."""
    if shards is None:
        return value
    return replicated(value, shards).sum(0) if value.is_floating_point() else all_reduced(value, shards.batch.name)


def mean(values: Tensor, shards: Shards | None) -> Tensor:
    """() of values (n,), one for each anchor: over those of all ranks."""
    return values.mean() if shards is None else add(values.sum(), shards) / shards.all_rows


def mean_column(y: Tensor, shards: Shards | None) -> Tensor:
    """(d,) the mean of y (m, d) over the candidates of all ranks."""
    return y.mean(0) if shards is None else add(y.sum(0), shards) / shards.all_columns


def logsumexp(values: Tensor, shards: Shards | None) -> Tensor:
    """() over values (n,), one for each anchor: over those of all ranks."""
    value = logsumexp_over_first(values)
    return value if shards is None else logsumexp_over_first(replicated(value, shards))
