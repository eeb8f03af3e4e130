"""The forward: one pass over the tiles gives the statistics of rows and of columns.

One idea: a tile of products becomes, without leaving its multiprocessor, one number for each of its rows and each
of its columns (a log-sum-exp in base 2, or a sum). These partial numbers of a block of tiles are merged in a fixed
order by a second, small kernel before the next block begins, so that memory stays constant and no atomics are needed.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problem import Problem
from . import configurations
from .configurations import Tile, forward_tile, input_precision
from .launch import cdiv, count, launch
from .sides import Side, critic_of, exclusions, sides_of, width_of_guide
from .tile import (
    LOG2E,
    above_limit,
    clamped_scores,
    fill_left_out,
    finite,
    log2,
    products_of_tile,
    unclamped_scores,
    values_of_tile,
)

_LN2 = tl.constexpr(0.6931471805599453)
_GROUP = tl.constexpr(8)
_MERGED, _MERGED_LINES = 128, 32
# What underflows below a tile's maximum is less than 2^-126 a pair, and less than a rounding of a sum as large as this.
_SMALLEST_SUM = tl.constexpr(2.0**-90)
_MARKS = 32


class Parts(NamedTuple):
    """Partial numbers of one side of a block of tiles, and the numbers that they are merged into.

    Triton compiles a kernel anew for an integer that is 1, and for one that 16 does not divide: what changes from block
    to block comes times 16.
    """

    lines: Any
    """(tiles, stride) float32, one line for each tile of the other side"""
    stride: Any
    tiles: Any
    """How many lines there are, times 16"""
    result: Any
    """(size,) float32 of the whole side; the block begins at `start` and has `length` of them"""
    start: Any
    length: Any
    """Times 16"""
    first: Any
    """Whether nothing was merged before: 16, or 0"""
    last: Any
    """Whether nothing follows, so that a log-sum-exp goes from base 2 to nats: 16, or 0"""


@triton.jit
def tile_of_program(program, tiles_i, tiles_j):
    """Programs that run at the same time share operands in L2: _GROUP tiles down before one to the right."""
    in_group = _GROUP * tiles_j
    first = (program // in_group) * _GROUP
    height = tl.minimum(tiles_i - first, _GROUP)
    return first + (program % in_group) % height, (program % in_group) // height


@triton.jit
def _log2_sums(s, AXIS: tl.constexpr):
    """log2 sum 2^s along an axis, by the references of its lines."""
    shift = finite(tl.max(s, AXIS))
    return log2(tl.sum(tl.exp2(s - tl.expand_dims(shift, AXIS)), AXIS)) + shift


@triton.jit
def _log2_sums_by_one_reference(s, rows_inside, columns_inside):
    """log2 sum 2^s of rows and of columns by one exponential a pair, and whether a sum is too small to be exact."""
    most = finite(tl.max(s))
    e = tl.exp2(s - most)
    rows, columns = tl.sum(e, 1), tl.sum(e, 0)
    least = tl.minimum(tl.min(tl.where(rows_inside, rows, 1.0), 0), tl.min(tl.where(columns_inside, columns, 1.0), 0))
    # Written so that NaN is not exact; and an infinite sum's reference would be infinite.
    exact = (least >= _SMALLEST_SUM) & (tl.max(rows, 0) < float("inf"))
    return log2(rows) + most, log2(columns) + most, exact == 0


@triton.jit
def store_parts(parts, tile, start, values, BLOCK: tl.constexpr):
    index = start + tl.arange(0, BLOCK)
    line = parts.lines + tile.to(tl.int64) * parts.stride
    tl.store(line + index, values, mask=index < parts.length // 16)


@triton.jit
def store_parts_of_scores(
    s, own, other, by_guide, rows, columns, tile_i, tile_j, FN: tl.constexpr, IDS: tl.constexpr, JOINT: tl.constexpr
):  # fmt: skip
    """One number for each row and column of a tile of scores; a log-sum-exp by a reference of its own line."""
    BI: tl.constexpr = s.shape[0]
    BJ: tl.constexpr = s.shape[1]
    i0 = rows.start + tile_i * BI
    j0 = columns.start + tile_j * BJ
    if FN == "logsumexp":
        s = fill_left_out(s, -float("inf"), own, other, i0, j0, by_guide, IDS, JOINT)
        if rows.lines is not None:
            store_parts(rows, tile_j, tile_i * BI, _log2_sums(s, 1), BI)
        if columns.lines is not None:
            store_parts(columns, tile_i, tile_j * BJ, _log2_sums(s, 0), BJ)
    else:
        values = values_of_tile(s, own, other, i0, j0, by_guide, FN, IDS, JOINT)
        if rows.lines is not None:
            store_parts(rows, tile_j, tile_i * BI, tl.sum(values, 1), BI)
        if columns.lines is not None:
            store_parts(columns, tile_i, tile_j * BJ, tl.sum(values, 0), BJ)


@triton.jit
def _scores_of_tile(
    own, other, critic, i0, j0, UNIT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    products = products_of_tile(own, other, i0, j0, critic.d, BI, BJ, BD, EVEN_D, PRECISION)
    return clamped_scores(unclamped_scores(products, own, other, i0, j0, critic, UNIT), critic, UNIT)


@triton.jit(do_not_specialize=("tiles_i", "tiles_j"))
def _statistics_of_tiles(
    own, other, critic, rows, columns, inexact, tiles_i, tiles_j, UNIT: tl.constexpr, FN: tl.constexpr,
    IDS: tl.constexpr, JOINT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile_i, tile_j = tile_of_program(tl.program_id(0), tiles_i, tiles_j)
    i0 = rows.start + tile_i * BI
    j0 = columns.start + tile_j * BJ
    by_guide = above_limit(own, other, i0, j0, BI, BJ)
    s = _scores_of_tile(own, other, critic, i0, j0, UNIT, BI, BJ, BD, EVEN_D, PRECISION)
    if (FN == "logsumexp") & (rows.lines is not None) & (columns.lines is not None):
        s = fill_left_out(s, -float("inf"), own, other, i0, j0, by_guide, IDS, JOINT)
        rows_inside = i0 + tl.arange(0, BI) < own.size
        columns_inside = j0 + tl.arange(0, BJ) < other.size
        by_row, by_column, again = _log2_sums_by_one_reference(s, rows_inside, columns_inside)
        store_parts(rows, tile_j, tile_i * BI, by_row, BI)
        store_parts(columns, tile_i, tile_j * BJ, by_column, BJ)
        tl.store(inexact + tl.program_id(0), again.to(tl.int8))
    else:
        store_parts_of_scores(s, own, other, by_guide, rows, columns, tile_i, tile_j, FN, IDS, JOINT)


@triton.jit(do_not_specialize=("tiles_i", "tiles_j"))
def _inexact_tiles_again(
    own, other, critic, rows, columns, inexact, tiles_i, tiles_j, UNIT: tl.constexpr, FN: tl.constexpr,
    IDS: tl.constexpr, JOINT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Log-sum-exps of the marked tiles, by a reference for each row and each column.

    In a kernel of its own, since these registers would halve how many programs of the other one run at a time.
    """
    tiles = tiles_i * tiles_j
    for start in range(tl.program_id(0) * CHUNK, tiles, tl.num_programs(0) * CHUNK):
        chunk = start + tl.arange(0, CHUNK)
        marks = tl.load(inexact + chunk, mask=chunk < tiles, other=0)
        if tl.max(marks.to(tl.int32), 0) != 0:
            for tile in range(start, tl.minimum(start + CHUNK, tiles)):
                if tl.load(inexact + tile) != 0:
                    tile_i, tile_j = tile_of_program(tile, tiles_i, tiles_j)
                    i0 = rows.start + tile_i * BI
                    j0 = columns.start + tile_j * BJ
                    by_guide = above_limit(own, other, i0, j0, BI, BJ)
                    s = _scores_of_tile(own, other, critic, i0, j0, UNIT, BI, BJ, BD, EVEN_D, PRECISION)
                    store_parts_of_scores(s, own, other, by_guide, rows, columns, tile_i, tile_j, FN, IDS, JOINT)


