"""What the operators compute: a backend's values and gradients, with those of the joint scores."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import BACKENDS
from ..problem import Problem, total_gradient_dtype
from .joint import add_joint_gradients, joint_scores


class Statistic(NamedTuple):
    """What comes of a problem, in the compute dtype; empty where not wanted."""

    rows: Tensor
    columns: Tensor
    joint: Tensor
    """(N,) the joint scores"""
    entropies: Tensor
    """(N,) of each row's softmax, in nats; 0 of a row without pairs"""


def is_watched() -> bool:
    """Whether something looks at the operators that run: torch.compile, a dispatch mode, or a transform of torch.func.

    Where nothing does, what they compute is called directly: PyTorch's dispatcher takes as long as a small problem.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def without_autocast(device: torch.device) -> AbstractContextManager:
    # The operands were cast where autocast applies, at the critic; the statistics' own products must not be.
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def autocast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Operands in autocast's dtype where it is on, as a matrix product would take them; one tensor stays one."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, y
    dtype = torch.get_autocast_dtype(kind)
    cast = x.to(dtype)
    return cast, cast if y is x else y.to(dtype)


def values(problem: Problem, backend: str) -> Statistic:
    module = BACKENDS[backend]
    with without_autocast(problem.x.device):
        if problem.wants_entropy:
            rows, columns, entropies = module.forward_with_entropies(problem)
        else:
            rows, columns = module.forward(problem)
            entropies = rows.new_empty(0)
        joint = joint_scores(problem) if problem.wants_joint else rows.new_empty(0)
        return Statistic(rows, columns, joint, entropies)


def gradients(
    problem: Problem,
    backend: str,
    rows: Tensor,
    columns: Tensor,
    grad_rows: Tensor,
    grad_columns: Tensor,
    grad_joint: Tensor,
    needs: list[bool],
) -> list[Tensor | None]:
    """Of `problem.differentiable`, in its dtypes; `grad_joint` is empty where the joint scores have no part in it."""
    problem = problem.with_needs(needs)
    with without_autocast(problem.x.device):
        found = BACKENDS[backend].backward(problem, rows, columns, grad_rows, grad_columns, needs)
        found = _of_both_places(problem, found)
        if len(grad_joint):
            add_joint_gradients(problem, found, grad_joint)
    return cast_gradients(problem, found)


def total_and_gradients(problem: Problem, backend: str, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients, which wait for their factor."""
    problem = problem.with_needs(needs)
    with without_autocast(problem.x.device):
        value, found = BACKENDS[backend].value_and_gradients(problem, needs)
    return value, cast_gradients(problem, _of_both_places(problem, found), total_gradient_dtype)


def _of_both_places(problem: Problem, found: list[Tensor | None]) -> list[Tensor | None]:
    """A mirrored problem's gradients: those by y and col_bias, where a backend made them, go into the others."""
    if not problem.mirrored:
        return found
    dx, dy, drow, dcol, *rest = found
    sums = [of_x if of_y is None or of_x is None else of_x + of_y for of_x, of_y in ((dx, dy), (drow, dcol))]
    return [sums[0], None, sums[1], None, *rest]


def cast_gradients(
    problem: Problem, found: Sequence[Tensor | None], dtype_of: Callable[[torch.dtype], torch.dtype] = lambda d: d
) -> list[Tensor | None]:
    """A backend's gradients, made in whatever dtype, in that of `problem.differentiable`, or in one made from it."""
    return [
        None if gradient is None or tensor is None else _in_dtype(gradient, dtype_of(tensor.dtype))
        for gradient, tensor in zip(found, problem.differentiable, strict=True)
    ]


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Asked here, since a call of PyTorch that does nothing takes its time too.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
