"""Cross entropies: -log of the joint pair's share of its row and of its column, made of the other pairs alone.

log(e^joint + e^others) - joint = softplus(others - joint), with the log-sum-exp of the others: where the joint pair
holds nearly all, neither the value nor a gradient is then a difference of near equals, which half precision would lose.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..backends import BACKENDS, select
from ..problem import Problem
from ..problem.pointwise import POINTWISE
from ..problem.softmax import entropy_with
from .computation import cast_gradients, is_watched, without_autocast
from .global_batch import Shards
from .sharded import all_columns, joint_scores, statistic
from .with_gradients import WithGradients, differentiable_gradients


def cross_entropies(problem: Problem, dims: str, backend: str | None = None, shards: Shards | None = None) -> Tensor:
    """(1 or 2, N) of a validated problem's pairs, by row and by column as `dims` asks for them; differentiable."""
    p, from_others = _asked(problem, dims, shards)
    maker = _maker(p, backend, shards) if from_others else None
    if maker is not None:
        return CrossEntropies.apply(p, maker, None, None, *p.differentiable)
    return _composed(p, backend, cross_entropy_from_others if from_others else torch.sub, shards)


def cross_entropies_with_entropy(
    problem: Problem, dims: str, backend: str | None = None, shards: Shards | None = None
) -> tuple[Tensor, Tensor]:
    """`cross_entropies` by "rows" or "both", and the entropy (N,) of each row's softmax, from one look at the scores.

    No gradient goes through the entropy, which is in nats.
    """
    p, from_others = _asked(problem, dims, shards)
    found = statistic(p.replace(wants_entropy=True), backend, shards)
    less = cross_entropy_from_others if from_others else torch.sub
    joint = found.joint if p.wants_joint else joint_scores(p, shards)
    entropies = entropy_with(joint, found.rows, found.entropies) if from_others else found.entropies
    return _less_joint(p, found.rows, found.columns, joint, less, shards), entropies


def cross_entropy_sum(
    problem: Problem,
    dims: str,
    divisor: float | Tensor,
    weights: Tensor | None = None,
    backend: str | None = None,
    shards: Shards | None = None,
) -> Tensor:
    """() sum of the cross entropies that `cross_entropies` makes, each times its row's weight, by `divisor`.

    With shards that of this rank's own.

    weights (N,) and a divisor that is a tensor () have the compute dtype. A row of weight 0 counts for nothing,
    whatever its cross entropy, and where the divisor is 0 the sum is NaN, with gradients of 0.
    """
    p, from_others = _asked(problem, dims, shards)
    maker = _maker(p, backend, shards) if from_others else None
    alone = not any(isinstance(t, Tensor) and t.requires_grad for t in (weights, divisor))
    if maker is not None and alone:
        module = BACKENDS[maker]
        if hasattr(module, "cross_entropy_sum") and module.sums_cross_entropies(p):
            number = float(divisor)
            factor = 1 / number if number else math.inf
            make, again = (partial(function, maker, factor) for function in (_sum_and_gradients, _sum_again))
            return WithGradients.apply(p, make, again, 1, weights, *p.differentiable)
        if hasattr(module, "cross_entropy_total"):
            # A number on a device is not waited for.
            factor = 1.0 if isinstance(divisor, Tensor) else 1 / divisor if divisor else math.inf
            value = CrossEntropies.apply(p, maker, factor, weights, *p.differentiable)
            return _quotient(value, divisor) if isinstance(divisor, Tensor) else value
    entropies = cross_entropies(problem, dims, backend, shards)
    if weights is not None:
        entropies = (weights * entropies).where(weights != 0, 0)
    return _quotient(entropies.sum(), divisor)


def _quotient(value: Tensor, divisor: float | Tensor) -> Tensor:
    if not isinstance(divisor, Tensor):
        return value / divisor
    some = divisor != 0
    return torch.where(some, value / divisor.where(some, 1), torch.nan)


def _asked(problem: Problem, dims: str, shards: Shards | None) -> tuple[Problem, bool]:
    """The statistic that cross entropies come from, and whether it is that of the pairs other than the joint ones.

    The plain difference is taken where ids may have left joint pairs out, and over columns with `positives`: a column
    that several rows have for their positive would lose all of them.
    """
    joint, wants_joint = problem.joint, problem.form == "inner_product" and problem.joint != "left_out"
    joint_is_in = joint == "kept" or (joint == "counted" and problem.row_ids is None and not problem.guided)
    from_others = joint_is_in and (dims == "rows" or _on_the_diagonal(problem, shards))
    if from_others:
        joint = "left_out"
    return problem.replace(fn="logsumexp", dims=dims, joint=joint, wants_joint=wants_joint), from_others