@triton.jit
def _merge_side(parts, EXPONENTIAL: tl.constexpr, BLOCK: tl.constexpr, LINES: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < parts.length // 16
    neutral = -float("inf") if EXPONENTIAL else 0.0
    result = parts.result + parts.start + index
    # As tensors: what comparing two numbers gives is no mask to the interpreter of Triton 3.9.
    total = tl.load(result, mask=inside & (tl.zeros_like(index) == parts.first), other=neutral)
    tiles = parts.tiles // 16
    for first in range(0, tiles, LINES):
        line = first + tl.arange(0, LINES)
        pointers = parts.lines + (line.to(tl.int64) * parts.stride)[:, None] + index[None, :]
        values = tl.load(pointers, mask=(line < tiles)[:, None] & inside[None, :], other=neutral)
        if EXPONENTIAL:
            shift = finite(tl.maximum(total, tl.max(values, 0)))
            total = log2(tl.exp2(total - shift) + tl.sum(tl.exp2(values - shift[None, :]), 0)) + shift
        else:
            total += tl.sum(values, 0)
    if EXPONENTIAL and parts.last != 0:
        total *= _LN2
    tl.store(result, total, mask=inside)


@triton.jit
def _merge(rows, columns, EXPONENTIAL: tl.constexpr, BLOCK: tl.constexpr, LINES: tl.constexpr):
    """Merges the parts of either side; a program of axis 1 serves one of them."""
    if tl.program_id(1) == 0:
        if rows.lines is not None:
            _merge_side(rows, EXPONENTIAL, BLOCK, LINES)
    else:
        if columns.lines is not None:
            _merge_side(columns, EXPONENTIAL, BLOCK, LINES)


class Merger:
    """Keeps the numbers of either side, and a workspace for the parts of one block of tiles."""

    def __init__(self, own: Side, other: Side, tile: Tile, block: tuple[int, int], wants: tuple[bool, bool]):
        self._sizes, self._tile, self._wants, self._device = (own.size, other.size), tile, wants, own.operand.device
        self.own, self.other = (
            self._empty(side.size) if want else None for side, want in zip((own, other), wants, strict=True)
        )
        self._own_parts = self._empty(cdiv(block[1], tile.other), block[0]) if wants[0] else None
        self._other_parts = self._empty(cdiv(block[0], tile.own), block[1]) if wants[1] else None

    def _empty(self, *size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=self._device)

    def parts(self, rows: slice, columns: slice) -> tuple[Parts, Parts]:
        """Of one block; blocks come row by row."""
        tiles_i, tiles_j = tiles_of(rows, columns, self._tile)
        return (
            _parts(self._own_parts, tiles_j, self.own, rows, columns, self._sizes[1]),
            _parts(self._other_parts, tiles_i, self.other, columns, rows, self._sizes[0]),
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Of both sides, empty where not wanted."""
        nothing = self._empty(0)
        return nothing if self.own is None else self.own, nothing if self.other is None else self.other

    def merge(self, parts: tuple[Parts, Parts], exponential: bool) -> None:
        if any(self._wants):
            grid = (cdiv(max(p.length for p in parts) // 16, _MERGED), 2)
            launch(_merge, grid, *parts, exponential, _MERGED, _MERGED_LINES, device=self._device, num_warps=4)


def _parts(values: Tensor | None, tiles: int, result: Tensor | None, along: slice, across: slice, end: int) -> Parts:
    stride = 0 if values is None else values.stride(0)
    length = along.stop - along.start
    first, last = 16 * (across.start == 0), 16 * (across.stop == end)
    return Parts(values, stride, 16 * tiles, result, along.start, 16 * length, first, last)


def block_of(own: Side, other: Side, tile: Tile, height: int, width: int) -> tuple[int, int]:
    """Height and width of a block of whole tiles, no larger than the matrix needs."""
    return _whole(min(own.size, height), tile.own), _whole(min(other.size, width), tile.other)


def _whole(length: int, tile: int) -> int:
    return cdiv(length, tile) * tile


def blocks(own: Side, other: Side, block: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """The score matrix in blocks, row by row."""
    for i in range(0, own.size, block[0]):
        for j in range(0, other.size, block[1]):
            yield slice(i, min(i + block[0], own.size)), slice(j, min(j + block[1], other.size))


def tiles_of(rows: slice, columns: slice, tile: Tile) -> tuple[int, int]:
    return cdiv(rows.stop - rows.start, tile.own), cdiv(columns.stop - columns.start, tile.other)


def compile_time_options(problem: Problem) -> dict[str, Any]:
    """What distinguishes the kernels of one problem from those of another, but for the shape of tiles."""
    return {
        "UNIT": LOG2E if problem.fn == "logsumexp" else 1.0,
        "FN": problem.fn,
        "PRECISION": input_precision(problem),
        **exclusions(problem),
    }


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Row and column statistics, empty where they are not wanted."""
    tile = forward_tile(problem)
    own, other, critic = *sides_of(problem), critic_of(problem)
    block = block_of(own, other, tile, configurations.BLOCK, configurations.BLOCK)
    merger = Merger(own, other, tile, block, (problem.wants_rows, problem.wants_columns))
    constants = {**tile.constants(critic.d), **compile_time_options(problem)}
    device = problem.x.device
    inexact = None
    if problem.fn == "logsumexp" and problem.wants_rows and problem.wants_columns:
        inexact = torch.empty((block[0] // tile.own) * (block[1] // tile.other), dtype=torch.int8, device=device)
    for rows, columns in blocks(own, other, block):
        parts, tiles = merger.parts(rows, columns), tiles_of(rows, columns, tile)
        arguments = (own, other, critic, *parts, inexact, *tiles)
        launch(_statistics_of_tiles, (tiles[0] * tiles[1],), *arguments, **constants, device=device)
        count((rows.stop - rows.start) * (columns.stop - columns.start) * (critic.d + width_of_guide(own)))
        if inexact is not None:
            programs = min(cdiv(tiles[0] * tiles[1], _MARKS), configurations.programs_wanted(device))
            launch(_inexact_tiles_again, (programs,), *arguments, **constants, CHUNK=_MARKS, device=device)
        merger.merge(parts, exponential=problem.fn == "logsumexp")
    return merger.statistics()
