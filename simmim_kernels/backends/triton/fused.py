"""The backward of narrow features in one kernel: the weights G never leave the multiprocessor.

A program owns a block of one side, keeps that block's gradient in registers and walks over the other side. The other
side's gradient, where a pass makes it too, is added up in memory by atomics.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import configurations
from .configurations import Tile
from .finish import with_joint_pairs
from .launch import cdiv, count, launch
from .passes import Pass
from .sides import NO_PAIRS, width_of_guide
from .tile import (
    above_limit,
    clamped_scores,
    is_for,
    load_operand,
    multiply,
    offsets_within,
    unclamped_scores,
    values_of_tile,
    weights_of_tile,
)

# Columns at a time of the other side's gradient: a second accumulator as wide as the first would spill.
_ADDED_WIDTH = 64


class Outputs(NamedTuple):
    """Where the kernel leaves what it makes for a side; a program of axis 1 writes a slice of its own."""

    gradient: Any = None
    """(splits, size, d) float32 products, or the gradient itself where one program makes all of a line's; or (size, d)
    float32 where it is added to by atomics"""
    dots: Any = None
    """(size,) float32, where one program makes all of a line's"""
    bias: Any = None
    """(splits, size) float32, or (size,) where it is added to by atomics"""
    value: Any = None
    """(splits, size) float32: the sums of a pointwise function itself"""


@triton.jit(do_not_specialize=("tiles_per_program",))
def _fused_gradients(
    own, other, critic, mine, others, joint, weight_unit, tiles_per_program, UNIT: tl.constexpr, FN: tl.constexpr,
    IDS: tl.constexpr, JOINT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, PRODUCTS: tl.constexpr, FINISH: tl.constexpr,
    REFERENCES: tl.constexpr,
):  # fmt: skip
    if not is_for(critic, REFERENCES):
        return
    i0 = tl.program_id(0) * BI
    first = tl.program_id(1) * tiles_per_program
    last = tl.minimum(first + tiles_per_program, tl.cdiv(other.size, BJ))
    a = load_operand(own, i0, 0, critic.d, BI, BD, EVEN_D)
    k = tl.arange(0, BD)
    gradient = tl.zeros((BI, BD), tl.float32)
    bias = tl.zeros((BI,), tl.float32)
    values = tl.zeros((BI,), tl.float32)
    for tile in range(first, last):
        j0 = tile * BJ
        b = load_operand(other, j0, 0, critic.d, BJ, BD, EVEN_D)
        by_guide = above_limit(own, other, i0, j0, BI, BJ)
        products = multiply(a, b.T, tl.zeros((BI, BJ), tl.float32), PRECISION)
        unclamped = unclamped_scores(products, own, other, i0, j0, critic, UNIT)
        s = clamped_scores(unclamped, critic, UNIT)
        if mine.value is not None:
            values += tl.sum(values_of_tile(s, own, other, i0, j0, by_guide, FN, IDS, JOINT), 1)
        g = weights_of_tile(unclamped, s, own, other, i0, j0, critic, by_guide, FN, IDS, JOINT, REFERENCES)
        j = j0 + tl.arange(0, BJ)
        if mine.bias is not None:
            bias += tl.sum(g, 1)
        if others.bias is not None:
            tl.atomic_add(others.bias + j, tl.sum(g, 0), mask=j < other.size, sem="relaxed")
        if weight_unit is not None:
            g *= tl.load(weight_unit)
        weights = g.to(b.dtype)
        if PRODUCTS:
            gradient = multiply(weights, b, gradient, PRECISION)
        if others.gradient is not None:
            for k0 in tl.static_range(0, BD, BK):
                part = a if BK == BD else load_operand(own, i0, k0, critic.d, BI, BK, EVEN_D)
                part = multiply(weights.T, part, tl.zeros((BJ, BK), tl.float32), PRECISION)
                kk = k0 + tl.arange(0, BK)
                pointers = others.gradient + tl.cast(j0, tl.int64) * critic.d + offsets_within(BJ, critic.d, kk)
                tl.atomic_add(pointers, part, mask=(j < other.size)[:, None] & (kk < critic.d)[None, :], sem="relaxed")
    i = i0 + tl.arange(0, BI)
    inside = i < own.size
    at = tl.program_id(1).to(tl.int64) * own.size + i
    if mine.bias is not None:
        tl.store(mine.bias + at, bias, mask=inside)
    if mine.value is not None:
        tl.store(mine.value + at, values, mask=inside)
    if FINISH:
        gradient = with_joint_pairs(gradient, joint, i0, 0, critic.d, weight_unit)
        if mine.dots is not None:
            tl.store(mine.dots + i, tl.sum(a.to(tl.float32) * gradient, 1), mask=inside)
        gradient *= tl.load(critic.scale).to(tl.float32)
    if mine.gradient is not None:
        start = tl.program_id(1).to(tl.int64) * own.size + i0
        pointers = mine.gradient + start * critic.d + offsets_within(BI, critic.d, k)
        tl.store(pointers, gradient.to(mine.gradient.dtype.element_ty), mask=inside[:, None] & (k < critic.d)[None, :])


def run_fused(p: Pass, tile: Tile) -> None:
    own, other, d = p.own, p.other, p.critic.d
    blocks_own, tiles_other = cdiv(own.size, tile.own), cdiv(other.size, tile.other)
    # Where one side alone has too few blocks for the device, each block's walk is split.
    per_program = cdiv(tiles_other, max(1, configurations.programs_wanted(p.device) // blocks_own))
    splits = cdiv(tiles_other, per_program)
    products = p.gradient is not None or p.dots is not None
    finishes = products and splits == 1
    totals = p.gradient if finishes else p.empty(products, splits, own.size, d)
    mine = Outputs(
        totals,
        p.dots if finishes else None,
        p.empty(p.wanted_own.bias, splits, own.size),
        p.empty(p.wants_value, splits, own.size),
    )
    others = Outputs(
        gradient=p.zeros(p.wanted_other.gradient, other.size, d), bias=p.zeros(p.wanted_other.bias, other.size)
    )
    arguments = (own, other, p.critic, mine, others, p.joint_own if finishes else NO_PAIRS, p.weight_unit, per_program)
    constants = {**tile.constants(d), "BK": min(_ADDED_WIDTH, tile.d), "PRODUCTS": products, "FINISH": finishes}
    for references in p.references:
        options = {**constants, **p.constants(), "REFERENCES": references}
        launch(_fused_gradients, (blocks_own, splits), *arguments, **options)
    count(own.size * other.size * ((1 + products + p.wanted_other.gradient) * d + width_of_guide(own)))
    if totals is not None and not finishes:
        p.finish_own(totals)
    if others.gradient is not None:
        p.finish_other(others.gradient)
    p.bias = None if mine.bias is None else mine.bias.sum(0)
    p.value = None if mine.value is None else mine.value.sum()
    p.other_bias = others.bias
