"""The forward: one pass over the tiles gives the statistics of rows and of columns.

One idea: a tile of products becomes, without leaving its multiprocessor, one number for each of its rows and each
of its columns (a log-sum-exp in base 2, or a sum). These partial numbers of a block of tiles are merged in a fixed
order by a second, small kernel before the next block begins, so that memory stays constant and no atomics are needed.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problem import Problem
from . import configurations
from .configurations import forward_tile, input_precision
from .entropies import log2_sums_and_entropies
from .launch import cdiv, count, launch
from .merges import Merger, block_of, blocks, store_parts, tiles_of
from .sides import critic_of, exclusions, sides_of, width_of_guide
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

_GROUP = tl.constexpr(8)
# What underflows below a tile's maximum is less than 2^-126 a pair, and less than a rounding of a sum as large as this.
_SMALLEST_SUM = tl.constexpr(2.0**-90)
_MARKS = 32


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
        if rows.entropies.lines is not None:
            by_row, entropies = log2_sums_and_entropies(s, 1)
            store_parts(rows, tile_j, tile_i * BI, by_row, BI)
            store_parts(rows.entropies, tile_j, tile_i * BI, entropies, BI)
        elif rows.lines is not None:
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
    both: tl.constexpr = (rows.lines is not None) & (columns.lines is not None)
    # Of one reference for a tile the two terms of an entropy would be large, and cancel.
    if (FN == "logsumexp") & both & (rows.entropies.lines is None):
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
    return _made(problem, entropies=False).statistics()


def forward_with_entropies(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` of log-sum-exps by "rows" or "both", and (N,) the entropy of each row's softmax in nats."""
    return _made(problem, entropies=True).statistics_and_entropies()


def _made(problem: Problem, entropies: bool) -> Merger:
    tile = forward_tile(problem, entropies)
    own, other, critic = *sides_of(problem), critic_of(problem)
    block = block_of(own, other, tile, configurations.BLOCK, configurations.BLOCK)
    merger = Merger(own, other, tile, block, (problem.wants_rows, problem.wants_columns), entropies)
    constants = {**tile.constants(critic.d), **compile_time_options(problem)}
    device = problem.x.device
    inexact = None
    if problem.fn == "logsumexp" and problem.wants_rows and problem.wants_columns and not entropies:
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
    return merger
