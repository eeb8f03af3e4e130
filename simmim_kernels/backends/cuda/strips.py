"""The backward: blocks of weights G = dL/ds in the operands' dtype, and the vendor's products of them.

The blocks come from a constant workspace. dx = scale G Y and dy = scale G^T X are added up in float32, block by block
in a fixed order, from one look at the scores: 3 products in all, or 2 for one side alone. One call makes gradients of
the sums, with those of the joint pairs of cross entropies (cross_entropy.py), whose weights are not in G.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import Problem, total_gradient_dtype, weight_unit
from .calls import Call, Side, address
from .library import EndsStruct

# Of a block of weights, 143 MB in half precision: 64 rows for each multiprocessor of an H100, where that is 5% faster
# than 8192. Flatter ones would read and write the float32 sums of the other side more often.
BLOCK = 8448


class Joint(NamedTuple):
    """What gradients of cross entropies have beside weights of the other pairs."""

    gradient: Tensor
    """(N,) float32, of the joint scores, without the upstream gradient"""
    upstream: Tensor | None = None
    """() float32, of all gradients"""


def gradients(
    problem: Problem,
    of_rows: tuple[Tensor | None, Tensor] | None,
    of_columns: tuple[Tensor | None, Tensor] | None,
    needs: list[bool],
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`, those of the operands and of the scale from products in float32.

    A side is its log-sum-exps, None of a pointwise function, and their upstream gradients.
    """
    call = Call(problem)
    unit = weight_unit(problem.x, tuple(side[1] for side in (of_rows, of_columns) if side is not None))
    # Tensors that the addresses are of.
    kept = [None if side is None else _prepared(*side, unit) for side in (of_rows, of_columns)]
    rows, columns = (None if side is None else (address(side[0]), side[1].data_ptr()) for side in kept)
    return by_blocks(call, rows, columns, unit, needs)


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients, from one look at the scores."""
    call, n = Call(problem), len(problem.x)
    unit = weight_unit(problem.x, ())
    every = torch.ones(n, device=call.device) if unit is None else unit.expand(n).contiguous()
    sums = torch.empty(n, device=call.device)
    found = by_blocks(call, (None, every.data_ptr()), None, unit, needs, sums=sums)
    return sums.sum(), found


def _prepared(statistic: Tensor | None, gradient: Tensor, unit: Tensor | None) -> tuple[Tensor | None, Tensor]:
    gradient = gradient.to(torch.float32)
    gradient = gradient.contiguous() if unit is None else gradient * unit
    return None if statistic is None else statistic.contiguous(), gradient


def by_blocks(
    call: Call,
    of_rows: Side | None,
    of_columns: Side | None,
    unit: Tensor | None,
    needs: list[bool],
    joint: Joint | None = None,
    sums: Tensor | None = None,
) -> list[Tensor | None]:
    """`unit` is what the upstream gradients of the sides were multiplied by; `sums` are those of `Call.weights`."""
    made = _Gradients(call, needs, unit, joint, waits=sums is not None)
    n, m = call.problem.shape
    if call.is_narrow:
        made.add_all(of_rows, of_columns)
        made.end_rows(slice(0, n))
        return made.found()
    made.begin_blocks()
    weight_sums = made.drow if made.has_row_sums else None
    weights = torch.empty((min(BLOCK, n), min(BLOCK, -(-m // 8) * 8)), dtype=call.x.dtype, device=call.device)
    workspace = None if sums is None else call.workspace(min(BLOCK, n), min(BLOCK, m))
    for i in range(0, n, BLOCK):
        rows = slice(i, min(i + BLOCK, n))
        for j in range(0, m, BLOCK):
            columns = slice(j, min(j + BLOCK, m))
            call.weights(weights, rows, columns, of_rows, of_columns, sums, weight_sums, workspace)
            g = _part(weights, slice(0, rows.stop - i))
            made.add(g if columns.stop - j == g.shape[1] else g[:, : columns.stop - j], rows, columns)
        made.end_rows(rows)
    return made.found()


class _Gradients:
    """Sums of products of weights, `unit` times too large where there is one, and the gradients that they become."""

    def __init__(self, call: Call, needs: list[bool], unit: Tensor | None, joint: Joint | None, waits: bool):
        p, d = call.problem, call.x.shape[1]
        self.call, self.unit, self.joint = call, unit, joint
        # A pointwise function's kernel has sums of its weights at hand, as it has those of the function.
        self.has_row_sums = waits
        needs_x, needs_y, *needs_biases, needs_scale = needs
        self.needs_rows, self.needs_columns = needs_x or needs_scale, needs_y
        self.of_rows: Tensor | None = None
        self.of_columns: Tensor | None = None

        def empty(wanted: bool, *size: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
            return torch.empty(size, dtype=dtype, device=call.device) if wanted else None

        n, m = p.shape
        # Of a sum that waits for its factor, as of statistics: float16 might overflow meanwhile.
        dtype = total_gradient_dtype(p.x.dtype) if waits else p.x.dtype
        self.dx = empty(needs_x, n, d, dtype=dtype)
        # Of a mirrored problem it is yet to be added to the other, and is made in the place of its products.
        self.dy = empty(needs_y and not p.mirrored, m, d, dtype=dtype)
        self.drow, self.dcol = (
            torch.zeros(size, device=call.device) if need and bias is not None else None
            for size, need, bias in zip((n, m), needs_biases, (p.row_bias, p.col_bias), strict=True)
        )
        self.dots, self.dscale = empty(needs_scale, n), empty(needs_scale)

    def begin_blocks(self) -> None:
        (n, m), d = self.call.problem.shape, self.call.x.shape[1]
        if self.needs_rows:
            self.of_rows = torch.empty((min(BLOCK, n), d), device=self.call.device)
        if self.needs_columns:
            self.of_columns = torch.empty((m, d), device=self.call.device)

    def add_all(self, of_rows: Side | None, of_columns: Side | None) -> None:
        """By kernels that keep the weights to themselves, which cost a narrow operand less than memory does."""
        for by_column, products, sums in ((False, self.needs_rows, self.drow), (True, self.needs_columns, self.dcol)):
            if products or sums is not None:
                made, added = self.call.products(of_rows, of_columns, by_column, sums is not None)
                if by_column:
                    self.of_columns, self.dcol = made if products else None, added
                else:
                    self.of_rows, self.drow = made if products else None, added

    def add(self, g: Tensor, rows: slice, columns: slice) -> None:
        x, y = _part(self.call.x, rows), _part(self.call.y, columns)
        if self.of_rows is not None:
            add_product(_part(self.of_rows, slice(0, len(g))), g, y, first=columns.start == 0)
        if self.of_columns is not None:
            add_product(_part(self.of_columns, columns), g.T, x, first=rows.start == 0)
        if self.drow is not None and not self.has_row_sums:
            self.drow[rows] += g.sum(1, dtype=torch.float32)
        if self.dcol is not None:
            self.dcol[columns] += g.sum(0, dtype=torch.float32)

    def end_rows(self, rows: slice) -> None:
        """Makes gradients of these rows, whose products are complete."""
        self._add_joint_pairs_of(rows)
        last = rows.stop == len(self.call.x)
        columns = self._ends_of_columns() if last else EndsStruct()
        of_all = (self.dscale, self.dots) if last else (None, None)
        upstream = None if self.joint is None else self.joint.upstream
        self.call.finish(self._ends_of_rows(rows), columns, self.unit, upstream, *of_all)

    def _add_joint_pairs_of(self, rows: slice) -> None:
        """To sums of columns of which several rows may have one for their positive."""
        if self.joint is None or self.call.positives is None:
            return
        columns, g = self.call.positives[rows], self.joint.gradient[rows]
        if self.unit is not None:
            g = g * self.unit
        if self.of_columns is not None:
            self.of_columns.index_add_(0, columns, g[:, None] * self.call.x[rows])
        if self.dcol is not None:
            self.dcol.index_add_(0, columns, g)

    def _ends_of_rows(self, rows: slice) -> EndsStruct:
        x, y, positives = self.call.x, self.call.y, self.call.positives
        return EndsStruct(
            *(address(self.of_rows), rows.stop - rows.start, address(x, rows.start)),
            # On the diagonal of these rows.
            *(address(y, rows.start if positives is None else 0), x.stride(0), y.stride(0)),
            *(address(positives, rows.start), None if self.joint is None else address(self.joint.gradient, rows.start)),
            *(
                rows.stop - rows.start,
                address(self.dx, rows.start),
                self.dx is not None and self.dx.dtype == torch.float32,
            ),
            *(address(self.drow, rows.start), address(self.dots, rows.start)),
        )

    def _ends_of_columns(self) -> EndsStruct:
        x, y = self.call.x, self.call.y
        if self.call.problem.mirrored:
            self.dy = self.of_columns
        has_joint = self.joint is not None and self.call.positives is None
        return EndsStruct(
            *(address(self.of_columns), len(y), y.data_ptr(), x.data_ptr(), y.stride(0), x.stride(0), None),
            *(self.joint.gradient.data_ptr() if self.joint is not None and has_joint else None, len(x)),
            *(address(self.dy), self.dy is not None and self.dy.dtype == torch.float32, address(self.dcol), None),
        )

    def found(self) -> list[Tensor | None]:
        d = self.call.problem.x.shape[1]
        dx, dy = (t if t is None or t.shape[1] == d else t[:, :d] for t in (self.dx, self.dy))
        return [dx, dy, self.drow, self.dcol, self.dscale]


def _part(tensor: Tensor, lines: slice) -> Tensor:
    return tensor if lines.stop - lines.start == len(tensor) else tensor[lines]


def add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a @ b for a float32 total, or total = a @ b, by the vendor's library, accumulated in float32."""
    beta = 0 if first else 1
    if a.dtype == torch.float32:
        torch.addmm(total, a, b, beta=beta, out=total)
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, beta=beta, out=total)
