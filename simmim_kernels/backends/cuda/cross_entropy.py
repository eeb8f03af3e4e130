"""Cross entropies of the joint pairs and their gradients: one call each around the weights and their products.

operator/cross_entropy.py says what they are, and would compose them of some dozens of PyTorch's operations: of batches
up to some thousand rows those take most of the time.
"""

import itertools

import torch
from torch import Tensor

from ...problem import Problem, weight_unit
from ...problem.half_weights import unit_below
from .calls import FLOAT, Call, address
from .library import EntropiesStruct
from .strips import Joint, by_blocks

# Vectors in one allocation: log-sum-exps of rows and of columns and the joint scores, or the gradients of these three.
_Triple = tuple[int | None, int | None, int]


def cross_entropies(problem: Problem, needs_gradients: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(1 or 2, N) of the joint pairs, which the problem leaves out; and what their gradients are made from."""
    call, (n, m) = Call(problem), problem.shape
    statistics, entropies = _vectors(call, 1), torch.empty((_sides(problem), n), device=call.device)
    workspace = call.workspace(n, m)
    (made,) = _triples(problem, statistics)
    by_row, by_column = _of_sides(problem, entropies)
    call.cross_entropies(EntropiesStruct(*made, False, by_row, by_column, factor=1.0), workspace.data_ptr())
    return entropies, (statistics,)


def cross_entropy_gradients(
    problem: Problem, statistics: tuple[Tensor, ...], upstream: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`, from those of the entropies and what was made along with these."""
    call = Call(problem)
    made = _vectors(call, 1)
    (known,), (gradients,) = (_triples(problem, vectors) for vectors in (statistics[0], made))
    unit = weight_unit(problem.x, tuple(upstream))
    step = upstream.stride(1)
    call.cross_entropies(
        EntropiesStruct(
            *(*known, True, None, None, *_of_sides(problem, upstream), step, step, 1.0, False, None, None),
            *(*gradients, address(unit)),
        ),
        None,
    )
    return _finished(call, known, gradients, unit, Joint(made[-len(problem.x) :]), needs)


def cross_entropy_total(
    problem: Problem, weights: Tensor | None, factor: float, needs_gradients: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """() `factor` times the sum of all, each times its row's weight; and what its gradients are made from."""
    call, (n, m) = Call(problem), problem.shape
    vectors, value = _vectors(call, 1 + needs_gradients), torch.empty((), device=call.device)
    terms = call.workspace(n, m, more=n * FLOAT)
    known, *gradients = _triples(problem, vectors)
    unit = None
    if needs_gradients and problem.x.dtype == torch.float16:
        given = weights if weights is None else (weights * factor,) * _sides(problem)
        unit = unit_below(_sides(problem) * factor, call.device) if given is None else weight_unit(problem.x, given)
    weight, step = (None, 0) if weights is None else (weights.data_ptr(), weights.stride(0))
    call.cross_entropies(
        EntropiesStruct(
            *(*known, False, None, None, weight, weight, step, step, factor, True, value.data_ptr(), terms.data_ptr()),
            *(*(gradients[0] if gradients else (None, None, None)), address(unit)),
        ),
        terms.data_ptr() + n * FLOAT,
    )
    return value, (vectors,) if unit is None else (vectors, unit)


def cross_entropy_total_gradients(
    problem: Problem, statistics: tuple[Tensor, ...], upstream: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`, from () that of the total and what was made along with it."""
    call, (vectors, *unit) = Call(problem), statistics
    known, gradients = _triples(problem, vectors)
    joint = Joint(vectors[-len(problem.x) :], upstream)
    return _finished(call, known, gradients, unit[0] if unit else None, joint, needs)


def _finished(
    call: Call, known: _Triple, gradients: _Triple, unit: Tensor | None, joint: Joint, needs: list[bool]
) -> list[Tensor | None]:
    problem = call.problem
    of_rows = (known[0], gradients[0]) if gradients[0] is not None else None
    of_columns = (known[1], gradients[1]) if gradients[1] is not None else None
    dx, dy, drow, dcol, dscale = by_blocks(call, of_rows, of_columns, unit, needs, joint)
    if problem.mirrored:
        dx, dy = _sum(dx, dy), None
        drow, dcol = _sum(drow, dcol), None
    return [dx, dy, drow, dcol, dscale]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if a is None or b is None else a + b


def _sides(problem: Problem) -> int:
    return problem.wants_rows + problem.wants_columns


def _of_sides(problem: Problem, of_sides: Tensor) -> tuple[int | None, int | None]:
    """Addresses of the rows' and the columns' vectors of (1 or 2, N)."""
    by_row = address(of_sides) if problem.wants_rows else None
    return by_row, address(of_sides, _sides(problem) - 1) if problem.wants_columns else None


def _vectors(call: Call, triples: int) -> Tensor:
    return torch.empty(triples * sum(_sizes(call.problem)), device=call.device)


def _sizes(problem: Problem) -> tuple[int, int, int]:
    n, m = problem.shape
    return n if problem.wants_rows else 0, m if problem.wants_columns else 0, n


def _triples(problem: Problem, vectors: Tensor) -> list[_Triple]:
    """Their addresses; None for what is not wanted."""
    sizes, found, at = _sizes(problem), [], vectors.data_ptr()
    size = sum(sizes)
    for _ in range(vectors.numel() // size):
        rows, columns, joint = (at + FLOAT * before for before in itertools.accumulate((0, *sizes[:2])))
        found.append((rows if sizes[0] else None, columns if sizes[1] else None, joint))
        at += FLOAT * size
    return found
