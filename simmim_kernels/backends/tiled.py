"""Pairwise statistics over tiles that fit in cache, in PyTorch operations, on whatever PyTorch runs on.

One idea: walk the score matrix in tiles; a tile stays in cache from the product that makes it to the
exponential and the sums (forward), or the two products (backward), that consume it.

Scores are kept in base 2 where they are about to be exponentiated: torch.exp2 is up to four times faster
than torch.exp on a CPU, and the factor log2(e) rides along on the operand's scale.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..pointwise import POINTWISE
from ..problem import Problem, total_gradient_dtype
from .tiles import Tile, Walk, walk_over

LOG2E = 1 / math.log(2)

# Largest spread, in nats, of row and column statistics (or of the scores themselves) for which one reference
# serves all: e^50 times any number of pairs is far from overflow in float32, e^-50 far from underflow.
SAFE_SPREAD = 100.0
# In the backward a weight is the product of two such factors, and must keep its precision: see `_shared_weights`.
SAFE_STATISTIC_SPREAD = 40.0


def unavailable() -> str | None:
    return None


def not_by_default() -> str | None:
    return None


def supports(problem: Problem) -> str | None:
    return None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    if problem.fn != "logsumexp":
        return _pointwise_sums(problem)
    walk = walk_over(problem, LOG2E)
    reference = _fixed_reference(problem) if problem.form == "inner_product" else None
    rows = _LogSumExp(walk.n if problem.wants_rows else 0, walk, reference)
    columns = _LogSumExp(walk.m if problem.wants_columns else 0, walk, reference)
    add = _add_running if reference is None else _add_fixed
    for strip in walk.strips():
        for tile in walk.tiles(strip):
            walk.fill_excluded(tile, tile.scores, -math.inf)
            add(problem, tile, rows, columns)
    return rows.result(), columns.result()


def _pointwise_sums(problem: Problem) -> tuple[Tensor, Tensor]:
    walk = walk_over(problem)
    psi = POINTWISE[problem.fn].value
    rows = torch.zeros(walk.n if problem.wants_rows else 0, dtype=walk.dtype, device=walk.device)
    columns = torch.zeros(walk.m if problem.wants_columns else 0, dtype=walk.dtype, device=walk.device)
    for strip in walk.strips():
        for tile in walk.tiles(strip):
            values = psi(tile.scores)
            walk.fill_excluded(tile, values, 0.0)
            if problem.wants_rows:
                rows[tile.rows] += values.sum(1)
            if problem.wants_columns:
                columns[tile.cols] += values.sum(0)
    return rows, columns


def _fixed_reference(problem: Problem) -> float | None:
    """A reference r, in base 2, such that no 2^(s - r) can overflow or underflow; None where no bound shows it.

    |<x_i, y_j>| <= max |x| max |y| by Cauchy and Schwarz. NaN or inf anywhere fails the comparison.
    """

    def largest_norm(t: Tensor) -> float:
        return float(torch.linalg.vector_norm(t, dim=1, dtype=problem.compute_dtype).max())

    radius = abs(float(problem.parameters[0])) * largest_norm(problem.x) * largest_norm(problem.y)
    low, high = -radius, radius
    for bias in (problem.row_bias, problem.col_bias):
        if bias is not None:
            least, most = torch.stack(bias.aminmax()).tolist()
            low, high = low + least, high + most
    low, high = (min(max(end, problem.lo), problem.hi) for end in (low, high))
    return (low + high) / 2 * LOG2E if high - low <= SAFE_SPREAD else None


class _LogSumExp:
    """Log-sum-exps of many vectors at once, in base 2: maximum + log2(total), as tiles come in."""

    def __init__(self, size: int, walk: Walk, reference: float | None):
        self.total = torch.zeros(size, dtype=walk.dtype, device=walk.device)
        # With a fixed reference, a bound stands for every maximum.
        self.maximum = torch.full_like(self.total, -math.inf) if reference is None else reference

    def add(self, index: slice, maximum: Tensor, total: Tensor) -> None:
        """Takes in sums of 2^(s - maximum); an infinite maximum stands for a reference of 0, as `_finite` gives."""
        assert isinstance(self.maximum, Tensor)
        before = self.maximum[index]
        new = torch.maximum(before, maximum)
        # Where both are the same infinity nothing is rescaled: inf - inf would make a NaN of it.
        self.total[index] = self.total[index] * torch.exp2(
            torch.where(before == new, 0, before - new)
        ) + total * torch.exp2(torch.where(maximum == new, 0, maximum - new))
        self.maximum[index] = new

    def result(self) -> Tensor:
        return self.total.log2_().add_(self.maximum).mul_(1 / LOG2E)


def _add_fixed(problem: Problem, tile: Tile, rows: _LogSumExp, columns: _LogSumExp) -> None:
    """One exponential against one reference serves rows and columns."""
    e = tile.scores.sub_(rows.maximum).exp2_()
    if problem.wants_rows:
        rows.total[tile.rows] += e.sum(1)
    if problem.wants_columns:
        columns.total[tile.cols] += e.sum(0)


def _finite(maximum: Tensor) -> Tensor:
    return maximum.masked_fill(maximum.isinf(), 0)


def _flush(e: Tensor) -> Tensor:
    """Zeroes what is too small to matter, before products of it become denormal and slow; NaN stays."""
    return torch.threshold_(e, torch.finfo(e.dtype).tiny ** 0.5, 0.0)


def _add_running(problem: Problem, tile: Tile, rows: _LogSumExp, columns: _LogSumExp) -> None:
    """Each row against its own maximum within the tile; columns out of the same exponentials where that is safe.

    sum_i 2^(s_ij - ref) = sum_i 2^(s_ij - m_i) 2^(m_i - ref) is a matrix-vector product. It loses what underflowed
    in a row, 2^-63 of that row's maximum, so it serves a column whose own maximum is within 2^-30 of the tile's.
    """
    s = tile.scores
    column_maximum = s.amax(0) if problem.wants_columns else None
    if problem.wants_rows:
        maximum = s.amax(1)
        shift = _finite(maximum)
        if column_maximum is not None:
            reference = maximum.max()
            if not bool(reference - column_maximum.min() <= 30):
                columns.add(tile.cols, column_maximum, (s - _finite(column_maximum)).exp2_().sum(0))
                column_maximum = None
        e = _flush(s.sub_(shift[:, None]).exp2_())
        rows.add(tile.rows, maximum, e.sum(1))
        if column_maximum is not None:
            columns.add(tile.cols, reference.expand_as(column_maximum), torch.exp2(maximum - reference) @ e)
    elif column_maximum is not None:
        columns.add(tile.cols, column_maximum, s.sub_(_finite(column_maximum)).exp2_().sum(0))


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`: every tile's scores again, its weights G, then G Y and G^T X."""
    exponential = problem.fn == "logsumexp"
    walk = walk_over(problem, LOG2E if exponential else 1.0)
    make_weights = _exponential_weights if exponential else _pointwise_weights
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
        values = psi.value(tile.scores)
        walk.fill_excluded(tile, values, 0.0)
        total.add_(values.sum())
        return psi.derivative(tile.scores)

    return total, _gradients(problem, walk, weigh, needs)


def _gradients(problem: Problem, walk: Walk, weigh: "Weigh", needs: list[bool]) -> list[Tensor | None]:
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
            if dcol is not None:
                dcol[tile.cols] += g.sum(0)
            gradients.add(tile, g)
        gradients.finish_strip(strip)
    dx, dy, dparameters = gradients.result()
    found = [dx, dy, drow, dcol, *dparameters]
    return [gradient if needed else None for gradient, needed in zip(found, needs, strict=True)]


Weigh = Callable[[Tile], Tensor]


def _pointwise_weights(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor
) -> Weigh:
    derivative = POINTWISE[problem.fn].derivative

    def weigh(tile: Tile) -> Tensor:
        g = derivative(tile.scores)
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
            by_column = _flush(by_column.exp2_()).mul_(grad_columns[tile.cols])
            if not both:
                return by_column
        g = _flush(s.sub_(r[tile.rows, None]).exp2_()).mul_(grad_rows[tile.rows, None])
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
        e = _flush((s.sub_(reference) if reference else s).exp2_())
        if problem.dims == "both":
            return e.mul_(a[tile.rows, None] + b[tile.cols])
        return e.mul_(a[tile.rows, None] if problem.wants_rows else b[tile.cols])

    return weigh
