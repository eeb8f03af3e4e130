"""The backward of wide features: blocks of weights G go to a constant workspace, from which the vendor's library
multiplies them. A gradient's accumulator of such a width would not fit in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configurations
from .configurations import Tile
from .launch import add_product, count, launch
from .merges import Merger, block_of, blocks, store_parts, tiles_of
from .passes import Pass
from .sides import width_of_guide
from .statistics import tile_of_program
from .tile import (
    above_limit,
    clamped_scores,
    is_for,
    offsets_within,
    products_of_tile,
    unclamped_scores,
    values_of_tile,
    weights_of_tile,
)


@triton.jit
def weigh_tile(
    products, own, other, critic, by_guide, own_bias, other_bias, value, tile_i, tile_j, UNIT: tl.constexpr,
    FN: tl.constexpr, IDS: tl.constexpr, JOINT: tl.constexpr, REFERENCES: tl.constexpr,
):  # fmt: skip
    """dL/ds of a tile, whose sums by row and by column and whose function go to where they are wanted."""
    BI: tl.constexpr = products.shape[0]
    BJ: tl.constexpr = products.shape[1]
    i0 = own_bias.start + tile_i * BI
    j0 = other_bias.start + tile_j * BJ
    unclamped = unclamped_scores(products, own, other, i0, j0, critic, UNIT)
    s = clamped_scores(unclamped, critic, UNIT)
    if value.lines is not None:
        by_row = tl.sum(values_of_tile(s, own, other, i0, j0, by_guide, FN, IDS, JOINT), 1)
        store_parts(value, tile_j, tile_i * BI, by_row, BI)
    g = weights_of_tile(unclamped, s, own, other, i0, j0, critic, by_guide, FN, IDS, JOINT, REFERENCES)
    if own_bias.lines is not None:
        store_parts(own_bias, tile_j, tile_i * BI, tl.sum(g, 1), BI)
    if other_bias.lines is not None:
        store_parts(other_bias, tile_i, tile_j * BJ, tl.sum(g, 0), BJ)
    return g


@triton.jit(do_not_specialize=("tiles_i", "tiles_j"))
def _weights_of_tiles(
    own, other, critic, weights, stride, weight_unit, own_bias, other_bias, value, tiles_i, tiles_j,
    UNIT: tl.constexpr, FN: tl.constexpr, IDS: tl.constexpr, JOINT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    BD: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, REFERENCES: tl.constexpr,
):  # fmt: skip
    """Writes one block of G, whole tiles of it, zero outside the matrix."""
    if not is_for(critic, REFERENCES):
        return
    tile_i, tile_j = tile_of_program(tl.program_id(0), tiles_i, tiles_j)
    i0 = own_bias.start + tile_i * BI
    j0 = other_bias.start + tile_j * BJ
    by_guide = above_limit(own, other, i0, j0, BI, BJ)
    products = products_of_tile(own, other, i0, j0, critic.d, BI, BJ, BD, EVEN_D, PRECISION)
    g = weigh_tile(
        products, own, other, critic, by_guide, own_bias, other_bias, value, tile_i, tile_j, UNIT, FN, IDS, JOINT,
        REFERENCES,
    )  # fmt: skip
    if weight_unit is not None:
        g *= tl.load(weight_unit)
    start = weights + (tile_i * BI).to(tl.int64) * stride + tile_j * BJ
    tl.store(start + offsets_within(BI, stride, tl.arange(0, BJ)), g.to(weights.dtype.element_ty))


def run_strips(p: Pass, tile: Tile) -> None:
    own, other, d = p.own, p.other, p.critic.d
    width = min(other.size, configurations.STRIP_WIDTH)
    most = configurations.WEIGHTS_BYTES // (width * own.operand.dtype.itemsize)
    block = block_of(own, other, tile, min(configurations.STRIP_HEIGHT, most), width)
    weights = torch.empty(block, dtype=own.operand.dtype, device=p.device)
    strip = p.empty(p.gradient is not None or p.dots is not None, block[0], d)
    others = p.empty(p.other_gradient is not None, other.size, d)
    biases = Merger(own, other, tile, block, (p.wanted_own.bias, p.wanted_other.bias))
    values = Merger(own, other, tile, block, (p.wants_value, False))
    for rows, columns in blocks(own, other, block):
        _weigh(p, tile, weights, biases, values, rows, columns)
        g = weights[: rows.stop - rows.start, : columns.stop - columns.start]
        if strip is not None:
            part = strip[: len(g)]
            add_product(part, g, other.operand[columns], first=columns.start == 0)
            if columns.stop == other.size:
                p.finish_own(part[None], rows.start)
        if others is not None:
            add_product(others[columns], g.T, own.operand[rows], first=rows.start == 0)
    if others is not None:
        p.finish_other(others)
    p.bias, p.other_bias = biases.own, biases.other
    p.value = None if values.own is None else values.own.sum()


def _weigh(p: Pass, tile: Tile, weights: Tensor, biases: Merger, values: Merger, rows: slice, columns: slice) -> None:
    tiles = tiles_of(rows, columns, tile)
    bias, value = biases.parts(rows, columns), values.parts(rows, columns)
    arguments = (p.own, p.other, p.critic, weights, weights.stride(0), p.weight_unit, *bias, value[0])
    for references in p.references:
        options = {**tile.constants(p.critic.d), **p.constants(), "REFERENCES": references}
        launch(_weights_of_tiles, (tiles[0] * tiles[1],), *arguments, *tiles, **options)
    count((rows.stop - rows.start) * (columns.stop - columns.start) * (p.critic.d + width_of_guide(p.own)))
    biases.merge(bias, exponential=False)
    values.merge(value, exponential=False)
