"""Pairwise statistics over tiles that fit in cache, in PyTorch operations, on whatever PyTorch runs on.

One idea: walk the score matrix in tiles; a tile lives in one reused buffer, from the product that makes it
to the exponential and the sums (forward) or the two products (backward) that consume it.

Scores are kept in base 2 where they are about to be exponentiated: torch.exp2 is up to four times faster
than torch.exp on a CPU, and the factor log2(e) rides along on the operand's scale.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..forms import FORMS
from ..pointwise import POINTWISE
from ..problem import Problem

LOG2E = 1 / math.log(2)

# Largest spread, in nats, of row and column statistics (or of the scores themselves) for which one reference
# serves all: e^50 times any number of pairs is far from overflow in float32, e^-50 far from underflow.
SAFE_SPREAD = 100.0
# In the backward a weight is the product of two such factors, and must keep its precision: see `_shared_weights`.
SAFE_STATISTIC_SPREAD = 40.0

_TILE_ROWS, _TILE_COLUMNS = 512, 1024
_MLP_TILE_BYTES = 32 * 2**20


def unavailable() -> str | None:
    return None


def supports(problem: Problem) -> str | None:
    return None


class Tile(NamedTuple):
    """One block of pairs: its scores in the walk's unit, and where they are."""

    rows: slice
    cols: slice
    scores: Tensor
    outside: Tensor | None
    """True where the clamp is active; only where gradients are wanted."""


