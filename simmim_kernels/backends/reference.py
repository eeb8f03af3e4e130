"""The judge of the other backends: the whole matrix of scores, in plain differentiable PyTorch."""

import math

import torch
from torch import Tensor

from ..problem import Problem, total_gradient_dtype
from ..problem.forms import FORMS
from ..problem.pointwise import POINTWISE, clamp
from ..problem.softmax import entropy_of_rows


def unavailable() -> str | None:
    return None


def not_by_default(device: torch.device) -> str | None:
    return None


def supports(problem: Problem) -> str | None:
    return None


def excluded_pairs(problem: Problem) -> Tensor | None:
    """(N, M) bool, True where a pair is left out; None where all are in."""
    mask = None
    if problem.row_ids is not None and problem.col_ids is not None:
        mask = problem.left_out_by_ids(problem.row_ids[:, :, None] == problem.col_ids[:, None, :])
    if problem.guided:
        by_guide = problem.left_out_by_guide()
        mask = by_guide if mask is None else mask | by_guide
    if problem.joint == "left_out":
        joint = joint_pairs(problem)
        return joint if mask is None else mask | joint
    if problem.joint == "kept" and mask is not None:
        return mask & ~joint_pairs(problem)
    return mask


def joint_pairs(problem: Problem) -> Tensor:
    """(N, M) bool"""
    (n, m), device = problem.shape, problem.x.device
    positives = torch.arange(n, device=device) if problem.positives is None else problem.positives
    return positives[:, None] == torch.arange(m, device=device)


def _signed(problem: Problem, values: Tensor) -> Tensor:
    """Values (N, M) with the sign of the joint pairs' changed where these are "negated"."""
    return torch.where(joint_pairs(problem), -values, values) if problem.joint == "negated" else values


def cast(problem: Problem) -> Problem:
    """The problem with every floating-point tensor in the compute dtype."""
    dtype = problem.compute_dtype
    if all(tensor is None or tensor.dtype == dtype for tensor in problem.differentiable):
        return problem  # as a caller that cast before has it; of a small batch a copy is a good part
    return problem.with_differentiable(None if t is None else t.to(dtype) for t in problem.differentiable)


def _raw_scores(problem: Problem):
    """Scores before the clamp, of a problem already cast, and what the form saves for its gradients."""
    s, saved = FORMS[problem.form].scores(problem.x, problem.y, problem.parameters)
    if problem.row_bias is not None:
        s = s + problem.row_bias[:, None]
    if problem.col_bias is not None:
        s = s + problem.col_bias
    return s, saved


def dense(problem: Problem) -> Tensor:
    """(N, M) scores, -inf where a pair is excluded."""
    s = _raw_scores(cast(problem))[0]
    if problem.clamped:
        s = clamp(s, problem.lo, problem.hi)
    mask = excluded_pairs(problem)
    return s if mask is None else s.masked_fill(mask, -math.inf)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    s = dense(problem)
    if problem.fn == "logsumexp":
        reduce = s.logsumexp
    else:
        values, mask = POINTWISE[problem.fn].value(_signed(problem, s)), excluded_pairs(problem)
        reduce = (values if mask is None else values.masked_fill(mask, 0)).sum
    nothing = s.new_empty(0)
    return (reduce(1) if problem.wants_rows else nothing), (reduce(0) if problem.wants_columns else nothing)


def forward_with_entropies(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    return *forward(problem), entropy_of_rows(dense(problem))


def weights(
    problem: Problem, s: Tensor, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor
) -> Tensor:
    """dL/ds for clamped scores s, from a statistic's values and the upstream gradients of rows and columns."""
    if problem.fn != "logsumexp":
        upstream = (grad_rows[:, None] if problem.wants_rows else 0) + (grad_columns if problem.wants_columns else 0)
        return upstream * _signed(problem, POINTWISE[problem.fn].derivative(_signed(problem, s)))
    total = torch.zeros_like(s)
    # An empty row or column has -inf for its statistic and no pair to weigh: +inf makes its weights 0, not NaN.
    if problem.wants_rows:
        total = total + grad_rows[:, None] * (s - rows.masked_fill(rows == -math.inf, math.inf)[:, None]).exp()
    if problem.wants_columns:
        total = total + grad_columns * (s - columns.masked_fill(columns == -math.inf, math.inf)).exp()
    return total


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`, None where `needs` says so; itself differentiable by autograd."""
    p = cast(problem)
    raw, saved = _raw_scores(p)
    g = weights(p, clamp(raw, p.lo, p.hi), rows, columns, grad_rows, grad_columns)
    mask = excluded_pairs(p)
    if p.clamped:
        outside = ~((raw >= p.lo) & (raw <= p.hi))
        mask = outside if mask is None else mask | outside
    if mask is not None:
        g = g.masked_fill(mask, 0)
    dx, dy, dparameters = FORMS[p.form].gradients(p.x, p.y, p.parameters, saved, g)
    found = [dx, dy, g.sum(1), g.sum(0), *dparameters]
    return [
        gradient.to(tensor.dtype) if needed and tensor is not None else None
        for gradient, tensor, needed in zip(found, problem.differentiable, needs, strict=True)
    ]


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients."""
    rows, nothing = forward(problem)
    wide = problem.with_differentiable(
        None if t is None else t.to(total_gradient_dtype(t.dtype)) for t in problem.differentiable
    )
    return rows.sum(), backward(wide, rows, nothing, torch.ones_like(rows), nothing, needs)
