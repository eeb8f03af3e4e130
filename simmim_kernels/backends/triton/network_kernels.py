"""Kernels of the concatenated MLP; network.py launches them and says what they are for.

A program takes a tile of pairs. Of one layer it makes everything in registers. Of two, the pairs of its tile are the
rows of a matrix of activations, which the tensor cores multiply by the weight.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .statistics import store_parts_of_scores, tile_of_program
from .strips import weigh_tile
from .tile import above_limit, clamped_scores, multiply, unclamped_scores


class Network(NamedTuple):
    """The parameters: the weight in the dtype of its products, all else in float32."""

    output: Any
    """(d,)"""
    output_bias: Any
    """(1,)"""
    weight: Any = None
    """(d, d), of what follows by what is before; None for one layer"""
    weight_bias: Any = None
    """(d,)"""


class Parts(NamedTuple):
    """Where a backward leaves what it makes of a block of pairs. A tile has a line of its own in each."""

    first: Any = None
    """(tiles x pairs, d) activations of the first layer, in the dtype of the products"""
    second: Any = None
    """(tiles x pairs, d) gradients of the second layer's sums"""
    output: Any = None
    """(tiles, d)"""
    output_bias: Any = None
    """(tiles,)"""
    weight_bias: Any = None
    """(tiles, d)"""
    own: Any = None
    """(tiles of the other side, own height, d)"""
    own_stride: Any = 0
    other: Any = None
    """(tiles of the own side, other width, d)"""
    other_stride: Any = 0


# NaN stays: its unit is neither below 0 nor at most 0.


@triton.jit
def _relu(sums):
    return tl.where(sums < 0.0, 0.0, sums)


