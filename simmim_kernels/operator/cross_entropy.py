"""Cross entropies: -log of the joint pair's share of its row and of its column, made of the other pairs alone.

log(e^joint + e^others) - joint = softplus(others - joint), with the log-sum-exp of the others: where the joint pair
holds nearly all, neither the value nor a gradient is then a difference of near equals, which half precision would lose.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backends import BACKENDS, select
from ..problem import Problem
from ..problem.pointwise import POINTWISE
from .computation import cast_gradients, is_watched, without_autocast
from .joint import joint_scores
from .statistic import statistic


def cross_entropies(problem: Problem, dims: str, backend: str | None = None) -> Tensor:
    """(1 or 2, N) of a validated problem's pairs, by row and by column as `dims` asks for them; differentiable.

    The plain difference is taken where ids may have left joint pairs out, and over columns with `positives`: a column
    that several rows have for their positive would lose all of them.
    """
    joint, wants_joint = problem.joint, problem.form == "inner_product" and problem.joint != "left_out"
    joint_is_in = joint == "kept" or (joint == "counted" and problem.row_ids is None)
    from_others = joint_is_in and (dims == "rows" or problem.positives is None)
    if from_others:
        joint = "left_out"
    p = problem.replace(fn="logsumexp", dims=dims, joint=joint, wants_joint=wants_joint)
    maker = _maker(p, backend) if from_others else None
    if maker is not None:
        return CrossEntropies.apply(p, maker, *p.differentiable)
    return _composed(p, backend, cross_entropy_from_others if from_others else torch.sub)


def _maker(problem: Problem, backend: str | None) -> str | None:
    """The backend's name, where it makes cross entropies of its own and nothing wants to see what they are made of."""
    if is_watched() or not problem.wants_joint:
        return None
    name = select(problem, backend)
    return name if hasattr(BACKENDS[name], "cross_entropies") else None


def cross_entropy_from_others(others: Tensor, joint: Tensor) -> Tensor:
    """softplus(others - joint), of log-sum-exps of the other pairs.

    A joint score of +inf would hide itself there: its cross entropy is inf - inf, and NaN, with NaN gradients.
    """
    hidden = torch.where(joint.detach() == torch.inf, torch.nan, 0.0)
    return POINTWISE["softplus"].value(others - joint + hidden)


def _composed(problem: Problem, backend: str | None, less: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`less` of a statistic's rows and columns and the joint scores."""
    rows, columns, joint = statistic(problem, backend)
    if not problem.wants_joint:
        joint = joint_scores(problem)
    found = [rows] if problem.wants_rows else []
    if problem.wants_columns:
        found.append(columns[: len(joint)] if problem.positives is None else columns[problem.positives])
    return torch.stack([less(sums, joint) for sums in found])


class CrossEntropies(torch.autograd.Function):
    """(problem, backend, *problem.differentiable) -> (1 or 2, N), by a backend that makes them of its own."""

    @staticmethod
    def forward(ctx, problem, backend, *differentiable):
        with without_autocast(problem.x.device):
            entropies, statistics = BACKENDS[backend].cross_entropies(problem, any(ctx.needs_input_grad))
        # Without its tensors, which held here would outlive a checkpoint or what hooks do with those that are saved.
        bare = problem.with_differentiable([None] * len(differentiable))
        ctx.problem = bare.replace(positives=None, row_ids=None, col_ids=None)
        ctx.backend, ctx.count = backend, len(statistics)
        ctx.save_for_backward(*statistics, problem.positives, problem.row_ids, problem.col_ids, *differentiable)
        return entropies

    @staticmethod
    def backward(ctx, upstream):
        saved = ctx.saved_tensors  # once: a checkpoint without reentry makes them anew at every look
        statistics = saved[: ctx.count]
        positives, row_ids, col_ids, *differentiable = saved[ctx.count :]
        problem = ctx.problem.with_differentiable(differentiable)
        problem = problem.replace(positives=positives, row_ids=row_ids, col_ids=col_ids)
        needs = list(ctx.needs_input_grad[2:])
        if torch.is_grad_enabled():
            return None, None, *_differentiable_gradients(problem, ctx.backend, upstream, needs)
        problem = problem.with_needs(needs)
        with without_autocast(problem.x.device):
            found = BACKENDS[ctx.backend].cross_entropy_gradients(problem, statistics, upstream, needs)
        return None, None, *cast_gradients(problem, found)


def _differentiable_gradients(
    problem: Problem, backend: str, upstream: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable` that can be differentiated once more: those of the formulas above."""
    # Views, so that one tensor in two places has a gradient for each.
    views = [None if tensor is None else tensor.view_as(tensor) for tensor in problem.differentiable]
    wanted = [tensor for tensor, need in zip(views, needs, strict=True) if need and tensor is not None]
    entropies = _composed(problem.with_differentiable(views), backend, cross_entropy_from_others)
    found = iter(torch.autograd.grad(entropies, wanted, upstream, create_graph=True, materialize_grads=True))
    return [next(found) if need else None for need in needs]
