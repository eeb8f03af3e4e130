"""A problem as the C interface takes it."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from ...problem import Problem
from .library import EndsStruct, EntropiesStruct, GradientsStruct, GradientStruct, ProblemStruct, loaded

# As the enumerations of csrc/cuda/simmim_cuda.h count them.
OPERANDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
FUNCTIONS = {"logsumexp": 0, "identity": 1, "softplus": 2, "square": 3, "log1mexp": 4}
_JOINT = {"counted": 0, "left_out": 1, "kept": 2, "negated": 3}
# Of simmim_cuda_variants, by its index, for tests and benchmarks; -1 leaves the choice to the library.
VARIANT = -1
# The kernels load rows in pieces of so many bytes.
_PIECE = 16
# SIMMIM_CUDA_NARROW of csrc/cuda/simmim_cuda.h.
NARROW = 128
# Of an address, for each number of a vector of float32.
FLOAT = 4

Side = tuple[int | None, int]
"""Addresses of (N,) or (M,) float32: log-sum-exps, None of a pointwise function, and what weighs them."""


class Call:
    """One problem, or the rows of it that `of_rows` and columns that `of_columns` are. Keeps its tensors alive."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.device = problem.x.device
        self.x = aligned(problem.x)
        self.y = self.x if problem.y is problem.x else aligned(problem.y)
        scale = problem.parameters[0]
        self.scale = _dense(scale if scale.device == self.device else scale.to(self.device), torch.float32)
        self._biases = [_dense(bias, torch.float32) for bias in (problem.row_bias, problem.col_bias)]
        self.positives = None if problem.joint == "counted" else _dense(problem.positives, torch.int64)
        self._ids = [_dense(ids, torch.int64) for ids in (problem.row_ids, problem.col_ids)]

    @property
    def has_hoppers_kernels(self) -> bool:
        """Whether the library takes those, and not those for all GPUs."""
        return VARIANT < 0 and bool(_library().simmim_cuda_hopper(self.device.index or 0))

    def _struct(self, rows: slice, columns: slice) -> ProblemStruct:
        p, x, y = self.problem, self.x, self.y
        (row_bias, col_bias), (row_ids, col_ids) = self._biases, self._ids
        return ProblemStruct(
            *(rows.stop - rows.start, columns.stop - columns.start, x.shape[1]),
            *(address(x, rows.start), address(y, columns.start), x.stride(0), y.stride(0), self.scale.data_ptr()),
            *(address(row_bias, rows.start), address(col_bias, columns.start), address(self.positives, rows.start)),
            *(rows.start, columns.start),
            # Of the first ids; the others are a row of all of them further each.
            None if row_ids is None else row_ids.data_ptr() + rows.start * row_ids.itemsize,
            None if col_ids is None else col_ids.data_ptr() + columns.start * col_ids.itemsize,
            *(*p.shape, p.lo, p.hi, OPERANDS[x.dtype], FUNCTIONS[p.fn], _JOINT[p.joint]),
            *(0 if p.row_ids is None else len(p.row_ids), p.grouped),
            *(self.device.index or 0, stream_of(self.device), VARIANT),
        )

    def whole(self) -> ProblemStruct:
        n, m = self.problem.shape
        return self._struct(slice(0, n), slice(0, m))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """(N,) and (M,) float32, log-sum-exps in nats or sums; empty where not wanted."""
        (n, m), p = self.problem.shape, self.problem
        rows, columns = (
            torch.empty(size if wanted else 0, dtype=torch.float32, device=self.device)
            for size, wanted in ((n, p.wants_rows), (m, p.wants_columns))
        )
        workspace = self.workspace(n, m)
        outputs = (rows.data_ptr() or None, columns.data_ptr() or None, workspace.data_ptr())
        _check(_library().simmim_cuda_statistics(self.whole(), *outputs))
        return rows, columns

    def workspace(self, n: int, m: int, more: int = 0) -> Tensor:
        """For the statistics of so many rows and columns, and some bytes more in front of it."""
        size = _library().simmim_cuda_workspace(n, m) + more
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def cross_entropies(self, entropies: EntropiesStruct, workspace: int | None) -> None:
        _check(_library().simmim_cuda_cross_entropies(self.whole(), entropies, workspace))

    def weights(
        self,
        out: Tensor,
        rows: slice,
        columns: slice,
        of_rows: Side | None,
        of_columns: Side | None,
        sums: Tensor | None = None,
        weight_sums: Tensor | None = None,
        workspace: Tensor | None = None,
    ) -> None:
        """Writes dL/ds of a block of pairs to the upper left of `out`, whose columns are a multiple of 8.

        Of a function its `sums` and `weight_sums`, (N,), are set, or from the second block of a row on added to.
        """
        sides = ((of_rows, rows), (of_columns, columns))
        vectors = [
            None if vector is None else vector + at.start * FLOAT
            for side, at in sides
            for vector in side or (None, None)
        ]
        gradient = GradientStruct(
            *(*vectors, out.data_ptr(), out.stride(0), address(sums, rows.start), address(weight_sums, rows.start)),
            *(None if workspace is None else workspace.data_ptr(), columns.start > 0),
        )
        _check(_library().simmim_cuda_weights(self._struct(rows, columns), gradient))

    def finish(
        self,
        rows: EndsStruct,
        columns: EndsStruct,
        unit: Tensor | None,
        upstream: Tensor | None,
        scale_gradient: Tensor | None,
        dots: Tensor | None,
    ) -> None:
        """Makes gradients of sums of products; that of the scale, where it is wanted, is the sum of `dots`."""
        numbers = (self.scale.data_ptr(), *(None if t is None else t.data_ptr() for t in (unit, upstream)))
        of_scale = (address(scale_gradient), address(dots), 0 if dots is None else len(dots))
        device = (OPERANDS[self.x.dtype], self.device.index or 0, stream_of(self.device))
        _check(
            _library().simmim_cuda_finish(GradientsStruct(self.x.shape[1], *numbers, rows, columns, *of_scale, *device))
        )

    @property
    def is_narrow(self) -> bool:
        """Whether `products` takes it."""
        p = self.problem
        plain = p.fn == "logsumexp" and not p.clamped and p.row_ids is None
        of_positives = p.joint == "left_out" and p.positives is not None
        fits = self.x.dtype != torch.float32 and self.x.shape[1] <= NARROW
        return plain and not of_positives and fits and self.has_hoppers_kernels

    def products(
        self, of_rows: Side | None, of_columns: Side | None, by_column: bool, sums: bool
    ) -> tuple[Tensor, Tensor | None]:
        """G Y (N, d), or G^T X (M, d), float32, of weights G that are not kept.

        And, if asked for, their sums, (N,) or (M,).
        """
        (n, m), d = self.problem.shape, self.x.shape[1]
        own, other = (m, n) if by_column else (n, m)
        parts = _library().simmim_cuda_parts(own, other, d)
        products = torch.empty((parts, own, d), device=self.device)
        of_weights = torch.empty((parts, own), device=self.device) if sums else None
        vectors = [vector for side in (of_rows, of_columns) for vector in side or (None, None)]
        outputs = (by_column, products.data_ptr(), address(of_weights))
        _check(_library().simmim_cuda_products(self.whole(), GradientStruct(*vectors), *outputs))
        return _added(products), None if of_weights is None else _added(of_weights)


