"""The backward: every tile's scores once more, their weights G, and the products G Y and G^T X.

Two ways, by the width d of the operands:

- fused (narrow): a program owns a block of one side, keeps that block's gradient in registers and walks over the other
  side; G never leaves the multiprocessor. The other side's gradient is added up in memory by atomics.
- strips (wide): such an accumulator does not fit in registers. Blocks of G go to a constant workspace, from which the
  vendor's library multiplies them.

Both give the two sides their gradients from one look at the scores, 3 products in all. Where additions must keep their
order, or where the second side's float32 accumulator would be too large, each side has a pass in which it is the
owner: 4 products, no atomics, and no accumulator larger than a strip.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problem import Problem, total_gradient_dtype
from . import configurations
from .configurations import Tile, fused_tile, weights_tile
from .launch import add_product, count, launch
from .pointwise import pointwise_value
from .sides import Side, critic_of, sides_of, with_upstream
from .statistics import Merger, block_of, blocks, compile_time_options, store_parts, tile_of_program, tiles_of
from .tile import (
    clamped_scores,
    fill_left_out,
    load_operand,
    multiply,
    one_reference,
    products_of_tile,
    unclamped_scores,
    weights_of_tile,
)

# Functions whose derivative is at most 1, so that upstream gradients bound the weights.
_BOUNDED = ("logsumexp", "softplus", "identity")
# float16 weights are scaled so that the largest possible one is between 2^11 and 2^12: the smallest are then kept down
# to 2^-36 of it.
_HALF_EXPONENT = 12
# Columns at a time of the other side's gradient: a second accumulator as wide as the first would spill.
_ADDED_WIDTH = 64


class Wanted(NamedTuple):
    """What a pass is to make for one side."""

    gradient: bool = False
    bias: bool = False

    @property
    def anything(self) -> bool:
        return self.gradient or self.bias


class Outputs(NamedTuple):
    """Where a fused kernel leaves what it makes for a side; a program of axis 1 writes a slice of its own."""

    gradient: Any = None
    """(splits, size, d), or (size, d) float32 where it is added to by atomics"""
    dots: Any = None
    """(splits, size) float32: <operand, gradient before the scale>, whose sum is the gradient of the scale"""
    bias: Any = None
    """(splits, size) float32, or (size,) where it is added to by atomics"""
    value: Any = None
    """(splits, size) float32: the sums of a pointwise function itself"""


@triton.jit
def offsets_within(ROWS: tl.constexpr, stride, columns):
    """Of the elements of a tile from its first: 32 bits, and so half the registers, where the start took 64."""
    return (tl.arange(0, ROWS) * stride)[:, None] + columns[None, :]


@triton.jit(do_not_specialize=("tiles_per_program",))
def _fused_gradients(
    own, other, critic, mine, others, factor, weight_unit, tiles_per_program, UNIT: tl.constexpr, FN: tl.constexpr,
    IDS: tl.constexpr, JOINT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
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
        products = multiply(a, b.T, tl.zeros((BI, BJ), tl.float32), PRECISION)
        unclamped = unclamped_scores(products, own, other, i0, j0, critic, UNIT)
        s = clamped_scores(unclamped, critic, UNIT)
        if mine.value is not None:
            values += tl.sum(fill_left_out(pointwise_value(s, FN), 0.0, own, other, i0, j0, IDS, JOINT), 1)
        g = weights_of_tile(unclamped, s, own, other, i0, j0, critic, FN, IDS, JOINT, "either")
        j = j0 + tl.arange(0, BJ)
        if mine.bias is not None:
            bias += tl.sum(g, 1)
        if others.bias is not None:
            tl.atomic_add(others.bias + j, tl.sum(g, 0), mask=j < other.size, sem="relaxed")
        if weight_unit is not None:
            g *= tl.load(weight_unit)
        weights = g.to(b.dtype)
        if (mine.gradient is not None) | (mine.dots is not None):
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
    if mine.dots is not None:
        tl.store(mine.dots + at, tl.sum(a.to(tl.float32) * gradient, 1), mask=inside)
    if mine.gradient is not None:
        gradient *= tl.load(factor)
        start = tl.program_id(1).to(tl.int64) * own.size + i0
        pointers = mine.gradient + start * critic.d + offsets_within(BI, critic.d, k)
        tl.store(pointers, gradient.to(mine.gradient.dtype.element_ty), mask=inside[:, None] & (k < critic.d)[None, :])


@triton.jit(do_not_specialize=("tiles_i", "tiles_j"))
def _weights_of_tiles(
    own, other, critic, weights, stride, weight_unit, own_bias, other_bias, value, tiles_i, tiles_j,
    UNIT: tl.constexpr, FN: tl.constexpr, IDS: tl.constexpr, JOINT: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    BD: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, REFERENCES: tl.constexpr,
):  # fmt: skip
    """Writes one block of G, whole tiles of it, zero outside the matrix: those alone that REFERENCES speaks of."""
    tile_i, tile_j = tile_of_program(tl.program_id(0), tiles_i, tiles_j)
    i0 = own_bias.start + tile_i * BI
    j0 = other_bias.start + tile_j * BJ
    if REFERENCES != "either":
        _, one = one_reference(own, other, i0, j0, BI, BJ)
        if one != (REFERENCES == "one"):
            return
    products = products_of_tile(own, other, i0, j0, critic.d, BI, BJ, BD, EVEN_D, PRECISION)
    unclamped = unclamped_scores(products, own, other, i0, j0, critic, UNIT)
    s = clamped_scores(unclamped, critic, UNIT)
    if value.lines is not None:
        by_row = tl.sum(fill_left_out(pointwise_value(s, FN), 0.0, own, other, i0, j0, IDS, JOINT), 1)
        store_parts(value, tile_j, tile_i * BI, by_row, BI)
    g = weights_of_tile(unclamped, s, own, other, i0, j0, critic, FN, IDS, JOINT, REFERENCES)
    if own_bias.lines is not None:
        store_parts(own_bias, tile_j, tile_i * BI, tl.sum(g, 1), BI)
    if other_bias.lines is not None:
        store_parts(other_bias, tile_i, tile_j * BJ, tl.sum(g, 0), BJ)
    if weight_unit is not None:
        g *= tl.load(weight_unit)
    start = weights + (tile_i * BI).to(tl.int64) * stride + tile_j * BJ
    tl.store(start + offsets_within(BI, stride, tl.arange(0, BJ)), g.to(weights.dtype.element_ty))


@dataclass
class Pass:
    """One look at all scores: the gradients of its own side and, if wanted, of the other one."""

    problem: Problem
    own: Side
    other: Side
    wanted_own: Wanted
    wanted_other: Wanted
    wants_scale: bool
    wants_value: bool
    dtype: torch.dtype
    """Of the gradients of the operands; all else is in float32"""

    gradient: Tensor | None = None
    other_gradient: Tensor | None = None
    bias: Tensor | None = None
    other_bias: Tensor | None = None
    scale: Tensor | None = None
    value: Tensor | None = None

    def __post_init__(self) -> None:
        self.critic, self.device = critic_of(self.problem), self.problem.x.device
        self.weight_unit = _weight_unit(self.own, self.other)
        scale = self.problem.parameters[0].to(torch.float32)
        self.factor = scale if self.weight_unit is None else scale / self.weight_unit

    def run(self) -> "Pass":
        tile = fused_tile(self.problem)
        if tile is None:
            self._strips(weights_tile(self.problem))
        else:
            self._fused(tile)
        if self.scale is not None and self.weight_unit is not None:
            self.scale /= self.weight_unit
        if self.other_gradient is not None:
            total = self.other_gradient
            scaled = total if total.dtype == self.dtype else torch.empty_like(total, dtype=self.dtype)
            self.other_gradient = torch.mul(total, self.factor, out=scaled)
        return self

    def _zeros(self, *size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.float32, device=self.device)

    def _constants(self) -> dict[str, Any]:
        return {**compile_time_options(self.problem), "device": self.device}

    def _fused(self, tile: Tile) -> None:
        own, other, d = self.own, self.other, self.critic.d
        blocks_own, tiles_other = triton.cdiv(own.size, tile.own), triton.cdiv(other.size, tile.other)
        # Where one side alone has too few blocks for the device, each block's walk is split.
        per_program = triton.cdiv(tiles_other, max(1, configurations.programs_wanted(self.device) // blocks_own))
        splits = triton.cdiv(tiles_other, per_program)

        def empty(wanted: bool, *size: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
            return torch.empty((splits, *size), dtype=dtype, device=self.device) if wanted else None

        mine = Outputs(
            # A lone split is the gradient itself, in its own dtype.
            empty(self.wanted_own.gradient, own.size, d, dtype=self.dtype if splits == 1 else torch.float32),
            empty(self.wants_scale, own.size),
            empty(self.wanted_own.bias, own.size),
            empty(self.wants_value, own.size),
        )
        others = Outputs(
            gradient=self._zeros(other.size, d) if self.wanted_other.gradient else None,
            bias=self._zeros(other.size) if self.wanted_other.bias else None,
        )
        arguments = (own, other, self.critic, mine, others, self.factor, self.weight_unit, per_program)
        constants = {**tile.constants(d), "BK": min(_ADDED_WIDTH, tile.d), **self._constants()}
        launch(_fused_gradients, (blocks_own, splits), *arguments, **constants)
        products = 1 + (self.wanted_own.gradient or self.wants_scale) + self.wanted_other.gradient
        count(products * own.size * other.size * d)
        if mine.gradient is not None:
            self.gradient = mine.gradient.sum(0).to(self.dtype) if splits > 1 else mine.gradient[0]
        self.scale = None if mine.dots is None else mine.dots.sum()
        self.bias = None if mine.bias is None else mine.bias.sum(0)
        self.value = None if mine.value is None else mine.value.sum()
        self.other_gradient, self.other_bias = others.gradient, others.bias

    def _strips(self, tile: Tile) -> None:
        own, other, d = self.own, self.other, self.critic.d
        width = min(other.size, configurations.STRIP_WIDTH)
        most = configurations.WEIGHTS_BYTES // (width * own.operand.dtype.itemsize)
        block = block_of(own, other, tile, min(configurations.STRIP_HEIGHT, most), width)
        weights = torch.empty(block, dtype=own.operand.dtype, device=self.device)

        def empty(wanted: bool, size: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
            return torch.empty((size, d), dtype=dtype, device=self.device) if wanted else None

        strip = empty(self.wanted_own.gradient or self.wants_scale, block[0])
        self.gradient = empty(self.wanted_own.gradient, own.size, self.dtype)
        self.other_gradient = empty(self.wanted_other.gradient, other.size)
        biases = Merger(own, other, tile, block, (self.wanted_own.bias, self.wanted_other.bias))
        values = Merger(own, other, tile, block, (self.wants_value, False))
        for rows, columns in blocks(own, other, block):
            self._weigh(tile, weights, biases, values, rows, columns)
            g = weights[: rows.stop - rows.start, : columns.stop - columns.start]
            if strip is not None:
                part = strip[: len(g)]
                add_product(part, g, other.operand[columns], first=columns.start == 0)
                if columns.stop == other.size:
                    self._finish(part, rows)
            if self.other_gradient is not None:
                add_product(self.other_gradient[columns], g.T, own.operand[rows], first=rows.start == 0)
        self.bias = biases.own if self.wanted_own.bias else None
        self.other_bias = biases.other if self.wanted_other.bias else None
        self.value = values.own.sum() if self.wants_value else None

    def _weigh(self, tile: Tile, weights: Tensor, biases: Merger, values: Merger, rows: slice, columns: slice) -> None:
        tiles = tiles_of(rows, columns, tile)
        bias, value = biases.parts(rows, columns), values.parts(rows, columns)
        arguments = (self.own, self.other, self.critic, weights, weights.stride(0), self.weight_unit, *bias, value[0])
        constants = {**tile.constants(self.critic.d), **self._constants()}
        # Both ways in one kernel would take its registers, and halve how many programs run at a time.
        for references in ("one", "two") if self._two_statistics() else ("either",):
            launch(_weights_of_tiles, (tiles[0] * tiles[1],), *arguments, *tiles, **constants, REFERENCES=references)
        count((rows.stop - rows.start) * (columns.stop - columns.start) * self.critic.d)
        biases.merge(bias, exponential=False)
        values.merge(value, exponential=False)

    def _two_statistics(self) -> bool:
        return self.own.statistic is not None and self.other.statistic is not None

    def _finish(self, strip: Tensor, rows: slice) -> None:
        """Takes a strip's products, complete, into the gradients."""
        if self.wants_scale:
            part = torch.sum(self.own.operand[rows] * strip)
            self.scale = part if self.scale is None else self.scale + part
        if self.gradient is not None:
            torch.mul(strip, self.factor, out=self.gradient[rows])


