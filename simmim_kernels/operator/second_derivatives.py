"""Second derivatives of a pairwise statistic, tile by tile, whatever backend made the first."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import reference
from ..problem import Problem

# A tile of second derivatives holds a dozen matrices of its size (for an MLP, of its size times the hidden width).
_TILE = {"inner_product": 256, "concatenated_mlp": 32}

Tensors = list[Tensor | None]


def second_derivatives(
    problem: Problem, needs: list[bool], statistics: Sequence[Tensor], upstream: Sequence[Tensor | None]
) -> Tensors:
    """Products of `upstream`, one for each gradient, with the derivatives of the gradients.

    The gradients are sums over tiles of what the reference's backward gives for the tile alone, with `statistics`
    = (rows, columns, grad_rows, grad_columns) as inputs of their own; torch.func.vjp differentiates each term.
    Returns derivatives by the four statistics and then by `problem.differentiable`.
    """
    arguments: Tensors = [*statistics, *problem.differentiable]
    cotangents: Tensors = [None] * len(statistics)
    cotangents += [
        u if need and t is not None else None
        for u, need, t in zip(upstream, needs, problem.differentiable, strict=True)
    ]
    totals: Tensors = [None if a is None else torch.zeros_like(a, dtype=problem.compute_dtype) for a in arguments]
    n, m = problem.shape
    step = _TILE[problem.form]
    for rows in (slice(i, i + step) for i in range(0, n, step)):
        for cols in (slice(j, j + step) for j in range(0, m, step)):
            products = _of_tile(
                _restrict(problem, rows, cols), needs, _cut(arguments, rows, cols), _cut(cotangents, rows, cols)
            )
            for total, product in zip(_cut(totals, rows, cols), products, strict=True):
                if total is not None and product is not None:
                    total += product
    return [None if t is None or a is None else t.to(a.dtype) for t, a in zip(totals, arguments, strict=True)]


def _of_tile(tile: Problem, needs: list[bool], arguments: Tensors, cotangents: Tensors) -> Tensors:
    present = [k for k, argument in enumerate(arguments) if argument is not None]

    def gradients(*values: Tensor) -> tuple[Tensor, ...]:
        row, column, grad_row, grad_column, *differentiable = _scatter(values, present, arguments)
        part = tile.with_differentiable(differentiable)
        found = reference.backward(part, row, column, grad_row, grad_column, needs)
        return tuple(g for g in found if g is not None)

    pull_back = torch.func.vjp(gradients, *(arguments[k] for k in present))[1]
    return _scatter(pull_back(tuple(u for u in cotangents if u is not None)), present, arguments)


def _restrict(problem: Problem, rows: slice, cols: slice) -> Problem:
    """The exclusions of one tile of pairs, with positives counted from its first column."""
    positives = problem.positives
    if positives is None:
        positives = torch.arange(problem.shape[0], device=problem.x.device)
    return problem.replace(
        positives=positives[rows] - cols.start,
        row_ids=None if problem.row_ids is None else problem.row_ids[:, rows],
        col_ids=None if problem.col_ids is None else problem.col_ids[:, cols],
        guide_x=None if problem.guide_x is None else problem.guide_x[rows],
        guide_y=None if problem.guide_y is None else problem.guide_y[cols],
        guide_limit=None if problem.guide_limit is None else problem.guide_limit[rows],
    )


def _cut(tensors: Tensors, rows: slice, cols: slice) -> Tensors:
    """The tile's part of each of (rows, columns, grad_rows, grad_columns, x, y, row_bias, col_bias, *parameters)."""
    spans = [rows, cols] * 4 + [None] * (len(tensors) - 8)
    # An empty tensor stands for a statistic that was not asked for: there is nothing to cut.
    return [t if t is None or span is None or not len(t) else t[span] for t, span in zip(tensors, spans, strict=True)]


def _scatter(values: Sequence[Tensor], places: Sequence[int], like: Sequence) -> list:
    full: list = [None] * len(like)
    for place, value in zip(places, values, strict=True):
        full[place] = value
    return full