@triton.jit
def _operand(side, index, k, d):
    """(len(index), len(k)) of a side's operand in float32, 0 beyond d; past its end the last row again."""
    row = tl.minimum(index, side.size - 1).to(tl.int64)
    pointers = side.operand + (row * side.stride)[:, None] + (k.to(tl.int64) * side.stride_d)[None, :]
    return tl.load(pointers, mask=(k < d)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _vector(pointer, k, d):
    return tl.load(pointer + k, mask=k < d, other=0.0).to(tl.float32)


@triton.jit
def _first_sums(own, other, i0, j0, k, d, BI: tl.constexpr, BJ: tl.constexpr):
    """(BI BJ, len(k)): the pairs of a tile, row by row."""
    pair = tl.arange(0, BI * BJ)
    return _operand(own, i0 + pair // BJ, k, d) + _operand(other, j0 + pair % BJ, k, d)


@triton.jit
def _second_sums(
    own, other, net, i0, j0, d, first, BI: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(BI BJ, BD) of the second layer; the first activations are left at `first`, if there is such a place."""
    n = tl.arange(0, BD)
    pair = tl.arange(0, BI * BJ)
    sums = tl.zeros((BI * BJ, BD), tl.float32)
    for k0 in range(0, d, BK):
        k = k0 + tl.arange(0, BK)
        h = _relu(_first_sums(own, other, i0, j0, k, d, BI, BJ)).to(net.weight.dtype.element_ty)
        weight = tl.load(net.weight + n[None, :] * d + k[:, None], mask=(k < d)[:, None] & (n < d)[None, :], other=0.0)
        sums = multiply(h, weight, sums, PRECISION)
        if first is not None:
            tl.store(first + pair[:, None] * d + k[None, :], h, mask=(k < d)[None, :])
    return sums + _vector(net.weight_bias, n, d)[None, :]


@triton.jit
def _scores_of_one_layer(own, other, net, i0, j0, d, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr):
    s = tl.zeros((BI, BJ), tl.float32)
    i = i0 + tl.arange(0, BI)
    j = j0 + tl.arange(0, BJ)
    for k0 in range(0, d, BK):
        k = k0 + tl.arange(0, BK)
        h = _relu(_operand(own, i, k, d)[:, None, :] + _operand(other, j, k, d)[None, :, :])
        s += tl.sum(h * _vector(net.output, k, d)[None, None, :], 2)
    return s + tl.load(net.output_bias)


@triton.jit
def _scores_of_sums(sums, net, d, BI: tl.constexpr, BJ: tl.constexpr):
    output = _vector(net.output, tl.arange(0, sums.shape[1]), d)
    return tl.reshape(tl.sum(_relu(sums) * output[None, :], 1), (BI, BJ)) + tl.load(net.output_bias)


@triton.jit(do_not_specialize=("tiles_i", "tiles_j"))
def statistics_of_network(
    own, other, critic, net, rows, columns, tiles_i, tiles_j, UNIT: tl.constexpr, FN: tl.constexpr, IDS: tl.constexpr,
    JOINT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tile_i, tile_j = tile_of_program(tl.program_id(0), tiles_i, tiles_j)
    i0 = rows.start + tile_i * BI
    j0 = columns.start + tile_j * BJ
    by_guide = above_limit(own, other, i0, j0, BI, BJ)
    if net.weight is None:
        s = _scores_of_one_layer(own, other, net, i0, j0, critic.d, BI, BJ, BK)
    else:
        sums = _second_sums(own, other, net, i0, j0, critic.d, None, BI, BJ, BD, BK, PRECISION)
        s = _scores_of_sums(sums, net, critic.d, BI, BJ)
    s = clamped_scores(unclamped_scores(s, own, other, i0, j0, critic, UNIT), critic, UNIT)
    store_parts_of_scores(s, own, other, by_guide, rows, columns, tile_i, tile_j, FN, IDS, JOINT)


@triton.jit
def _line(lines, tile, stride, start, k, d, BLOCK: tl.constexpr):
    at = start + tl.arange(0, BLOCK)
    return lines + tile.to(tl.int64) * stride + (at * d)[:, None] + k[None, :]


@triton.jit(do_not_specialize=("tiles_i", "tiles_j"))
def gradients_of_one_layer(
    own, other, critic, net, parts, own_bias, other_bias, value, tiles_i, tiles_j, UNIT: tl.constexpr,
    FN: tl.constexpr, IDS: tl.constexpr, JOINT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of the weights of the pairs in which a unit is active, by row and by column."""
    tile_i, tile_j = tile_of_program(tl.program_id(0), tiles_i, tiles_j)
    i0 = own_bias.start + tile_i * BI
    j0 = other_bias.start + tile_j * BJ
    d = critic.d
    by_guide = above_limit(own, other, i0, j0, BI, BJ)
    s = _scores_of_one_layer(own, other, net, i0, j0, d, BI, BJ, BK)
    g = weigh_tile(
        s, own, other, critic, by_guide, own_bias, other_bias, value, tile_i, tile_j, UNIT, FN, IDS, JOINT, "any"
    )
    tl.store(parts.output_bias + tl.program_id(0), tl.sum(tl.sum(g, 1), 0))
    i = i0 + tl.arange(0, BI)
    j = j0 + tl.arange(0, BJ)
    for k0 in range(0, d, BK):
        k = k0 + tl.arange(0, BK)
        sums = _operand(own, i, k, d)[:, None, :] + _operand(other, j, k, d)[None, :, :]
        active = tl.where(sums <= 0.0, 0.0, tl.broadcast_to(g[:, :, None], sums.shape))
        pointers = _line(parts.own, tile_j, parts.own_stride, tile_i * BI, k, d, BI)
        tl.store(pointers, tl.sum(active, 1), mask=(k < d)[None, :])
        pointers = _line(parts.other, tile_i, parts.other_stride, tile_j * BJ, k, d, BJ)
        tl.store(pointers, tl.sum(active, 0), mask=(k < d)[None, :])


@triton.jit(do_not_specialize=("tiles_i", "tiles_j"))
def gradients_of_second_sums(
    own, other, critic, net, parts, own_bias, other_bias, value, tiles_i, tiles_j, UNIT: tl.constexpr,
    FN: tl.constexpr, IDS: tl.constexpr, JOINT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile_i, tile_j = tile_of_program(tl.program_id(0), tiles_i, tiles_j)
    i0 = own_bias.start + tile_i * BI
    j0 = other_bias.start + tile_j * BJ
    d = critic.d
    at = tl.program_id(0).to(tl.int64)
    line = at * (BI * BJ) * d
    by_guide = above_limit(own, other, i0, j0, BI, BJ)
    sums = _second_sums(own, other, net, i0, j0, d, parts.first + line, BI, BJ, BD, BK, PRECISION)
    s = _scores_of_sums(sums, net, d, BI, BJ)
    g = weigh_tile(
        s, own, other, critic, by_guide, own_bias, other_bias, value, tile_i, tile_j, UNIT, FN, IDS, JOINT, "any"
    )
    weight = tl.reshape(g, (BI * BJ,))
    n = tl.arange(0, BD)
    pair = tl.arange(0, BI * BJ)
    tl.store(parts.output_bias + at, tl.sum(weight, 0))
    tl.store(parts.output + at * d + n, tl.sum(_relu(sums) * weight[:, None], 0), mask=n < d)
    output = _vector(net.output, n, d)
    gradient = tl.where(sums <= 0.0, 0.0, weight[:, None] * output[None, :])
    tl.store(parts.weight_bias + at * d + n, tl.sum(gradient, 0), mask=n < d)
    pointers = parts.second + line + pair[:, None] * d + n[None, :]
    tl.store(pointers, gradient.to(parts.second.dtype.element_ty), mask=(n < d)[None, :])


@triton.jit(do_not_specialize=("tiles_i", "tiles_j", "start_i", "start_j"))
def gradients_of_first_sums(
    own, other, net, parts, start_i, start_j, tiles_i, tiles_j, d, BI: tl.constexpr, BJ: tl.constexpr,
    BD: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Through the weight and the first layer, to sums by row and by column."""
    tile_i, tile_j = tile_of_program(tl.program_id(0), tiles_i, tiles_j)
    n = tl.arange(0, BD)
    pair = tl.arange(0, BI * BJ)
    second = parts.second + tl.program_id(0).to(tl.int64) * (BI * BJ) * d
    gradient = tl.zeros((BI * BJ, BD), tl.float32)
    for k0 in range(0, d, BK):
        k = k0 + tl.arange(0, BK)
        g = tl.load(second + pair[:, None] * d + k[None, :], mask=(k < d)[None, :], other=0.0)
        weight = tl.load(net.weight + k[:, None] * d + n[None, :], mask=(k < d)[:, None] & (n < d)[None, :], other=0.0)
        gradient = multiply(g, weight, gradient, PRECISION)
    sums = _first_sums(own, other, start_i + tile_i * BI, start_j + tile_j * BJ, n, d, BI, BJ)
    passed = tl.reshape(tl.where(sums <= 0.0, 0.0, gradient), (BI, BJ, BD))
    pointers = _line(parts.own, tile_j, parts.own_stride, tile_i * BI, n, d, BI)
    tl.store(pointers, tl.sum(passed, 1), mask=(n < d)[None, :])
    pointers = _line(parts.other, tile_i, parts.other_stride, tile_j * BJ, n, d, BJ)
    tl.store(pointers, tl.sum(passed, 0), mask=(n < d)[None, :])
