"""Cross entropies of the joint pairs, and their gradients: the linear work around the statistics, in two small kernels.

operator/cross_entropy.py says what they are, and would compose them of a dozen of PyTorch's operations, each of which
takes a launch: of a batch of hundreds that is most of the time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...problem import Problem
from .configurations import padded
from .factors import factored
from .gradients import gradients_of, is_symmetric, of_one_side
from .launch import cdiv, launch
from .pointwise import pointwise_value
from .sides import critic_of, joint_pairs_of, sides_of
from .statistics import forward
from .tile import clamped_scores, load_operand, load_partners, load_vector, partners

_ROWS, _WIDTH = 8, 256


@triton.jit
def _cross_entropies(
    own, other, joint, critic, rows, columns, entropies, stride, scores, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    EVEN_D: tl.constexpr,
):  # fmt: skip
    """softplus(log-sum-exp of the others - joint score) by row and by column, and joint scores before the clamp."""
    i0 = tl.program_id(0) * ROWS
    i = i0 + tl.arange(0, ROWS)
    inside = i < own.size
    product = tl.zeros((ROWS,), tl.float32)
    for k0 in range(0, critic.d, WIDTH):
        a = load_operand(own, i0, k0, critic.d, ROWS, WIDTH, EVEN_D).to(tl.float32)
        product += tl.sum(a * load_partners(joint, i0, k0, critic.d, ROWS, WIDTH), 1)
    s = product * tl.load(critic.scale).to(tl.float32)
    if own.bias is not None:
        s += load_vector(own.bias, i0, own.size, ROWS, 0.0)
    if other.bias is not None:
        s += tl.load(other.bias + partners(joint, i), mask=inside, other=0.0).to(tl.float32)
    tl.store(scores + i, s, mask=inside)
    # A joint score of +inf hides itself: its cross entropy is inf - inf.
    hidden = tl.where(s == float("inf"), float("nan"), 0.0)
    s = clamped_scores(s, critic, 1.0)
    if rows is not None:
        others = load_vector(rows, i0, own.size, ROWS, 0.0)
        tl.store(entropies + i, pointwise_value(others - s + hidden, "softplus"), mask=inside)
        entropies += stride
    if columns is not None:
        others = load_vector(columns, i0, own.size, ROWS, 0.0)
        tl.store(entropies + i, pointwise_value(others - s + hidden, "softplus"), mask=inside)


def cross_entropies(problem: Problem, needs_gradients: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(1 or 2, N) of the joint pairs, which the problem leaves out; and what their gradients are made from."""
    rows, columns = forward(problem)
    n, d = problem.x.shape
    width = min(_WIDTH, padded(d))
    scores = torch.empty(n, dtype=torch.float32, device=problem.x.device)
    entropies = torch.empty((problem.wants_rows + problem.wants_columns, n), dtype=torch.float32, device=scores.device)
    joint, _ = joint_pairs_of(problem, scores)
    wanted = (rows if problem.wants_rows else None, columns if problem.wants_columns else None)
    arguments = (*sides_of(problem), joint, critic_of(problem), *wanted, entropies, n, scores)
    constants = {"ROWS": _ROWS, "WIDTH": width, "EVEN_D": d % width == 0, "num_warps": 4, "num_stages": 1}
    launch(_cross_entropies, (cdiv(n, _ROWS),), *arguments, **constants, device=scores.device)
    return entropies, (rows, columns, scores)


def cross_entropy_gradients(
    problem: Problem, statistics: tuple[Tensor, ...], upstream: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`, from those of the entropies and what was made along with these."""
    rows, columns, scores = statistics
    given = (upstream[0] if problem.wants_rows else None, upstream[-1] if problem.wants_columns else None)
    problem, sums, given = of_one_side(problem, (rows, columns), given)
    left, right, critic, joint_gradient = factored(problem, sides_of(problem), critic_of(problem), sums, given, scores)
    assert joint_gradient is not None
    if problem.positives is not None and is_symmetric(problem):
        # Of both places of a row: where it is an anchor, and where it is another's positive.
        joint_gradient = (joint_gradient + joint_gradient[problem.positives]) / 2
    prepared = (left, right, critic, joint_gradient)
    dx, dy, drow, dcol, dscale = gradients_of(problem, prepared, given, needs, problem.x.dtype)[1]
    _add_joint_gradients(problem, joint_gradient, dy, drow, dcol)
    if problem.mirrored:
        dx, dy = _sum(dx, dy), None
        drow, dcol = _sum(drow, dcol), None
    return [dx, dy, drow, dcol, dscale]


def _add_joint_gradients(
    problem: Problem, gradient: Tensor, dy: Tensor | None, drow: Tensor | None, dcol: Tensor | None
) -> None:
    """Those that a pass cannot add itself: of the biases, and of columns that several rows may have for positives."""
    if drow is not None:
        drow += gradient
    if problem.positives is None:
        if dcol is not None:
            dcol[: len(gradient)] += gradient
        return
    if dcol is not None:
        dcol.index_add_(0, problem.positives, gradient)
    if dy is not None:
        parts = (gradient * problem.parameters[0])[:, None] * problem.x
        dy.index_add_(0, problem.positives, parts.to(dy.dtype))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a.add_(b)
