"""The backward: blocks of weights G = dL/ds in the operands' dtype, and the vendor's products of them.

The blocks come from a constant workspace. dx = scale G Y and dy = scale G^T X are added up in float32, block by block
in a fixed order, from one look at the scores: 3 products in all, or 2 for one side alone.
"""

import torch
from torch import Tensor

from ...problem import Problem, total_gradient_dtype, weight_unit
from . import narrow
from .calls import Call, Side

# Of a block of weights, 143 MB in half precision: 64 rows for each multiprocessor of an H100, where that is 5% faster
# than 8192. Flatter ones would read and write the float32 sums of the other side more often.
BLOCK = 8448


def gradients(
    problem: Problem, of_rows: Side | None, of_columns: Side | None, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`, those of the operands and of the scale from products in float32."""
    call = Call(problem)
    unit = weight_unit(problem.x, tuple(side[1] for side in (of_rows, of_columns) if side is not None))
    of_rows, of_columns = (None if side is None else _prepared(side, unit) for side in (of_rows, of_columns))
    if narrow.takes(call):
        return narrow.gradients(call, of_rows, of_columns, unit, needs)
    return _by_blocks(call, of_rows, of_columns, unit, needs, None)


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients, from one look at the scores."""
    call, n = Call(problem), len(problem.x)
    unit = weight_unit(problem.x, ())
    every = torch.ones(n, device=call.device) if unit is None else unit.expand(n).contiguous()
    sums = torch.empty(n, device=call.device)
    found = _by_blocks(call, (None, every), None, unit, needs, sums)
    return sums.sum(), found


def _prepared(side: Side, unit: Tensor | None) -> Side:
    statistic, gradient = side
    gradient = gradient.to(torch.float32)
    gradient = gradient.contiguous() if unit is None else gradient * unit
    return None if statistic is None else statistic.contiguous(), gradient


def _by_blocks(
    call: Call,
    of_rows: Side | None,
    of_columns: Side | None,
    unit: Tensor | None,
    needs: list[bool],
    sums: Tensor | None,
) -> list[Tensor | None]:
    """`unit` is what the upstream gradients of the sides were multiplied by; `sums` are those of `Call.weights`."""
    made = _Gradients(call, needs, unit, waits=sums is not None)
    n, m = call.problem.shape
    width = min(BLOCK, -(-m // 8) * 8)
    weights = torch.empty((min(BLOCK, n), width), dtype=call.x.dtype, device=call.device)
    workspace = None if sums is None else call.workspace(min(BLOCK, n), min(BLOCK, m))
    for i in range(0, n, BLOCK):
        rows = slice(i, min(i + BLOCK, n))
        for j in range(0, m, BLOCK):
            columns = slice(j, min(j + BLOCK, m))
            call.weights(weights, rows, columns, of_rows, of_columns, sums, workspace)
            made.add(weights[: rows.stop - i, : columns.stop - j], rows, columns)
        made.finish_rows(rows)
    return made.finished()


class _Gradients:
    """Products of weights, added up. All are `unit` times too large until they are finished, where there is one."""

    def __init__(self, call: Call, needs: list[bool], unit: Tensor | None, waits: bool):
        p, d = call.problem, call.x.shape[1]
        self.call = call
        self.needs_x, self.needs_y, *needs_biases, self.needs_scale = needs

        def empty(wanted: bool, *size: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
            return torch.empty(size, dtype=dtype, device=call.device) if wanted else None

        n, m = p.shape
        self.strip = empty(self.needs_x or self.needs_scale, min(BLOCK, n), d)
        # Of a sum that waits for its factor, as of statistics: float16 might overflow meanwhile.
        dtype = total_gradient_dtype(p.x.dtype) if waits else p.x.dtype
        self.dx = empty(self.needs_x, n, d, dtype=dtype)
        self.dy = empty(self.needs_y, m, d)
        self.drow, self.dcol = (
            torch.zeros(size, device=call.device) if need and bias is not None else None
            for size, need, bias in zip((n, m), needs_biases, (p.row_bias, p.col_bias), strict=True)
        )
        self.dscale = torch.zeros((), device=call.device) if self.needs_scale else None
        self.unit = unit
        scale = p.parameters[0].to(torch.float32)
        self.scale = scale if unit is None else scale / unit

    def add(self, g: Tensor, rows: slice, columns: slice) -> None:
        if self.strip is not None:
            add_product(self.strip[: len(g)], g, self.call.y[columns], first=columns.start == 0)
        if self.dy is not None:
            add_product(self.dy[columns], g.T, self.call.x[rows], first=rows.start == 0)
        if self.drow is not None:
            self.drow[rows] += g.sum(1, dtype=torch.float32)
        if self.dcol is not None:
            self.dcol[columns] += g.sum(0, dtype=torch.float32)

    def finish_rows(self, rows: slice) -> None:
        """Takes a strip of G Y, complete, into the gradients."""
        if self.strip is None:
            return
        strip = self.strip[: rows.stop - rows.start]
        if self.dscale is not None:
            self.dscale += torch.sum(self.call.x[rows] * strip)
        if self.dx is not None:
            torch.mul(strip, self.scale, out=self.dx[rows])

    def finished(self) -> list[Tensor | None]:
        d = self.call.problem.x.shape[1]
        dx = None if self.dx is None else self.dx[:, :d]
        dy = None if self.dy is None else self.dy.mul_(self.scale)[:, :d]
        others = [self.drow, self.dcol, self.dscale]
        if self.unit is not None:
            others = [None if gradient is None else gradient.div_(self.unit) for gradient in others]
        return [dx, dy, *others]


def add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a @ b for a float32 total, or total = a @ b, by the vendor's library, accumulated in float32."""
    beta = 0 if first else 1
    if a.dtype == torch.float32:
        torch.addmm(total, a, b, beta=beta, out=total)
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, beta=beta, out=total)