def _weight_unit(own: Side, other: Side) -> Tensor | None:
    """A power of two that float16 weights are multiplied by, lest small ones vanish; None for other dtypes."""
    if own.operand.dtype != torch.float16:
        return None
    upstreams = [side.upstream.abs().max().float() for side in (own, other) if side.upstream is not None]
    # Without upstream gradients a weight is at most 1.
    most = torch.stack(upstreams).sum() if upstreams else torch.ones((), device=own.operand.device)
    unit = torch.exp2(_HALF_EXPONENT - torch.ceil(torch.log2(most)))
    return torch.where(torch.isfinite(unit) & (most > 0), unit, torch.ones_like(unit))


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`."""
    wide = _widened(problem)
    left, right = sides_of(wide)
    left = with_upstream(problem, left, problem.wants_rows, rows, grad_rows)
    right = with_upstream(problem, right, problem.wants_columns, columns, grad_columns)
    return _gradients(wide, left, right, needs, problem.x.dtype)[1]


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients, from one look at the scores."""
    wide = _widened(problem)
    value, found = _gradients(wide, *sides_of(wide), needs, total_gradient_dtype(problem.x.dtype), value=True)
    assert value is not None
    return value, found


def _widened(problem: Problem) -> Problem:
    """float16 operands in float32 where nothing bounds the weights, which then are as well."""
    if problem.x.dtype != torch.float16 or problem.fn in _BOUNDED:
        return problem
    return problem.replace(x=problem.x.float(), y=problem.y.float())


def _gradients(
    problem: Problem, left: Side, right: Side, needs: list[bool], dtype: torch.dtype, value: bool = False
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The sum of a pointwise function, and gradients of `problem.differentiable`: of the operands in `dtype`."""
    x, y, row_bias, col_bias, scale = needs
    rows = Wanted(x, row_bias and problem.row_bias is not None)
    columns = Wanted(y, col_bias and problem.col_bias is not None)
    if columns.anything and not rows.anything:
        found = Pass(problem, right, left, columns, rows, scale, value, dtype).run()
        return found.value, [found.other_gradient, found.gradient, found.other_bias, found.bias, found.scale]
    if not columns.anything or _in_one_pass(problem):
        found = Pass(problem, left, right, rows, columns, scale, value, dtype).run()
        return found.value, [found.gradient, found.other_gradient, found.bias, found.other_bias, found.scale]
    found = Pass(problem, left, right, rows, Wanted(), scale, value, dtype).run()
    second = Pass(problem, right, left, columns, Wanted(), False, False, dtype).run()
    return found.value, [found.gradient, second.gradient, found.bias, second.bias, found.scale]


def _in_one_pass(problem: Problem) -> bool:
    """Whether one look at the scores may serve both sides: see the head of this file."""
    if torch.are_deterministic_algorithms_enabled() and fused_tile(problem) is not None:
        return False
    return problem.y.numel() * 4 <= configurations.ACCUMULATOR_BYTES or problem.x.dtype == torch.float32
