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
from .global_batch import Shards
from .sharded import all_columns, joint_scores, statistic


def cross_entropies(problem: Problem, dims: str, backend: str | None = None, shards: Shards | None = None) -> Tensor:
    """(1 or 2, N) of a validated problem's pairs, by row and by column as `dims` asks for them; differentiable.

    The plain difference is taken where ids may have left joint pairs out, and over columns with `positives`: a column
    that several rows have for their positive would lose all of them.
    """
    joint, wants_joint = problem.joint, problem.form == "inner_product" and problem.joint != "left_out"
    joint_is_in = joint == "kept" or (joint == "counted" and problem.row_ids is None)
    from_others = joint_is_in and (dims == "rows" or _on_the_diagonal(problem, shards))
    if from_others:
        joint = "left_out"
    p = problem.replace(fn="logsumexp", dims=dims, joint=joint, wants_joint=wants_joint)
    maker = _maker(p, backend, shards) if from_others else None
    if maker is not None:
        return CrossEntropies.apply(p, maker, *p.differentiable)
    return _composed(p, backend, cross_entropy_from_others if from_others else torch.sub, shards)


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
    rows, columns, joint = statistic(problem, backend, shards)
    if not problem.wants_joint:
        joint = joint_scores(problem, shards)
    found = [rows] if problem.wants_rows else []
    if problem.wants_columns and _on_the_diagonal(problem, shards):
        found.append(columns[: len(joint)])
    elif problem.wants_columns:
        found.append((columns if shards is None else all_columns(columns, shards))[problem.positives])
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
