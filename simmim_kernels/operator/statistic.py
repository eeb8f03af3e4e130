"""The pairwise statistic as a PyTorch operator: schema, fake, autograd, and dispatch to a backend.

`simmim_kernels::statistic` gives the O(N + M) numbers, `simmim_kernels::statistic_backward` the gradients, and
`simmim_kernels::total` the sum of a pointwise function over all pairs together with its gradients: what comes back
for a scalar is but a factor, so that the scores need be made only once.
An autograd.Function with `setup_context` ties them together, since torch.func transforms take that and not
torch.library.register_autograd.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..backends import select
from ..problem import Problem, total_gradient_dtype
from .computation import Statistic, gradients, is_watched, total_and_gradients, values, without_autocast
from .held import held_statistic, is_held
from .joint import joint_gradients
from .second_derivatives import second_derivatives
from .with_gradients import WithGradients

_PROBLEM = (
    "Tensor x, Tensor y, Tensor[] parameters, Tensor? row_bias, Tensor? col_bias, Tensor? positives, "
    "Tensor? row_ids, Tensor? col_ids, Tensor? guide_x, Tensor? guide_y, Tensor? guide_limit, "
    "str form, str fn, str dims, float lo, float hi, str joint, bool grouped, "
    "bool wants_joint, bool wants_entropy, bool mirrored"
)

_library = torch.library.Library("simmim_kernels", "DEF")
_library.define(f"statistic({_PROBLEM}, str backend) -> (Tensor rows, Tensor columns, Tensor joint, Tensor entropies)")
_library.define(
    f"statistic_backward({_PROBLEM}, str backend, Tensor rows, Tensor columns, Tensor grad_rows, "
    "Tensor grad_columns, Tensor grad_joint, bool[] needs) -> Tensor[]"
)
_library.define(f"total({_PROBLEM}, str backend, bool[] needs) -> (Tensor value, Tensor[] gradients)")

# Problem's fields before `parameters` and after it: autograd.Function wants every tensor as an argument of its
# own, so the parameters, which are as many as the form has, go last.
_TENSORS = 10
_NO_GRADIENTS = (None,) * (_TENSORS - 4)  # of positives, ids and guide


def statistic(problem: Problem, backend: str | None = None) -> Statistic:
    """Of a validated problem, all but the entropies differentiable."""
    if is_held(problem, backend):
        with without_autocast(problem.x.device):
            return held_statistic(problem)
    arguments = (*problem.arguments(), select(problem, backend))
    if torch.compiler.is_compiling() and not wants_gradients(problem):
        # torch.compile mistakes the arguments of an autograd.Function with setup_context that needs no gradient.
        return Statistic(*torch.ops.simmim_kernels.statistic(*arguments))
    return _apply(arguments)


def total(problem: Problem, backend: str | None = None, divisor: float = 1) -> Tensor:
    """The sum of the row values of a validated problem with a pointwise function, by a divisor; differentiable."""
    if is_held(problem, backend) or not wants_gradients(problem):
        return statistic(problem, backend)[0].sum() / divisor
    backend = select(problem, backend)
    if not is_watched():
        make, again = partial(_total_and_gradients, backend), partial(_total_again, backend)
        return WithGradients.apply(problem, make, again, 1 / divisor, None, *problem.differentiable)
    needs = [t is not None and t.requires_grad for t in problem.differentiable]
    settings, tensors = _arguments_of_function((*problem.arguments(), backend))
    return PairwiseTotal.apply(settings, needs, *tensors)[0] / divisor


def _total_and_gradients(
    backend: str, problem: Problem, weights: None, needs: list[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    return total_and_gradients(problem, backend, needs)


def _total_again(backend: str, problem: Problem, weights: None) -> Tensor:
    return statistic(problem, backend)[0].sum()


def wants_gradients(problem: Problem) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in problem.differentiable)


def _apply(arguments: tuple) -> Statistic:
    """PairwiseStatistic on the operator's arguments."""
    settings, tensors = _arguments_of_function(arguments)
    function = PairwiseStatistic if is_watched() else EagerStatistic
    return Statistic(*function.apply(settings, *tensors))


def _arguments_of_function(arguments: tuple) -> tuple[tuple, tuple]:
    """Settings and tensors of an autograd.Function, out of the operator's arguments."""
    x, y, parameters, row_bias, col_bias, *rest = arguments
    # torch.compile takes no autograd.Function with one tensor twice.
    if y is x:
        y = x.view_as(x)
    if row_bias is not None and col_bias is row_bias:
        col_bias = row_bias.view_as(row_bias)
    rest = [row_bias, col_bias, *rest]
    optional, settings = rest[: _TENSORS - 2], tuple(rest[_TENSORS - 2 :])
    return settings, (x, y, *optional, *parameters)


