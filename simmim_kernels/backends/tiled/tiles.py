"""The walk over the score matrix: one tile of scores at a time, and the sums of products that consume its weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...problem import Problem
from ...problem.forms import ConcatenatedMLP
from .products import times_transposed

LOG2E = 1 / math.log(2)

# A few matrices of this many float32 scores stay within a CPU's caches.
_TILE_ROWS, _TILE_COLUMNS = 512, 1024
# Elsewhere a tile is large enough to hide the launch of a kernel: 64 MB in float32. Not measured on any GPU yet.
_DEVICE_TILE = 4096
# Of pairs within groups: the smaller the tiles, the fewer pairs of other groups share one with those that are in.
_GROUP_TILE, _DEVICE_GROUP_TILE = 256, 1024
_MLP_TILE_BYTES = 4 * 2**20


class Tile(NamedTuple):
    """One block of pairs: its scores in the walk's unit, and where they are."""

    rows: slice
    cols: slice
    scores: Tensor
    outside: Tensor | None
    """True where the clamp is active; only where gradients are wanted."""
    mirrored: bool
    """Whether it stands for its mirror image, too: one beside the diagonal of symmetric scores."""


class Walk:
    """Visits the tiles of a problem strip by strip. `unit` multiplies every score (LOG2E for base 2).

    Of symmetric scores it visits the tiles on the diagonal, which are square, and those to the right of them.
    """

    def __init__(self, problem: Problem, unit: float = 1.0):
        self.problem, self.unit = problem, unit
        self.symmetric = problem.symmetric
        # A clamp acts in natural units, so that a score on its bound is seen there.
        self.product_unit = 1.0 if problem.clamped else unit
        self.dtype, self.device = problem.compute_dtype, problem.x.device
        self.n, self.m = problem.shape
        self.parameters = [parameter.to(self.dtype) for parameter in problem.parameters]
        self.row_step, self.col_step = self._tile_shape()
        if self.symmetric:
            self.col_step = self.row_step
        self._id_ranges = _id_ranges(problem, self.row_step, self.col_step)

    def _tile_shape(self) -> tuple[int, int]:
        on_cpu = self.device.type == "cpu"
        rows, columns = (_TILE_ROWS, _TILE_COLUMNS) if on_cpu else (_DEVICE_TILE, _DEVICE_TILE)
        if self.problem.grouped:
            most = _GROUP_TILE if on_cpu else _DEVICE_GROUP_TILE
            rows, columns = min(rows, most), min(columns, most)
        return min(self.n, rows), min(self.m, columns)

    def strips(self) -> Iterator[slice]:
        """Each strip of rows in turn, its operands made ready for `tiles`."""
        for start in range(0, self.n, self.row_step):
            rows = slice(start, min(start + self.row_step, self.n))
            self._enter(rows)
            yield rows

    def tiles(self, rows: slice, gradients: bool = False) -> Iterator[Tile]:
        """Those of a strip, but for tiles all of whose pairs are seen to be left out."""
        p = self.problem
        for start in range(rows.start if self.symmetric else 0, self.m, self.col_step):
            cols = slice(start, min(start + self.col_step, self.m))
            if self._is_left_out(rows, cols):
                continue
            s = self._products(rows, cols)
            if p.row_bias is not None:
                s.add_(p.row_bias[rows, None].to(self.dtype), alpha=self.product_unit)
            if p.col_bias is not None:
                s.add_(p.col_bias[cols].to(self.dtype), alpha=self.product_unit)
            outside = None
            if p.clamped:
                outside = ~((s >= p.lo) & (s <= p.hi)) if gradients else None
                s.clamp_(p.lo, p.hi).mul_(self.unit)
            yield Tile(rows, cols, s, outside, mirrored=self.symmetric and start > rows.start)

    def fill_excluded(self, tile: Tile, values: Tensor, fill: float) -> None:
        """Overwrites the entries of `values` (a tile's shape) that stand for excluded pairs."""
        p = self.problem
        mask = self._id_mask(tile.rows, tile.cols)
        if p.guided:
            by_guide = p.left_out_by_guide(tile.rows, tile.cols)
            mask = by_guide if mask is None else mask.logical_or_(by_guide)
        if mask is not None:
            if p.joint == "kept":
                _change_joint(p, tile, mask, torch.zeros_like)
            values.masked_fill_(mask, fill)
        if p.joint == "left_out":
            _change_joint(p, tile, values, lambda joint: torch.full_like(joint, fill))

    def sign_joint(self, tile: Tile, values: Tensor) -> Tensor:
        """`values`, with the sign of the joint pairs' entries changed in place where these are "negated"."""
        if self.problem.joint == "negated":
            _change_joint(self.problem, tile, values, torch.neg)
        return values

    def _id_mask(self, rows: slice, cols: slice) -> Tensor | None:
        p = self.problem
        if p.row_ids is None or p.col_ids is None:
            return None
        mask = None
        for k, (alike, apart) in enumerate(self._id_relations(rows, cols)):
            within = p.grouped and k == 0
            if alike if within else apart:
                continue
            mine, others = p.row_ids[k, rows, None], p.col_ids[k, cols]
            out = mine != others if within else mine == others
            mask = out if mask is None else mask.logical_or_(out)
        return mask

    def _is_left_out(self, rows: slice, cols: slice) -> bool:
        """Whether the ranges of a tile's ids show that all its pairs are left out."""
        p = self.problem
        if p.row_ids is None or p.joint == "kept":
            return False
        relations = self._id_relations(rows, cols)
        return any(apart if p.grouped and k == 0 else alike for k, (alike, apart) in enumerate(relations))

    def _id_relations(self, rows: slice, cols: slice) -> Iterator[tuple[bool, bool]]:
        """Of a tile, for every k: whether the ranges of its ids show that all are equal, and that none are."""
        strip, panel = rows.start // self.row_step, cols.start // self.col_step
        for row_ranges, col_ranges in zip(*self._id_ranges, strict=True):
            (row_least, row_most), (col_least, col_most) = row_ranges[strip], col_ranges[panel]
            yield row_least == row_most == col_least == col_most, row_least > col_most or col_least > row_most

    def _enter(self, rows: slice) -> None:
        raise NotImplementedError

    def _products(self, rows: slice, cols: slice) -> Tensor:
        raise NotImplementedError

    def gradients_of(self, needs: list[bool]) -> "Gradients":
        raise NotImplementedError


