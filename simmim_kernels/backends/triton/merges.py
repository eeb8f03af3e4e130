"""Partial numbers of tiles, merged in a fixed order block by block: no atomics, and constant memory."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import Tile
from .entropies import merged_entropies
from .launch import cdiv, launch
from .sides import Side
from .tile import finite, log2

_LN2 = tl.constexpr(0.6931471805599453)
_MERGED, _MERGED_LINES = 128, 32


class PartsOfEntropies(NamedTuple):
    """What there is of entropies beside the parts of their log-sum-exps; all None where they are not wanted."""

    lines: Any = None
    stride: Any = None
    length: Any = None
    """As in Parts"""
    result: Any = None


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
    entropies: Any = PartsOfEntropies()


@triton.jit
def store_parts(parts, tile, start, values, BLOCK: tl.constexpr):
    index = start + tl.arange(0, BLOCK)
    line = parts.lines + tile.to(tl.int64) * parts.stride
    tl.store(line + index, values, mask=index < parts.length // 16)


@triton.jit
def _load_parts(parts, line, tiles, index, inside, other):
    pointers = parts.lines + (line.to(tl.int64) * parts.stride)[:, None] + index[None, :]
    return tl.load(pointers, mask=(line < tiles)[:, None] & inside[None, :], other=other)


@triton.jit
def _merge_side(parts, EXPONENTIAL: tl.constexpr, BLOCK: tl.constexpr, LINES: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < parts.length // 16
    neutral = -float("inf") if EXPONENTIAL else 0.0
    result = parts.result + parts.start + index
    # As tensors: what comparing two numbers gives is no mask to the interpreter of Triton 3.9.
    later = inside & (tl.zeros_like(index) == parts.first)
    total = tl.load(result, mask=later, other=neutral)
    if parts.entropies.lines is not None:
        entropy = tl.load(parts.entropies.result + parts.start + index, mask=later, other=0.0)
    tiles = parts.tiles // 16
    for first in range(0, tiles, LINES):
        line = first + tl.arange(0, LINES)
        values = _load_parts(parts, line, tiles, index, inside, neutral)
        if EXPONENTIAL:
            shift = finite(tl.maximum(total, tl.max(values, 0)))
            if parts.entropies.lines is not None:
                entropies = _load_parts(parts.entropies, line, tiles, index, inside, 0.0)
                entropy = merged_entropies(total, entropy, values, entropies, shift)
            total = log2(tl.exp2(total - shift) + tl.sum(tl.exp2(values - shift[None, :]), 0)) + shift
        else:
            total += tl.sum(values, 0)
    if EXPONENTIAL and parts.last != 0:
        total *= _LN2
    tl.store(result, total, mask=inside)
    if parts.entropies.lines is not None:
        if parts.last != 0:
            entropy *= _LN2
        tl.store(parts.entropies.result + parts.start + index, entropy, mask=inside)


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
    """Keeps the numbers of either side, and a workspace for the parts of one block of tiles.

    With `entropies` the own side's are log-sum-exps, and their entropies are kept too.
    """

    def __init__(
        self,
        own: Side,
        other: Side,
        tile: Tile,
        block: tuple[int, int],
        wants: tuple[bool, bool],
        entropies: bool = False,
    ):
        self._sizes, self._tile, self._wants, self._device = (own.size, other.size), tile, wants, own.operand.device
        self.own, self.other = (
            self._empty(side.size) if want else None for side, want in zip((own, other), wants, strict=True)
        )
        self._own_parts = self._empty(cdiv(block[1], tile.other), block[0]) if wants[0] else None
        self._other_parts = self._empty(cdiv(block[0], tile.own), block[1]) if wants[1] else None
        self.entropies = self._entropy_parts = None
        if entropies:
            assert self.own is not None
            assert self._own_parts is not None
            self.entropies, self._entropy_parts = torch.empty_like(self.own), torch.empty_like(self._own_parts)

    def _empty(self, *size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=self._device)

    def parts(self, rows: slice, columns: slice) -> tuple[Parts, Parts]:
        """Of one block; blocks come row by row."""
        tiles_i, tiles_j = tiles_of(rows, columns, self._tile)
        own = _parts(self._own_parts, tiles_j, self.own, rows, columns, self._sizes[1])
        if self.entropies is not None:
            entropies = PartsOfEntropies(self._entropy_parts, own.stride, own.length, self.entropies)
            own = own._replace(entropies=entropies)
        return (
            own,
            _parts(self._other_parts, tiles_i, self.other, columns, rows, self._sizes[0]),
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Of both sides, empty where not wanted."""
        nothing = self._empty(0)
        return nothing if self.own is None else self.own, nothing if self.other is None else self.other

    def statistics_and_entropies(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.entropies is not None
        return *self.statistics(), self.entropies

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
