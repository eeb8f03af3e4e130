"""Numbers whose gradients are made along with them, and wait for one factor: for sums over all that a problem has.

Where nothing watches: torch.compile and torch.func see the operators of statistic.py instead.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..problem import Problem

Make = Callable[[Problem, Tensor | None, list[bool]], tuple[Tensor, list[Tensor | None]]]
Again = Callable[[Problem, Tensor | None], Tensor]


class WithGradients(torch.autograd.Function):
    """(problem, make, again, factor, weights, *problem.differentiable) -> (), `factor` times the number that is made.

    make(problem, weights, needs) gives it, and its gradients of `problem.differentiable`; again(problem, weights) gives
    what has the same gradients out of operations that can be differentiated twice. Gradients by weights (N,) are not
    made.
    """

    @staticmethod
    def forward(ctx, problem, make, again, factor, weights, *differentiable):
        needs = list(ctx.needs_input_grad[5:])
        value, made = make(problem, weights, needs)
        ctx.problem, ctx.again, ctx.factor = problem.without_tensors(), again, factor
        ctx.save_for_backward(*made, *differentiable, weights, *problem.constants)
        return value if factor == 1 else value * factor

    @staticmethod
    def backward(ctx, upstream):
        # Once: a checkpoint without reentry makes them anew at every look.
        saved, needs = ctx.saved_tensors, list(ctx.needs_input_grad[5:])
        count = len(needs)
        made, differentiable, (weights, *constants) = saved[:count], saved[count : 2 * count], saved[2 * count :]
        if ctx.factor != 1:
            upstream = upstream * ctx.factor
        if not torch.is_grad_enabled():
            found = [
                None if gradient is None or not need else (gradient * upstream).to(tensor.dtype)
                for gradient, tensor, need in zip(made, differentiable, needs, strict=True)
            ]
        else:
            problem = ctx.problem.with_tensors([*constants, *differentiable])
            found = differentiable_gradients(problem, lambda problem: ctx.again(problem, weights), upstream, needs)
        return None, None, None, None, None, *found


def differentiable_gradients(
    problem: Problem, function: Callable[[Problem], Tensor], upstream: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable` that can be differentiated once more: of a function of the problem."""
    # Views, so that one tensor in two places has a gradient for each.
    views = [None if tensor is None else tensor.view_as(tensor) for tensor in problem.differentiable]
    wanted = [tensor for tensor, need in zip(views, needs, strict=True) if need and tensor is not None]
    values = function(problem.with_differentiable(views))
    found = iter(torch.autograd.grad(values, wanted, upstream, create_graph=True, materialize_grads=True))
    return [next(found) if need else None for need in needs]