class Gradients(Protocol):
    """Sums the form's gradients over tiles."""

    def start_strip(self) -> None: ...

    def add(self, tile: Tile, weights: Tensor) -> None: ...

    def finish_strip(self, rows: slice) -> None: ...

    def result(self) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor | None]]: ...


class _InnerProductWalk(Walk):
    def _enter(self, rows: slice) -> None:
        self._x = self.problem.x[rows].to(self.dtype) * (self.parameters[0] * self.product_unit)

    def _products(self, rows: slice, cols: slice) -> Tensor:
        self._y = self.problem.y[cols].to(self.dtype)
        return times_transposed(self._x, self._y)

    def gradients_of(self, needs: list[bool]) -> "Gradients":
        return _InnerProductGradients(self, needs)


class _InnerProductGradients:
    """Sums G Y and G^T X over tiles: dx one strip at a time, dy, transposed, in one (d, M) buffer.

    X^T G has the long rows of G for its columns, as the fast product wants them, where G^T X does not. Of symmetric
    scores, whose weights are those of a pair and of its mirror image, a strip of dx takes in its columns of dy.
    """

    def __init__(self, walk: _InnerProductWalk, needs: list[bool]):
        self.walk, p = walk, walk.problem
        self.need_x, self.need_y, self.need_scale = needs[0], needs[1], needs[4]
        # Ids may leave whole tiles out, which then add nothing.
        make = torch.empty if p.row_ids is None else torch.zeros
        self.dx = make(p.x.shape, dtype=p.x.dtype, device=p.x.device) if self.need_x else None
        self.dy = torch.zeros(p.y.shape[::-1], dtype=walk.dtype, device=p.y.device) if self.need_y else None
        self.dscale = torch.zeros((), dtype=walk.dtype, device=p.x.device) if self.need_scale else None

    def start_strip(self) -> None:
        self._x_transposed = self.walk._x.T.contiguous() if self.need_y else None
        self._strip: Tensor | None = None

    def add(self, tile: Tile, weights: Tensor) -> None:
        walk = self.walk
        if self.need_x or self.need_scale:
            part = times_transposed(weights, walk._y.T)
            if self.need_scale and walk.symmetric and not tile.mirrored:
                # A diagonal tile's weights have every pair twice.
                self._add_scale(tile.rows, part, -0.5)
            self._strip = part if self._strip is None else self._strip.add_(part)
        if walk.symmetric and not tile.mirrored:
            return
        if self.dy is not None and self._x_transposed is not None:
            self.dy[:, tile.cols] += times_transposed(self._x_transposed, weights.T)

    def _add_scale(self, rows: slice, part: Tensor, share: float) -> None:
        assert self.dscale is not None
        self.dscale += share * (self.walk.problem.x[rows].to(part.dtype) * part).sum()

    def finish_strip(self, rows: slice) -> None:
        if self._strip is None and self.walk.symmetric and self.dx is not None:
            self._strip = torch.zeros_like(self.dx[rows], dtype=self.walk.dtype)
        if self._strip is None:
            return
        if self.dscale is not None:
            self._add_scale(rows, self._strip, 1.0)
        if self.dx is not None:
            strip = self._strip.mul_(self.walk.parameters[0])
            if self.walk.symmetric and self.dy is not None:
                # Of these rows' columns the strips before have made all that there is.
                strip.add_(self.dy[:, rows].T, alpha=1 / self.walk.product_unit)
            self.dx[rows] = strip

    def result(self) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor | None]]:
        if self.dy is None or self.walk.symmetric:
            return self.dx, None, [self.dscale]
        return self.dx, self.dy.mul_(1 / self.walk.product_unit).T.contiguous(), [self.dscale]


