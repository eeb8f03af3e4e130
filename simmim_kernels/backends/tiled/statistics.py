"""The forward of the tiled backend: a statistic from one look at every tile of scores."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ...problem import Problem
from ...problem.pointwise import POINTWISE, logsumexp_over_first
from ...problem.softmax import merged_entropy
from .products import flush
from .tiles import LOG2E, Tile, Walk, walk_over

# Largest spread, in nats, of row and column statistics (or of the scores themselves) for which one reference
# serves all: e^50 times any number of pairs is far from overflow in float32, e^-50 far from underflow.
SAFE_SPREAD = 100.0
# Of an exponential in base 2 that has underflowed: any finite number, that it be 0 times it.
_NOTHING = -2000.0


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    if problem.fn != "logsumexp":
        return _pointwise_sums(problem)
    walk = walk_over(problem, LOG2E)
    reference = _fixed_reference(problem) if problem.form == "inner_product" else None
    add = _add_running if reference is None else _add_fixed
    if walk.symmetric:
        sums = _LogSumExp(walk.n, walk, reference)
        for tile in _filled(walk):
            add(tile, sums, sums if tile.mirrored else None)
        return _in_both_places(problem, sums.result())
    rows = _LogSumExp(walk.n if problem.wants_rows else 0, walk, reference)
    columns = _LogSumExp(walk.m if problem.wants_columns else 0, walk, reference)
    for tile in _filled(walk):
        add(tile, rows if problem.wants_rows else None, columns if problem.wants_columns else None)
    return rows.result(), columns.result()


def forward_with_entropies(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps, and the entropy of each row's softmax, in nats."""
    walk = walk_over(problem, LOG2E)
    logsumexps = torch.full((walk.n,), -math.inf, dtype=walk.dtype, device=walk.device)
    entropies = torch.zeros_like(logsumexps)
    columns = _LogSumExp(walk.m if problem.wants_columns else 0, walk, None)
    for tile in _filled(walk):
        of_tile = _rows_with_entropies(tile.scores)
        parts, of_parts = (
            torch.stack([logsumexps[tile.rows], of_tile[0]]),
            torch.stack([entropies[tile.rows], of_tile[1]]),
        )
        logsumexps[tile.rows], entropies[tile.rows] = logsumexp_over_first(parts), merged_entropy(parts, of_parts)
        if problem.wants_columns:
            _add_running(tile, None, columns)
    return logsumexps, columns.result(), entropies


def _rows_with_entropies(s: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) log-sum-exps of a tile's rows, and the entropies of their softmaxes, in nats, from scores in base 2.

    With T = sum 2^(s - m) and U = sum 2^(s - m) (s - m), of which scores of -inf are no part, H = log2 T - U / T.
    """
    maximum = _finite(s.amax(1))
    s = s - maximum[:, None]
    e = flush(s.exp2())
    total, moment = e.sum(1), e.mul_(s.clamp_(min=_NOTHING)).sum(1)
    some = total > 0
    entropies = (total.log2() - moment / total).where(some, 0).clamp(min=0)
    return (total.log2() + maximum) / LOG2E, entropies / LOG2E


def _filled(walk: Walk) -> Iterator[Tile]:
    """All tiles, with -inf for what is left out."""
    for strip in walk.strips():
        for tile in walk.tiles(strip):
            walk.fill_excluded(tile, tile.scores, -math.inf)
            yield tile


def _in_both_places(problem: Problem, values: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' values of symmetric scores as those of rows and of columns, where these are wanted."""
    nothing = values.new_empty(0)
    columns = values.clone() if problem.dims == "both" else values
    return values if problem.wants_rows else nothing, columns if problem.wants_columns else nothing


def _pointwise_sums(problem: Problem) -> tuple[Tensor, Tensor]:
    walk = walk_over(problem)
    psi = POINTWISE[problem.fn].value
    rows = torch.zeros(walk.n if problem.wants_rows or walk.symmetric else 0, dtype=walk.dtype, device=walk.device)
    columns = torch.zeros(walk.m if problem.wants_columns else 0, dtype=walk.dtype, device=walk.device)
    for strip in walk.strips():
        for tile in walk.tiles(strip):
            values = psi(walk.sign_joint(tile, tile.scores))
            walk.fill_excluded(tile, values, 0.0)
            if problem.wants_rows or walk.symmetric:
                rows[tile.rows] += values.sum(1)
            if tile.mirrored:
                rows[tile.cols] += values.sum(0)
            elif problem.wants_columns and not walk.symmetric:
                columns[tile.cols] += values.sum(0)
    return _in_both_places(problem, rows) if walk.symmetric else (rows, columns)


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


def _add_fixed(tile: Tile, rows: _LogSumExp | None, columns: _LogSumExp | None) -> None:
    """One exponential against one reference serves rows and columns."""
    wanted = rows or columns
    assert wanted is not None
    e = tile.scores.sub_(wanted.maximum).exp2_()
    if rows is not None:
        rows.total[tile.rows] += e.sum(1)
    if columns is not None:
        columns.total[tile.cols] += e.sum(0)


def _finite(maximum: Tensor) -> Tensor:
    return maximum.masked_fill(maximum.isinf(), 0)


def _add_running(tile: Tile, rows: _LogSumExp | None, columns: _LogSumExp | None) -> None:
    """Each row against its own maximum within the tile; columns out of the same exponentials where that is safe.

    sum_i 2^(s_ij - ref) = sum_i 2^(s_ij - m_i) 2^(m_i - ref) is a matrix-vector product. It loses what underflowed
    in a row, 2^-63 of that row's maximum, so it serves a column whose own maximum is within 2^-30 of the tile's.
    """
    s = tile.scores
    column_maximum = None if columns is None else s.amax(0)
    if rows is not None:
        maximum = s.amax(1)
        shift = _finite(maximum)
        if columns is not None and column_maximum is not None:
            reference = maximum.max()
            if not bool(reference - column_maximum.min() <= 30):
                columns.add(tile.cols, column_maximum, (s - _finite(column_maximum)).exp2_().sum(0))
                column_maximum = None
        e = flush(s.sub_(shift[:, None]).exp2_())
        rows.add(tile.rows, maximum, e.sum(1))
        if columns is not None and column_maximum is not None:
            columns.add(tile.cols, reference.expand_as(column_maximum), torch.exp2(maximum - reference) @ e)
    elif columns is not None and column_maximum is not None:
        columns.add(tile.cols, column_maximum, s.sub_(_finite(column_maximum)).exp2_().sum(0))
