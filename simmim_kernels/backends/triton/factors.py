"""What a backward multiplies its exponentials by: one number a row and a column, from their log-sum-exps.

    weight of a pair = alpha_i 2^(s - r_i) + beta_j 2^(s - c_j)

with log-sum-exps r and c, and scores, in base 2. Where all of r and c are close, one exponential serves both terms:
2^(s - k) (a_i + b_j) with factors a_i = alpha_i 2^(k - r_i), b_j = beta_j 2^(k - c_j) and one k for the whole matrix.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problem import Problem
from .launch import launch
from .sides import Critic, Side, dense
from .tile import LOG2E, clamped_scores

# References that are this close, in base 2, may share one exponential: 2^60 and 2^-60 are far within float32, and what
# underflows is below 2^-66 of its sum.
_SHARED_SPREAD = tl.constexpr(60.0)
_BLOCK = 2048


class Lines(NamedTuple):
    """The rows or the columns, their log-sum-exps and what becomes of these."""

    size: Any
    statistic: Any
    """(size,) log-sum-exps in nats"""
    count: Any
    """How many of them have an upstream gradient: the first"""
    upstream: Any
    """(count,) of any stride"""
    stride: Any
    reference: Any
    factor: Any


class Joint(NamedTuple):
    """The joint pairs, where upstream gradients are those of cross entropies softplus(log-sum-exp - joint score)."""

    scores: Any
    """(N,) before the clamp, in nats"""
    gradient: Any
    """(N,) to be written: of the scores"""


@triton.jit
def _span(lines, BLOCK: tl.constexpr):
    """The largest and the smallest log-sum-exp of lines that are not empty, in base 2."""
    most = tl.full((), -float("inf"), tl.float32)
    least = tl.full((), float("inf"), tl.float32)
    for start in range(0, lines.size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        r = tl.load(lines.statistic + i, mask=i < lines.size, other=-float("inf")) * LOG2E
        empty = r == -float("inf")
        most = tl.maximum(most, tl.max(r, 0))
        least = tl.minimum(least, tl.min(tl.where(empty, float("inf"), r), 0))
    return most, least


@triton.jit
def _upstream(lines, i, joint, critic):
    """Gradients of the log-sum-exps: their own, or those of cross entropies."""
    given = i < lines.count
    upstream = tl.load(lines.upstream + i * lines.stride, mask=given, other=0.0).to(tl.float32)
    if joint is not None:
        s = tl.load(joint.scores + i, mask=given, other=0.0)
        # A joint score of +inf hides itself: its cross entropy is inf - inf.
        hidden = tl.where(s == float("inf"), float("nan"), 0.0)
        s = clamped_scores(s, critic, 1.0)
        others = tl.load(lines.statistic + i, mask=given, other=0.0)
        upstream = tl.where(given, upstream / (1.0 + tl.exp(s - others)) + hidden, 0.0)
    return upstream


@triton.jit
def _write_factors(lines, joint, critic, BLOCK: tl.constexpr):
    for start in range(0, lines.size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < lines.size
        r = tl.load(lines.statistic + i, mask=inside, other=-float("inf")) * LOG2E
        r = tl.where(r == -float("inf"), float("inf"), r)
        factor = _upstream(lines, i, joint, critic)
        if critic.shared is not None:  # noqa: SIM102 what is None has no address
            if tl.load(critic.shared + 1) != 0:
                factor *= tl.exp2(tl.load(critic.shared) - r)
        tl.store(lines.reference + i, r, mask=inside)
        tl.store(lines.factor + i, factor, mask=inside)


@triton.jit
def _factors_of_lines(rows, columns, joint, critic, BLOCK: tl.constexpr):
    """One program: this is linear work on numbers that fit in the cache, and needs the span of all of them first."""
    if critic.shared is not None:
        most, least = _span(rows, BLOCK)
        most_of_columns, least_of_columns = _span(columns, BLOCK)
        most, least = tl.maximum(most, most_of_columns), tl.minimum(least, least_of_columns)
        # A NaN or infinity compares as false, and so does a matrix of empty lines alone.
        serves = (most >= least) & (most - least <= _SHARED_SPREAD)
        tl.store(critic.shared, (most + least) * 0.5)
        tl.store(critic.shared + 1, serves.to(tl.float32))
        tl.debug_barrier()
    if rows is not None:
        _write_factors(rows, joint, critic, BLOCK)
    if columns is not None:
        _write_factors(columns, joint, critic, BLOCK)
    if joint is not None:
        n = rows.count if rows is not None else columns.count
        for start in range(0, n, BLOCK):
            i = start + tl.arange(0, BLOCK)
            total = tl.zeros((BLOCK,), tl.float32)
            if rows is not None:
                total -= _upstream(rows, i, joint, critic)
            if columns is not None:
                total -= _upstream(columns, i, joint, critic)
            if critic.lo is not None:
                s = tl.load(joint.scores + i, mask=i < n, other=0.0)
                total = tl.where((s >= critic.lo) & (s <= critic.hi), total, 0.0)
            tl.store(joint.gradient + i, total, mask=i < n)


def factored(
    problem: Problem,
    sides: tuple[Side, Side],
    critic: Critic,
    statistics: tuple[Tensor, Tensor],
    upstream: tuple[Tensor | None, Tensor | None],
    joint_scores: Tensor | None = None,
    shares: bool = True,
) -> tuple[Side, Side, Critic, Tensor | None]:
    """The sides and the critic of a problem, ready for a backward, and the gradients of the joint scores.

    `upstream` is of the statistics or, with `joint_scores`, of the cross entropies of the joint pairs. Without `shares`
    no reference is shared: for kernels that do not ask tile.is_for.
    """
    if problem.fn != "logsumexp":
        left, right = (side._replace(factor=dense(of)) for side, of in zip(sides, upstream, strict=True))
        return left, right, critic, None
    device = problem.x.device
    wanted = (problem.wants_rows, problem.wants_columns)

    def lines(side: Side, want: bool, statistic: Tensor, gradient: Tensor | None) -> Lines | None:
        if not want or gradient is None:
            return None
        reference, factor = torch.empty((2, side.size), dtype=torch.float32, device=device)
        return Lines(side.size, statistic, len(gradient), gradient, gradient.stride(0), reference, factor)

    rows, columns = map(lines, sides, wanted, statistics, upstream)
    if all(wanted) and shares:
        critic = critic._replace(shared=torch.empty(2, dtype=torch.float32, device=device))
    joint = None if joint_scores is None else Joint(joint_scores, torch.empty_like(joint_scores))
    launch(_factors_of_lines, (1,), rows, columns, joint, critic, _BLOCK, device=device, num_warps=16)
    left, right = (
        side if of is None else side._replace(reference=of.reference, factor=of.factor)
        for side, of in zip(sides, (rows, columns), strict=True)
    )
    return left, right, critic, None if joint is None else joint.gradient
