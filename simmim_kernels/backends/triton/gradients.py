"""The backward: every tile's scores once more, their weights G, and the products G Y and G^T X.

Two ways, by the width d of the operands: fused.py for narrow ones, strips.py for wide ones. Both can give the two sides
their gradients from one look at the scores, 3 products in all. Where additions must keep their order, where atomics
take longer than a product, or where the second side's float32 accumulator would be too large, each side has a pass in
which it is the owner: 4 products, no atomics, and no accumulator larger than a strip.

Symmetric scores have one side: weights by row and by column together, G + G^T, and their product with Y are all.
"""

import torch
from torch import Tensor

from ...problem import Problem, total_gradient_dtype, weight_unit
from ...problem.half_weights import BOUNDED
from . import configurations
from .configurations import fused_tile, weights_tile
from .factors import factored
from .fused import run_fused
from .passes import Pass, Wanted
from .sides import NO_PAIRS, Critic, Side, critic_of, joint_pairs_of, sides_of
from .strips import run_strips

# The two sides, the critic, and the gradients of the joint scores, where they have a part in it.
Prepared = tuple[Side, Side, Critic, Tensor | None]


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`."""
    wide = _widened(problem)
    upstream = (grad_rows if problem.wants_rows else None, grad_columns if problem.wants_columns else None)
    wide, statistics, upstream = of_one_side(wide, (rows, columns), upstream)
    prepared = factored(wide, sides_of(wide), critic_of(wide), statistics, upstream)
    return gradients_of(wide, prepared, upstream, needs, problem.x.dtype)[1]


def of_one_side(
    problem: Problem, statistics: tuple[Tensor, Tensor], upstream: tuple[Tensor | None, Tensor | None]
) -> tuple[Problem, tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """Of symmetric scores the statistics of rows are those of columns, and so are their gradients' sum: as both."""
    if not is_symmetric(problem):
        return problem, statistics, upstream
    statistic = statistics[0] if problem.wants_rows else statistics[1]
    given = [gradient for gradient in upstream if gradient is not None]
    total = given[0] if len(given) == 1 else given[0] + given[1]
    return problem.replace(dims="both"), (statistic, statistic), (total, total)


def is_symmetric(problem: Problem) -> bool:
    """Problem.symmetric, but not where a GPU would have to be waited for, to see `positives`."""
    looks = problem.joint != "counted" and problem.positives is not None
    return problem.mirrored and not (looks and problem.x.device.type != "cpu") and problem.symmetric


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients, from one look at the scores."""
    wide = _widened(problem)
    prepared = (*sides_of(wide), critic_of(wide), None)
    value, found = gradients_of(wide, prepared, (), needs, total_gradient_dtype(problem.x.dtype), value=True)
    assert value is not None
    if is_symmetric(wide):
        # The weights were those by row alone, and so was the gradient of the scale halved once too often.
        found = [None if gradient is None else gradient.mul_(2) for gradient in found]
    return value, found


def _widened(problem: Problem) -> Problem:
    """float16 operands in float32 where nothing bounds the weights, which then are as well."""
    if problem.x.dtype != torch.float16 or problem.fn in BOUNDED:
        return problem
    return problem.replace(x=problem.x.float(), y=problem.y.float())


def gradients_of(
    problem: Problem,
    prepared: Prepared,
    upstream: tuple[Tensor | None, ...],
    needs: list[bool],
    dtype: torch.dtype,
    value: bool = False,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The sum of a pointwise function, and gradients of `problem.differentiable`: of the operands in `dtype`.

    `upstream` has gradients that bound the weights. Those of joint scores are in the gradients of x and scale, and in
    those of y where `positives` are not given. Of symmetric scores, whose weights come as those by row and by column
    together, the gradients of x and row_bias are those of both places.
    """
    left, right, critic, joint_gradient = prepared
    joint_rows, joint_columns = joint_pairs_of(problem, joint_gradient)
    unit = weight_unit(problem.x, upstream)
    x, y, row_bias, col_bias, scale = needs
    rows = Wanted(x, row_bias and problem.row_bias is not None)
    columns = Wanted(y, col_bias and problem.col_bias is not None)

    def look(by_columns: bool, own: Wanted, other: Wanted, scale: bool, value: bool) -> Pass:
        sides, joint = (left, right), (joint_rows, joint_columns)
        if by_columns:
            sides, joint = sides[::-1], joint[::-1]
        made = Pass(problem, *sides, critic, *joint, own, other, scale, value, dtype, unit)
        tile = fused_tile(problem)
        if tile is None:
            run_strips(made, weights_tile(problem))
        else:
            run_fused(made, tile)
        return made

    if is_symmetric(problem):
        found = look(False, rows, Wanted(), scale, value)
        # Every pair has been counted from both of its ends.
        return found.value, [
            found.gradient,
            None,
            found.bias,
            None,
            None if found.dots is None else found.dots.sum() / 2,
        ]
    rows_alone = joint_rows is not NO_PAIRS and joint_columns is NO_PAIRS
    # Where columns have no joint pairs of their own, their dots lack these: the scale is then the rows' business.
    if columns.anything and not rows.anything and not (scale and rows_alone):
        found = look(True, columns, rows, scale, value)
        gradients = [found.other_gradient, found.gradient, found.other_bias, found.bias]
    elif not columns.anything or _in_one_pass(problem):
        found = look(False, rows, columns, scale, value)
        gradients = [found.gradient, found.other_gradient, found.bias, found.other_bias]
    else:
        found, second = look(False, rows, Wanted(), scale, value), look(True, columns, Wanted(), False, False)
        gradients = [found.gradient, second.gradient, found.bias, second.bias]
    return found.value, [*gradients, None if found.dots is None else found.dots.sum()]


def _in_one_pass(problem: Problem) -> bool:
    """Whether one look at the scores may serve both sides: see the head of this file."""
    is_fused = fused_tile(problem) is not None
    if is_fused and (torch.are_deterministic_algorithms_enabled() or not configurations.atomics(problem)):
        return False
    return problem.y.numel() * 4 <= configurations.ACCUMULATOR_BYTES or problem.x.dtype == torch.float32
