"""The last step of a gradient: joint pairs, the scale and the dtype, while a line's sum is in registers."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .configurations import padded
from .launch import cdiv, launch
from .sides import Critic, JointPairs, Side
from .tile import load_operand, load_partners, load_vector, offsets_within

_ROWS, _WIDTH = 8, 128


@triton.jit
def with_joint_pairs(total, joint, i0, k0, d, unit):
    """(ROWS, WIDTH) products of weights in units of `unit`, and the joint pairs': a gradient but for its scale."""
    ROWS: tl.constexpr = total.shape[0]
    WIDTH: tl.constexpr = total.shape[1]
    if unit is not None:
        total = total / tl.load(unit)
    if joint.gradient is not None:
        gradient = load_vector(joint.gradient, i0, joint.size, ROWS, 0.0)
        total += gradient[:, None] * load_partners(joint, i0, k0, d, ROWS, WIDTH)
    return total


@triton.jit(do_not_specialize=("start", "splits"))
def _finished(
    side, joint, critic, totals, stride, unit, gradient, dots, start, length, splits, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """Of the lines from `start` on: the sum of their `splits` totals, made into their gradients and their dots."""
    first = tl.program_id(0) * ROWS
    index = first + tl.arange(0, ROWS)
    inside = index < length
    i0 = start + first
    dot = tl.zeros((ROWS,), tl.float32)
    for k0 in range(0, critic.d, WIDTH):
        k = k0 + tl.arange(0, WIDTH)
        mask = inside[:, None] & (k < critic.d)[None, :]
        offsets = offsets_within(ROWS, critic.d, k)
        total = tl.zeros((ROWS, WIDTH), tl.float32)
        for split in range(splits):
            begin = totals + tl.cast(split, tl.int64) * stride + tl.cast(first, tl.int64) * critic.d
            total += tl.load(begin + offsets, mask=mask, other=0.0)
        total = with_joint_pairs(total, joint, i0, k0, critic.d, unit)
        if dots is not None:
            operand = load_operand(side, i0, k0, critic.d, ROWS, WIDTH, EVEN_D)
            dot += tl.sum(operand.to(tl.float32) * total, 1)
        if gradient is not None:
            total *= tl.load(critic.scale).to(tl.float32)
            begin = gradient + tl.cast(i0, tl.int64) * critic.d
            tl.store(begin + offsets, total.to(gradient.dtype.element_ty), mask=mask)
    if dots is not None:
        tl.store(dots + i0 + tl.arange(0, ROWS), dot, mask=inside)


def finish(
    side: Side,
    joint: JointPairs,
    critic: Critic,
    totals: Tensor,
    unit: Tensor | None,
    gradient: Tensor | None,
    dots: Tensor | None,
    start: int = 0,
) -> None:
    """Fills a side's gradient (size, d) and dots (size,), from line `start` on, as far as `totals` (splits, n, d) go.

    A line's dot is its operand times its gradient before the scale: their sum is the gradient of the scale.
    """
    splits, length, d = totals.shape
    width = min(_WIDTH, padded(d))
    arguments: tuple[Any, ...] = (
        side,
        joint,
        critic,
        totals,
        totals.stride(0),
        unit,
        gradient,
        dots,
        start,
        length,
        splits,
    )
    constants = {"ROWS": _ROWS, "WIDTH": width, "EVEN_D": d % width == 0}
    launch(_finished, (cdiv(length, _ROWS),), *arguments, **constants, device=totals.device, num_warps=4, num_stages=1)