def _operands(tensors: Sequence[Tensor | None]) -> tuple:
    """The tensor arguments of the operators, out of those of an autograd.Function."""
    x, y, *optional = tensors[:_TENSORS]
    return (x, y, list(tensors[_TENSORS:]), *optional)


def _forward(*arguments) -> Statistic:
    *fields, backend = arguments
    return values(Problem(*fields), backend)


def _backward(*arguments) -> list[Tensor]:
    *fields, backend, rows, columns, grad_rows, grad_columns, grad_joint, needs = arguments
    problem = Problem(*fields)
    upstream = (grad_rows, grad_columns, grad_joint)
    return _without_none(problem, gradients(problem, backend, rows, columns, *upstream, needs))


def _without_none(problem: Problem, gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """An operator's list of tensors has no room for None: an empty tensor stands for it."""
    return [problem.x.new_empty(0) if gradient is None else gradient for gradient in gradients]


def _total(*arguments) -> tuple[Tensor, list[Tensor]]:
    *fields, backend, needs = arguments
    problem = Problem(*fields)
    value, found = total_and_gradients(problem, backend, needs)
    return value, _without_none(problem, found)


def _fake_forward(*arguments) -> Statistic:
    problem = Problem(*arguments[:-1])
    n, m = problem.shape

    def fake(wanted: bool, size) -> Tensor:
        return problem.x.new_empty(size if wanted else 0, dtype=problem.compute_dtype)

    wanted = (problem.wants_rows, n), (problem.wants_columns, m), (problem.wants_joint, n), (problem.wants_entropy, n)
    return Statistic(*(fake(*one) for one in wanted))


def _fake_backward(*arguments) -> list[Tensor]:
    *fields, _, _, _, _, _, _, needs = arguments
    problem = Problem(*fields)
    return [
        problem.x.new_empty(0) if tensor is None or not made else tensor.new_empty(tensor.shape)
        for tensor, made in zip(problem.differentiable, problem.gradients_made(needs), strict=True)
    ]


def _fake_total(*arguments) -> tuple[Tensor, list[Tensor]]:
    *fields, _, needs = arguments
    problem = Problem(*fields)
    found = [
        None if tensor is None or not made else tensor.new_empty(tensor.shape, dtype=total_gradient_dtype(tensor.dtype))
        for tensor, made in zip(problem.differentiable, problem.gradients_made(needs), strict=True)
    ]
    return problem.x.new_empty((), dtype=problem.compute_dtype), _without_none(problem, found)


def _autograd_forward(*arguments) -> Statistic:
    """For those who call torch.ops.simmim_kernels.statistic themselves."""
    if wants_gradients(Problem(*arguments[:-1])):
        return _apply(arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.simmim_kernels.statistic(*arguments)


_library.impl("statistic", _forward, "CompositeExplicitAutograd")
_library.impl("statistic", _autograd_forward, "Autograd")
_library.impl("statistic_backward", _backward, "CompositeExplicitAutograd")
_library.impl("total", _total, "CompositeExplicitAutograd")
torch.library.register_fake("simmim_kernels::statistic", _fake_forward, lib=_library)
torch.library.register_fake("simmim_kernels::statistic_backward", _fake_backward, lib=_library)
torch.library.register_fake("simmim_kernels::total", _fake_total, lib=_library)


def _loop_over_batch(function, info, in_dims, arguments):
    """vmap by a loop: every example is a statistic of its own."""
    outputs = [
        function.apply(
            *(a.select(dim, i) if isinstance(dim, int) else a for a, dim in zip(arguments, in_dims, strict=True))
        )
        for i in range(info.batch_size)
    ]
    return tuple(torch.stack(column) if column[0] is not None else None for column in zip(*outputs, strict=True))


def _needs(needed: Sequence[bool]) -> list[bool]:
    """Which of Problem.differentiable want a gradient, out of what an autograd.Function knows of its tensors."""
    return [*needed[:4], *needed[_TENSORS:]]


def _among_inputs(gradients: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple:
    """Gradients in the places of the tensors of an autograd.Function; positives, ids and a guide have none."""
    found = [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]
    return *found[:4], *_NO_GRADIENTS, *found[4:]


def _differentiate(settings: tuple, needs: list[bool], statistics: tuple, tensors: Sequence) -> list[Tensor | None]:
    """Gradients from statistics = (rows, columns, grad_rows, grad_columns, grad_joint)."""
    problem = Problem(*_operands(tensors), *settings[:-1])
    if not torch.is_grad_enabled():
        run = torch.ops.simmim_kernels.statistic_backward if is_watched() else _backward
        found = run(*_operands(tensors), *settings, *statistics, needs)
        return [gradient if made else None for gradient, made in zip(found, problem.gradients_made(needs), strict=True)]
    *statistics_alone, grad_joint = statistics
    *fields, _, backend = settings
    # Both places of a mirrored problem have gradients of their own here, each of which is differentiated once more.
    settings = (*fields, False, backend)
    found = PairwiseStatisticBackward.apply(settings, needs, *statistics_alone, *tensors)
    if not problem.wants_joint:
        return found
    with without_autocast(problem.x.device):
        of_joint = joint_gradients(problem, grad_joint)
    return [a + b.to(a.dtype) if need else a for a, b, need in zip(found, of_joint, needs, strict=True)]


class PairwiseStatistic(torch.autograd.Function):
    """(settings, x, y, row_bias, col_bias, positives, ids, guide, *parameters) -> (rows, columns, joint, entropies)"""

    @staticmethod
    def forward(settings, *tensors):
        return torch.ops.simmim_kernels.statistic(*_operands(tensors), *settings)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.settings, *tensors = inputs
        ctx.mark_non_differentiable(output[3])
        ctx.save_for_backward(*tensors, *output[:2])

    @staticmethod
    def backward(ctx, grad_rows, grad_columns, grad_joint, _):
        *tensors, rows, columns = ctx.saved_tensors
        needs = _needs(ctx.needs_input_grad[1:])
        statistics = (rows, columns, grad_rows, grad_columns, grad_joint)
        found = _differentiate(ctx.settings, needs, statistics, tensors)
        return None, *_among_inputs(found, needs)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        outputs = _loop_over_batch(PairwiseStatistic, info, in_dims, arguments)
        return outputs, (0, 0, 0, 0)


class EagerStatistic(torch.autograd.Function):
    """PairwiseStatistic where nothing watches: for a function with `setup_context` PyTorch binds arguments by name at
    every call, which takes as long as a small problem.
    """

    @staticmethod
    def forward(ctx, settings, *tensors):
        output = _forward(*_operands(tensors), *settings)
        PairwiseStatistic.setup_context(ctx, (settings, *tensors), output)
        return output

    @staticmethod
    def backward(ctx, *upstream):
        return PairwiseStatistic.backward(ctx, *upstream)


class PairwiseStatisticBackward(torch.autograd.Function):
    """The gradients as a function that can be differentiated once more, whatever backend made them.

    (settings, needs, rows, columns, grad_rows, grad_columns, x, y, row_bias, ...) -> gradients
    """

    @staticmethod
    def forward(settings, needs, rows, columns, grad_rows, grad_columns, *tensors):
        statistics = (rows, columns, grad_rows, grad_columns, rows.new_empty(0))
        return tuple(torch.ops.simmim_kernels.statistic_backward(*_operands(tensors), *settings, *statistics, needs))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.settings, ctx.needs, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *upstream):
        statistics, tensors = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        problem = Problem(*_operands(tensors), *ctx.settings[:-1])
        found = second_derivatives(problem, ctx.needs, statistics, upstream)
        return None, None, *found[:8], *_NO_GRADIENTS, *found[8:]

    @staticmethod
    def vmap(info, in_dims, *arguments):
        outputs = _loop_over_batch(PairwiseStatisticBackward, info, in_dims, arguments)
        return outputs, tuple(None if output is None else 0 for output in outputs)


class PairwiseTotal(torch.autograd.Function):
    """(settings, needs, x, y, row_bias, ...) -> (value, *gradients); the gradients are made along with the value."""

    @staticmethod
    def forward(settings, needs, *tensors):
        value, gradients = torch.ops.simmim_kernels.total(*_operands(tensors), *settings, needs)
        return value, *gradients

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.settings, ctx.made, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx, upstream, *_):
        saved = ctx.saved_tensors  # once: a checkpoint without reentry makes them anew at every look
        tensors, made = saved[: -len(ctx.made)], saved[-len(ctx.made) :]
        needs = _needs(ctx.needs_input_grad[2:])
        if torch.is_grad_enabled() or any(need and not had for need, had in zip(needs, ctx.made, strict=True)):
            # For second derivatives the gradients are made anew, as those of row sums with one upstream gradient.
            nothing = upstream.new_empty(0)
            statistics = (nothing, nothing, upstream.expand(len(tensors[0])), nothing, nothing)
            return None, None, *_among_inputs(_differentiate(ctx.settings, needs, statistics, tensors), needs)
        problem = Problem(*_operands(tensors), *ctx.settings[:-1])
        found = [
            (gradient * upstream).to(tensor.dtype) if there and tensor is not None else None
            for gradient, tensor, there in zip(
                made, problem.differentiable, problem.gradients_made(ctx.made), strict=True
            )
        ]
        return None, None, *_among_inputs(found, needs)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        outputs = _loop_over_batch(PairwiseTotal, info, in_dims, arguments)
        return outputs, (0,) * len(outputs)