class _Walk:
    """Visits the tiles of a problem strip by strip. `unit` multiplies every score (LOG2E for base 2)."""

    def __init__(self, problem: Problem, unit: float = 1.0):
        self.problem, self.unit = problem, unit
        self.dtype, self.device = problem.compute_dtype, problem.x.device
        self.n, self.m = problem.shape
        self.parameters = [parameter.to(self.dtype) for parameter in problem.parameters]
        self.row_step, self.col_step = self._tile_shape()
        self._id_ranges = _id_ranges(problem, self.row_step, self.col_step)

    def _tile_shape(self) -> tuple[int, int]:
        return min(self.n, _TILE_ROWS), min(self.m, _TILE_COLUMNS)

    def strips(self) -> Iterator[slice]:
        for start in range(0, self.n, self.row_step):
            yield slice(start, min(start + self.row_step, self.n))

    def tiles(self, rows: slice, gradients: bool = False) -> Iterator[Tile]:
        p = self.problem
        self._enter(rows)
        for start in range(0, self.m, self.col_step):
            cols = slice(start, min(start + self.col_step, self.m))
            late_unit = self.unit if p.clamped else 1.0
            early_unit = self.unit / late_unit
            s = self._products(rows, cols, early_unit)
            if p.row_bias is not None:
                s.add_(p.row_bias[rows, None].to(self.dtype), alpha=early_unit)
            if p.col_bias is not None:
                s.add_(p.col_bias[cols].to(self.dtype), alpha=early_unit)
            outside = None
            if p.clamped:
                # In natural units, so that a score on the bound is seen as dense PyTorch sees it.
                outside = ~((s >= p.lo) & (s <= p.hi)) if gradients else None
                s.clamp_(p.lo, p.hi)
                if late_unit != 1.0:
                    s.mul_(late_unit)
            yield Tile(rows, cols, s, outside)

    def fill_excluded(self, tile: Tile, values: Tensor, fill: float) -> None:
        """Overwrites the entries of `values` (a tile's shape) that stand for excluded pairs."""
        p = self.problem
        mask = self._id_mask(tile.rows, tile.cols)
        if mask is not None:
            if p.joint == "kept":
                _fill_joint(p, tile, mask, False)
            values.masked_fill_(mask, fill)
        if p.joint == "left_out":
            _fill_joint(p, tile, values, fill)

    def _id_mask(self, rows: slice, cols: slice) -> Tensor | None:
        p = self.problem
        if p.row_ids is None or p.col_ids is None:
            return None
        row_ranges, col_ranges = self._id_ranges
        mask = None
        for k in range(len(p.row_ids)):
            row_least, row_most = row_ranges[k][rows.start // self.row_step]
            col_least, col_most = col_ranges[k][cols.start // self.col_step]
            if row_least > col_most or col_least > row_most:
                continue
            equal = p.row_ids[k, rows, None] == p.col_ids[k, cols]
            mask = equal if mask is None else mask.logical_or_(equal)
        return mask

    def _enter(self, rows: slice) -> None:
        raise NotImplementedError

    def _products(self, rows: slice, cols: slice, unit: float) -> Tensor:
        raise NotImplementedError

    def gradients_of(self, needs: list[bool]) -> "_Gradients":
        raise NotImplementedError


class _Gradients(Protocol):
    """Sums the form's gradients over tiles."""

    def add(self, tile: Tile, weights: Tensor) -> None: ...

    def finish_strip(self, rows: slice) -> None: ...

    def result(self) -> tuple[Tensor | None, Tensor | None, list[Tensor]]: ...


class _InnerProductWalk(_Walk):
    def __init__(self, problem: Problem, unit: float = 1.0):
        super().__init__(problem, unit)
        self._buffer = torch.empty(self.row_step * self.col_step, dtype=self.dtype, device=self.device)

    def _enter(self, rows: slice) -> None:
        self._x = self.problem.x[rows].to(self.dtype) * self.parameters[0]
        self._fresh_rows = True

    def _products(self, rows: slice, cols: slice, unit: float) -> Tensor:
        self._y = self.problem.y[cols].to(self.dtype)
        out = self._buffer[: len(self._x) * len(self._y)].view(len(self._x), len(self._y))
        # beta=0: the buffer's old content is ignored, NaN included.
        return torch.addmm(out, self._x, self._y.T, beta=0, alpha=unit, out=out)

    def gradients_of(self, needs: list[bool]) -> "_InnerProductGradients":
        return _InnerProductGradients(self, needs)


class _InnerProductGradients:
    """Sums G Y and G^T X over tiles: dx one strip at a time, dy in one (M, d) buffer."""

    def __init__(self, walk: _InnerProductWalk, needs: list[bool]):
        self.walk, p = walk, walk.problem
        self.need_x, self.need_y, self.need_scale = needs[0], needs[1], needs[4]
        self.dx = torch.empty(p.x.shape, dtype=p.x.dtype, device=p.x.device) if self.need_x else None
        self.dy = torch.empty(p.y.shape, dtype=walk.dtype, device=p.y.device) if self.need_y else None
        self.dscale = torch.zeros((), dtype=walk.dtype, device=p.x.device)
        self._strip = torch.empty(walk.row_step, p.x.shape[1], dtype=walk.dtype, device=p.x.device)

    def add(self, tile: Tile, weights: Tensor) -> None:
        if self.need_x or self.need_scale:
            strip = self._strip[: weights.shape[0]]
            strip.addmm_(weights, self.walk._y, beta=float(tile.cols.start > 0))
        if self.dy is not None:
            self.dy[tile.cols].addmm_(weights.T, self.walk._x, beta=float(tile.rows.start > 0))

    def finish_strip(self, rows: slice) -> None:
        strip = self._strip[: rows.stop - rows.start]
        if self.need_scale:
            self.dscale += (self.walk.problem.x[rows].to(strip.dtype) * strip).sum()
        if self.dx is not None:
            torch.mul(strip, self.walk.parameters[0], out=strip)
            self.dx[rows] = strip

    def result(self) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        return self.dx, self.dy, [self.dscale]


class _MLPWalk(_Walk):
    """Tiles of pairs small enough that the hidden activations of all layers stay within a fixed workspace."""

    def _tile_shape(self) -> tuple[int, int]:
        hidden = self.problem.x.shape[1]
        layers = len(self.parameters) // 2
        pairs = _MLP_TILE_BYTES // (hidden * (layers + 1) * self.dtype.itemsize)
        rows = min(self.n, max(1, math.isqrt(pairs) // 2))
        return rows, min(self.m, max(1, pairs // rows))

    def _enter(self, rows: slice) -> None:
        self._x = self.problem.x[rows].to(self.dtype)

    def _products(self, rows: slice, cols: slice, unit: float) -> Tensor:
        self._y = self.problem.y[cols].to(self.dtype)
        s, self._saved = FORMS["concatenated_mlp"].scores(self._x, self._y, self.parameters)
        return s if unit == 1.0 else s.mul_(unit)

    def gradients_of(self, needs: list[bool]) -> "_MLPGradients":
        return _MLPGradients(self)


class _MLPGradients:
    def __init__(self, walk: _MLPWalk):
        self.walk, p = walk, walk.problem
        self.dx = torch.zeros(p.x.shape, dtype=walk.dtype, device=p.x.device)
        self.dy = torch.zeros(p.y.shape, dtype=walk.dtype, device=p.y.device)
        self.dparameters = [torch.zeros_like(parameter) for parameter in walk.parameters]

    def add(self, tile: Tile, weights: Tensor) -> None:
        walk = self.walk
        dx, dy, dparameters = FORMS["concatenated_mlp"].gradients(
            walk._x, walk._y, walk.parameters, walk._saved, weights)
        self.dx[tile.rows] += dx
        self.dy[tile.cols] += dy
        for total, part in zip(self.dparameters, dparameters, strict=True):
            total += part

    def finish_strip(self, rows: slice) -> None:
        """Nothing is kept by strip."""

    def result(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self.dx, self.dy, self.dparameters


_WALKS = {"inner_product": _InnerProductWalk, "concatenated_mlp": _MLPWalk}


def _id_ranges(problem: Problem, row_step: int, col_step: int):
    """Least and greatest id of every block, so that most tiles are seen to exclude nothing at O(N + M) cost."""

    def ranges(ids: Tensor | None, step: int) -> list[list[tuple[int, int]]]:
        if ids is None:
            return []
        return [[tuple(torch.stack(block.aminmax()).tolist()) for block in row.split(step)] for row in ids]

    return ranges(problem.row_ids, row_step), ranges(problem.col_ids, col_step)


def _fill_joint(problem: Problem, tile: Tile, values: Tensor, fill: float) -> None:
    rows, cols = tile.rows, tile.cols
    if problem.positives is None:
        first, last = max(rows.start, cols.start), min(rows.stop, cols.stop)
        if first < last:
            block = values[first - rows.start: last - rows.start, first - cols.start: last - cols.start]
            block.diagonal().fill_(fill)
        return
    column = problem.positives[rows] - cols.start
    (row,) = ((column >= 0) & (column < cols.stop - cols.start)).nonzero(as_tuple=True)
    values[row, column[row]] = fill


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    if problem.fn != "logsumexp":
        return _pointwise_sums(problem)
    walk = _WALKS[problem.form](problem, LOG2E)
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
    walk = _WALKS[problem.form](problem)
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

    def __init__(self, size: int, walk: _Walk, reference: float | None):
        start = -math.inf if reference is None else reference
        self.maximum = torch.full((size,), start, dtype=walk.dtype, device=walk.device)
        self.total = torch.zeros_like(self.maximum)

    def add(self, index: slice, maximum: Tensor, total: Tensor) -> None:
        """Takes in sums of 2^(s - maximum); an infinite maximum stands for a reference of 0, as `_finite` gives."""
        before = self.maximum[index]
        new = torch.maximum(before, maximum)
        # Where both are the same infinity nothing is rescaled: inf - inf would make a NaN of it.
        self.total[index] = (self.total[index] * torch.exp2(torch.where(before == new, 0, before - new))
                             + total * torch.exp2(torch.where(maximum == new, 0, maximum - new)))
        self.maximum[index] = new

    def result(self) -> Tensor:
        return (self.maximum + self.total.log2()) / LOG2E


def _add_fixed(problem: Problem, tile: Tile, rows: _LogSumExp, columns: _LogSumExp) -> None:
    """One exponential against one reference serves rows and columns."""
    e = tile.scores.sub_((rows if problem.wants_rows else columns).maximum[0]).exp2_()
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


def backward(problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor,
             needs: list[bool]) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`: every tile's scores again, its weights G, then G Y and G^T X."""
    exponential = problem.fn == "logsumexp"
    walk = _WALKS[problem.form](problem, LOG2E if exponential else 1.0)
    make_weights = _exponential_weights if exponential else _pointwise_weights
    weigh = make_weights(problem, rows, columns, grad_rows, grad_columns)
    gradients = walk.gradients_of(needs)
    drow = torch.zeros(walk.n if needs[2] else 0, dtype=walk.dtype, device=walk.device)
    dcol = torch.zeros(walk.m if needs[3] else 0, dtype=walk.dtype, device=walk.device)
    for strip in walk.strips():
        for tile in walk.tiles(strip, gradients=True):
            g = weigh(tile)
            if tile.outside is not None:
                g.masked_fill_(tile.outside, 0)
            walk.fill_excluded(tile, g, 0.0)
            if needs[2]:
                drow[tile.rows] += g.sum(1)
            if needs[3]:
                dcol[tile.cols] += g.sum(0)
            gradients.add(tile, g)
        gradients.finish_strip(strip)
    dx, dy, dparameters = gradients.result()
    return [
        gradient.to(tensor.dtype) if needed and tensor is not None and gradient is not None else None
        for gradient, tensor, needed in zip([dx, dy, drow, dcol, *dparameters], problem.differentiable, needs,
                                            strict=True)
    ]


Weigh = Callable[[Tile], Tensor]


def _pointwise_weights(problem: Problem, rows: Tensor, columns: Tensor,
                       grad_rows: Tensor, grad_columns: Tensor) -> Weigh:
    derivative = POINTWISE[problem.fn].derivative

    def weigh(tile: Tile) -> Tensor:
        g = derivative(tile.scores)
        if problem.dims == "both":
            return g.mul_(grad_rows[tile.rows, None] + grad_columns[tile.cols])
        return g.mul_(grad_rows[tile.rows, None] if problem.wants_rows else grad_columns[tile.cols])

    return weigh


def _exponential_weights(problem: Problem, rows: Tensor, columns: Tensor,
                         grad_rows: Tensor, grad_columns: Tensor) -> Weigh:
    """G_ij = alpha_i e^(s_ij - r_i) + beta_j e^(s_ij - c_j), by one exponential where one reference will do."""
    # An empty row or column has the statistic -inf and no pair to weigh: +inf makes its weights 0, not NaN.
    r, c = ((t * LOG2E).masked_fill_(t == -math.inf, math.inf) for t in (rows, columns))
    reference = _shared_reference(r, c)
    if reference is not None:
        return _shared_weights(problem, reference, r, c, grad_rows, grad_columns)

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


def _shared_reference(r: Tensor, c: Tensor) -> float | None:
    least, most = torch.stack(torch.cat([r, c]).aminmax()).tolist()
    return (least + most) / 2 if most - least <= SAFE_STATISTIC_SPREAD * LOG2E else None


def _shared_weights(problem: Problem, reference: float, r: Tensor, c: Tensor,
                    grad_rows: Tensor, grad_columns: Tensor) -> Weigh:
    """G_ij = 2^(s_ij - k) (A_i + B_j) with A_i = alpha_i 2^(k - r_i), B_j = beta_j 2^(k - c_j).

    With all r and c within 20 nats of k, A_i <= e^20 alpha_i, and flushing 2^(s - k) below 1e-19 costs
    at most 5e-11 of alpha_i in a weight.
    """
    a = grad_rows * torch.exp2(reference - r)
    b = grad_columns * torch.exp2(reference - c)

    def weigh(tile: Tile) -> Tensor:
        s = tile.scores
        e = _flush((s.sub_(reference) if reference else s).exp2_())
        if problem.dims == "both":
            return e.mul_(a[tile.rows, None] + b[tile.cols])
        return e.mul_(a[tile.rows, None] if problem.wants_rows else b[tile.cols])

    return weigh
