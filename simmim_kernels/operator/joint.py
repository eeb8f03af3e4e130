"""Scores of the joint pairs and their gradients: linear work, which no backend needs a kernel for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.reference import cast
from ..problem import Problem
from ..problem.forms import FORMS
from ..problem.pointwise import clamp

# Features of rows that are looked at together: 1 MB of them in the cache, and on a GPU enough to be worth a launch.
_BLOCK, _BLOCK_ON_GPU = 2**18, 2**24


def joint_scores(problem: Problem) -> Tensor:
    """(N,) scores of the joint pairs in the compute dtype, clamped as the others are; differentiable."""
    p = _pairs(problem, slice(0, len(problem.x)))
    s = FORMS[p.form].pairs(p.x, p.y, p.parameters)
    for bias in (p.row_bias, p.col_bias):
        if bias is not None:
            s = s + bias
    return clamp(s, p.lo, p.hi) if p.clamped else s


def joint_gradients(problem: Problem, upstream: Tensor) -> list[Tensor]:
    """Gradients of `problem.differentiable` by an inner product's joint scores; themselves differentiable.

    Those of biases come whether or not there are any.
    """
    columns = torch.arange(len(problem.x), device=problem.x.device) if problem.positives is None else problem.positives
    g, dx, dy, dscale = _gradients(_pairs(problem, slice(0, len(problem.x))), upstream)
    dy, dcol = (part.new_zeros(len(problem.y), *part.shape[1:]).index_add(0, columns, part) for part in (dy, g))
    return [dx, dy, g, dcol, dscale]


def add_joint_gradients(problem: Problem, gradients: Sequence[Tensor | None], upstream: Tensor) -> None:
    """Adds `joint_gradients` to those of `gradients` that are there, in place and in some MB of memory."""
    dx, dy, drow, dcol, dscale = gradients
    if problem.mirrored:
        dy, dcol = dx, drow
    (n, d), positives = problem.x.shape, problem.positives
    step = max((_BLOCK if problem.x.device.type == "cpu" else _BLOCK_ON_GPU) // d, 1)
    for rows in (slice(first, min(first + step, n)) for first in range(0, n, step)):
        g, of_x, of_y, of_scale = _gradients(_pairs(problem, rows), upstream[rows])
        for total, part in ((dx, of_x), (drow, g)):
            if total is not None:
                total[rows] += part
        for total, part in ((dy, of_y), (dcol, g)):
            if total is not None and positives is None:
                total[rows] += part
            elif total is not None and positives is not None:
                total.index_add_(0, positives[rows], part.to(total.dtype))
        if dscale is not None:
            dscale += of_scale


def _pairs(problem: Problem, rows: slice) -> Problem:
    """The joint pairs of some rows side by side: operands and biases of one length, in the compute dtype."""
    if problem.positives is None and rows == slice(0, len(problem.x)) == slice(0, len(problem.y)):
        return cast(problem)
    columns = rows if problem.positives is None else problem.positives[rows]

    def part(tensor: Tensor | None, index: slice | Tensor) -> Tensor | None:
        # A view of the whole would cost every backward a node.
        if tensor is None or (isinstance(index, slice) and index.stop - index.start == len(tensor)):
            return tensor
        return tensor[index]

    x, y = part(problem.x, rows), part(problem.y, columns)
    row_bias, col_bias = part(problem.row_bias, rows), part(problem.col_bias, columns)
    return cast(problem.replace(x=x, y=y, row_bias=row_bias, col_bias=col_bias))


def _gradients(pairs: Problem, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By bias, x, y and scale, of the scores of row-wise pairs."""
    p, (scale,) = pairs, pairs.parameters
    products = (p.x * p.y).sum(1)
    if p.clamped:
        s = scale * products
        for bias in (p.row_bias, p.col_bias):
            s = s if bias is None else s + bias
        upstream = upstream.where((s >= p.lo) & (s <= p.hi), 0)
    weights = (scale * upstream)[:, None]
    return upstream, weights * p.y, weights * p.x, (upstream * products).sum()