_TILED_MLP = ConcatenatedMLP(times_transposed)


class _MLPWalk(Walk):
    """Tiles of pairs small enough that the hidden activations of all layers stay within a fixed workspace."""

    def _tile_shape(self) -> tuple[int, int]:
        hidden = self.problem.x.shape[1]
        layers = len(self.parameters) // 2
        pairs = _MLP_TILE_BYTES // (hidden * (layers + 1) * self.dtype.itemsize)
        rows = min(self.n, max(1, math.isqrt(pairs) // 2))
        return rows, min(self.m, max(1, pairs // rows))

    def _enter(self, rows: slice) -> None:
        self._x = self.problem.x[rows].to(self.dtype)

    def _products(self, rows: slice, cols: slice) -> Tensor:
        self._y = self.problem.y[cols].to(self.dtype)
        s, self._saved = _TILED_MLP.scores(self._x, self._y, self.parameters)
        return s.mul_(self.product_unit)

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
        dx, dy, dparameters = _TILED_MLP.gradients(walk._x, walk._y, walk.parameters, walk._saved, weights)
        self.dx[tile.rows] += dx
        self.dy[tile.cols] += dy
        for total, part in zip(self.dparameters, dparameters, strict=True):
            total += part

    def start_strip(self) -> None:
        """Nothing is kept by strip."""

    def finish_strip(self, rows: slice) -> None:
        """Nothing is kept by strip."""

    def result(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self.dx, self.dy, self.dparameters


_WALKS: dict[str, type[Walk]] = {"inner_product": _InnerProductWalk, "concatenated_mlp": _MLPWalk}


def walk_over(problem: Problem, unit: float = 1.0) -> Walk:
    """The walk over a problem's tiles; `unit` multiplies every score (log2(e) for base 2)."""
    return _WALKS[problem.form](problem, unit)


def _id_ranges(problem: Problem, row_step: int, col_step: int):
    """Least and greatest id of every block: that all of a tile is in, or nothing, they say at O(N + M) cost."""

    def ranges(ids: Tensor | None, step: int) -> list[list[list[int]]]:
        if ids is None:
            return []
        # One look at the values for each set of ids: on a GPU every look stalls.
        return [torch.stack([torch.stack(block.aminmax()) for block in row.split(step)]).tolist() for row in ids]

    return ranges(problem.row_ids, row_step), ranges(problem.col_ids, col_step)


def _change_joint(problem: Problem, tile: Tile, values: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Puts `change` of the joint pairs' entries in their places."""
    rows, cols = tile.rows, tile.cols
    if problem.positives is None:
        first, last = max(rows.start, cols.start), min(rows.stop, cols.stop)
        if first < last:
            block = values[first - rows.start : last - rows.start, first - cols.start : last - cols.start]
            diagonal = block.diagonal()
            diagonal.copy_(change(diagonal))
        return
    column = problem.positives[rows] - cols.start
    (row,) = ((column >= 0) & (column < cols.stop - cols.start)).nonzero(as_tuple=True)
    values[row, column[row]] = change(values[row, column[row]])