def _added(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def aligned(operand: Tensor) -> Tensor:
    """(N, d), or a copy of it with zeros up to a multiple of 16 bytes, whose rows can be loaded."""
    n, d = operand.shape
    piece = _PIECE // operand.dtype.itemsize
    padded = -(-d // piece) * piece
    row, column = operand.stride()
    fits = d == padded and column == 1 and row >= d and row % piece == 0 and operand.data_ptr() % _PIECE == 0
    if fits:
        return operand
    copy = operand.new_zeros((n, padded))
    copy[:, :d] = operand
    return copy


def stream_of(device: torch.device) -> int:
    # As torch.cuda.current_stream(device).cuda_stream, without its objects.
    return torch._C._cuda_getCurrentRawStream(device.index or 0)


def _library() -> ctypes.CDLL:
    found = loaded()
    # select() asks `unavailable` first.
    assert found is not None
    return found


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"the CUDA library: {_library().simmim_cuda_message().decode()}")


def _dense(tensor: Any, dtype: torch.dtype) -> Any:
    """A tensor as the kernels read it; None for none."""
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor
    return tensor.to(dtype).contiguous()


def address(tensor: Tensor | None, line: int = 0) -> int | None:
    """Of a line of a tensor."""
    if tensor is None:
        return None
    return tensor.data_ptr() + (line and line * tensor.stride(0) * tensor.itemsize)
