"""The backward of the tiled backend: every tile's scores again, its weights G, then G Y and G^T X."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...problem import Problem, total_gradient_dtype
from ...problem.pointwise import POINTWISE
from .products import flush
from .tiles import LOG2E, Tile, Walk, walk_over

# Largest spread, in nats, of row and column statistics for which one reference serves all weights: a weight is then the
# product of two such factors, and must keep its precision (see `_shared_weights`).
SAFE_STATISTIC_SPREAD = 40.0

Weigh = Callable[[Tile], Tensor]


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`: every tile's scores again, its weights G, then G Y and G^T X."""
    exponential = problem.fn == "logsumexp"
    walk = walk_over(problem, LOG2E if exponential else 1.0)
    if walk.symmetric:
        # Weights G + G^T, which are alike by row and by column.
        statistic = rows if problem.wants_rows else columns
        upstream = (
            grad_rows + grad_columns if problem.dims == "both" else grad_rows if problem.wants_rows else grad_columns
        )
        problem = problem.replace(dims="both")
        rows, columns, grad_rows, grad_columns = statistic, statistic, upstream, upstream
    make_weights = _exponential_weights if exponential else partial(_pointwise_weights, walk)
    weigh = make_weights(problem, rows, columns, grad_rows, grad_columns)
    return _gradients(problem, walk, weigh, needs)


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients, from one look at the scores."""
    dtype = total_gradient_dtype(problem.x.dtype)
    problem = problem.replace(x=problem.x.to(dtype), y=problem.y.to(dtype))
    walk = walk_over(problem)
    psi = POINTWISE[problem.fn]
    total = torch.zeros((), dtype=walk.dtype, device=walk.device)

    def weigh(tile: Tile) -> Tensor:
        values = psi.value(walk.sign_joint(tile, tile.scores))
        walk.fill_excluded(tile, values, 0.0)
        total.add_(values.sum(), alpha=2 if tile.mirrored else 1)
        derivative = walk.sign_joint(tile, psi.derivative(tile.scores))
        return derivative.mul_(2) if walk.symmetric else derivative

    return total, _gradients(problem, walk, weigh, needs)


def _gradients(problem: Problem, walk: Walk, weigh: Weigh, needs: list[bool]) -> list[Tensor | None]:
    """Of `problem.differentiable`, mostly in the compute dtype: sums over tiles of G Y and G^T X."""
    gradients = walk.gradients_of(needs)
    drow = torch.zeros(walk.n, dtype=walk.dtype, device=walk.device) if needs[2] else None
    dcol = torch.zeros(walk.m, dtype=walk.dtype, device=walk.device) if needs[3] else None
    for strip in walk.strips():
        gradients.start_strip()
        for tile in walk.tiles(strip, gradients=True):
            g = weigh(tile)
            if tile.outside is not None:
                g.masked_fill_(tile.outside, 0)
            walk.fill_excluded(tile, g, 0.0)
            if drow is not None:
                drow[tile.rows] += g.sum(1)
            if walk.symmetric and tile.mirrored and drow is not None:
                drow[tile.cols] += g.sum(0)
            elif dcol is not None:
                dcol[tile.cols] += g.sum(0)
            gradients.add(tile, g)
        gradients.finish_strip(strip)
    dx, dy, dparameters = gradients.result()
    found = [dx, dy, drow, None if walk.symmetric else dcol, *dparameters]
    return [gradient if needed else None for gradient, needed in zip(found, needs, strict=True)]


def _pointwise_weights(
    walk: Walk, problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor
) -> Weigh:
    derivative = POINTWISE[problem.fn].derivative

    def weigh(tile: Tile) -> Tensor:
        g = walk.sign_joint(tile, derivative(walk.sign_joint(tile, tile.scores)))
        if problem.dims == "both":
            return g.mul_(grad_rows[tile.rows, None] + grad_columns[tile.cols])
        return g.mul_(grad_rows[tile.rows, None] if problem.wants_rows else grad_columns[tile.cols])

    return weigh


def _exponential_weights(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor
) -> Weigh:
    """G_ij = alpha_i e^(s_ij - r_i) + beta_j e^(s_ij - c_j), by one exponential where one reference will do."""
    statistics = torch.cat([rows, columns]).mul_(LOG2E)
    # An empty row or column has the statistic -inf and no pair to weigh: +inf makes its weights 0, not NaN.
    statistics.masked_fill_(statistics == -math.inf, math.inf)
    reference = _shared_reference(statistics)
    if reference is not None:
        return _shared_weights(problem, reference, statistics, torch.cat([grad_rows, grad_columns]), len(rows))
    r, c = statistics[: len(rows)], statistics[len(rows) :]

    def weigh(tile: Tile) -> Tensor:
        s = tile.scores
        both = problem.dims == "both"
        by_column = None
        if problem.wants_columns:
            by_column = s - c[tile.cols] if both else s.sub_(c[tile.cols])
            by_column = flush(by_column.exp2_()).mul_(grad_columns[tile.cols])
            if not both:
                return by_column
        g = flush(s.sub_(r[tile.rows, None]).exp2_()).mul_(grad_rows[tile.rows, None])
        return g if by_column is None else g.add_(by_column)

    return weigh


def _shared_reference(statistics: Tensor) -> float | None:
    least, most = torch.stack(statistics.aminmax()).tolist()
    return (least + most) / 2 if most - least <= SAFE_STATISTIC_SPREAD * LOG2E else None


def _shared_weights(problem: Problem, reference: float, statistics: Tensor, upstream: Tensor, rows: int) -> Weigh:
    """G_ij = 2^(s_ij - k) (A_i + B_j) with A_i = alpha_i 2^(k - r_i), B_j = beta_j 2^(k - c_j).

    With all r and c within 20 nats of k, A_i <= e^20 alpha_i, and flushing 2^(s - k) below 1e-19 costs
    at most 5e-11 of alpha_i in a weight.
    """
    factors = torch.exp2(reference - statistics).mul_(upstream)
    a, b = factors[:rows], factors[rows:]

    def weigh(tile: Tile) -> Tensor:
        s = tile.scores
        e = flush((s.sub_(reference) if reference else s).exp2_())
        if problem.dims == "both":
            return e.mul_(a[tile.rows, None] + b[tile.cols])
        return e.mul_(a[tile.rows, None] if problem.wants_rows else b[tile.cols])

    return weigh