def _on_the_diagonal(problem: Problem, shards: Shards | None) -> bool:
    return problem.positives is None if shards is None else shards.diagonal


def _maker(problem: Problem, backend: str | None, shards: Shards | None) -> str | None:
    """The backend's name, where it makes cross entropies of its own and nothing wants to see what they are made of."""
    if is_watched() or not problem.wants_joint or not len(problem.x):
        return None
    if shards is not None and (shards.batch.schedule == "ring" or problem.dims != "rows"):
        return None  # where statistics of columns, or of columns that are elsewhere, are still to be merged
    name = select(problem, backend)
    return name if hasattr(BACKENDS[name], "cross_entropies") else None


def cross_entropy_from_others(others: Tensor, joint: Tensor) -> Tensor:
    """softplus(others - joint), of log-sum-exps of the other pairs.

    A joint score of +inf would hide itself there: its cross entropy is inf - inf, and NaN, with NaN gradients.
    """
    hidden = torch.where(joint.detach() == torch.inf, torch.nan, 0.0)
    return POINTWISE["softplus"].value(others - joint + hidden)


def _composed(
    problem: Problem, backend: str | None, less: Callable[[Tensor, Tensor], Tensor], shards: Shards | None = None
) -> Tensor:
    """`less` of a statistic's rows and columns and the joint scores."""
    rows, columns, joint, _ = statistic(problem, backend, shards)
    if not problem.wants_joint:
        joint = joint_scores(problem, shards)
    return _less_joint(problem, rows, columns, joint, less, shards)


def _less_joint(
    problem: Problem,
    rows: Tensor,
    columns: Tensor,
    joint: Tensor,
    less: Callable[[Tensor, Tensor], Tensor],
    shards: Shards | None,
) -> Tensor:
    found = [rows] if problem.wants_rows else []
    if problem.wants_columns and _on_the_diagonal(problem, shards):
        found.append(columns[: len(joint)])
    elif problem.wants_columns:
        found.append((columns if shards is None else all_columns(columns, shards))[problem.positives])
    return torch.stack([less(sums, joint) for sums in found])


class CrossEntropies(torch.autograd.Function):
    """(problem, backend, factor, weights, *problem.differentiable) -> (1 or 2, N), or with a factor () their total.

    By a backend that makes them of its own. Gradients by weights are not made.
    """

    @staticmethod
    def forward(ctx, problem, backend, factor, weights, *differentiable):
        module, needs_gradients = BACKENDS[backend], any(ctx.needs_input_grad)
        with without_autocast(problem.x.device):
            if factor is None:
                value, statistics = module.cross_entropies(problem, needs_gradients)
            else:
                value, statistics = module.cross_entropy_total(problem, weights, factor, needs_gradients)
        ctx.problem, ctx.backend, ctx.factor, ctx.count = problem.without_tensors(), backend, factor, len(statistics)
        ctx.save_for_backward(*statistics, weights, *problem.constants, *differentiable)
        return value

    @staticmethod
    def backward(ctx, upstream):
        saved = ctx.saved_tensors  # once: a checkpoint without reentry makes them anew at every look
        statistics, weights = saved[: ctx.count], saved[ctx.count]
        problem = ctx.problem.with_tensors(saved[ctx.count + 1 :])
        needs = list(ctx.needs_input_grad[4:])
        if torch.is_grad_enabled():
            again = partial(_composed, backend=ctx.backend, less=cross_entropy_from_others)
            if ctx.factor is not None:
                again = partial(_sum_again, ctx.backend, ctx.factor, weights=weights)
            return None, None, None, None, *differentiable_gradients(problem, again, upstream, needs)
        problem = problem.with_needs(needs)
        module = BACKENDS[ctx.backend]
        make = module.cross_entropy_gradients if ctx.factor is None else module.cross_entropy_total_gradients
        with without_autocast(problem.x.device):
            found = make(problem, statistics, upstream, needs)
        return None, None, None, None, *cast_gradients(problem, found)


def _sum_and_gradients(
    backend: str, factor: float, problem: Problem, weights: Tensor | None, needs: list[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    with without_autocast(problem.x.device):
        return BACKENDS[backend].cross_entropy_sum(problem.with_needs(needs), weights, factor, needs)


def _sum_again(backend: str, factor: float, problem: Problem, weights: Tensor | None) -> Tensor:
    entropies = _composed(problem, backend, cross_entropy_from_others)
    if weights is None:
        return factor * entropies.sum()
    return ((factor * weights).where(weights != 0, 0) * entropies).sum()
