"""A problem as the C interface takes it."""

import ctypes

import torch
from torch import Tensor

from ...problem import Problem
from .library import GradientStruct, ProblemStruct, loaded

# As the enumerations of csrc/cuda/simmim_cuda.h count them.
OPERANDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
FUNCTIONS = {"logsumexp": 0, "identity": 1, "softplus": 2, "square": 3, "log1mexp": 4}
_JOINT = {"counted": 0, "left_out": 1, "kept": 2, "negated": 3}
# Of simmim_cuda_variants, by its index, for tests and benchmarks; -1 leaves the choice to the library.
VARIANT = -1
# The kernels load rows in pieces of so many bytes.
_PIECE = 16

Side = tuple[Tensor | None, Tensor]
"""Log-sum-exps of the rows or of the columns, None of a pointwise function, and what weighs them."""


class Call:
    """One problem, or the rows of it that `of_rows` and columns that `of_columns` are. Keeps its tensors alive."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.device = problem.x.device
        self.x = aligned(problem.x)
        self.y = self.x if problem.y is problem.x else aligned(problem.y)
        self._scale = problem.parameters[0].to(device=self.device, dtype=torch.float32)
        self._biases = [_dense(bias, torch.float32) for bias in (problem.row_bias, problem.col_bias)]
        self._positives = None if problem.joint == "counted" else _dense(problem.positives, torch.int64)
        self._ids = [_dense(ids, torch.int64) for ids in (problem.row_ids, problem.col_ids)]

    @property
    def has_hoppers_kernels(self) -> bool:
        """Whether the library takes those, and not those for all GPUs."""
        return VARIANT < 0 and bool(_library().simmim_cuda_hopper(self.device.index or 0))

    def _struct(self, rows: slice, columns: slice) -> ProblemStruct:
        p, x, y = self.problem, self.x[rows], self.y[columns]
        row_bias, col_bias = (_part(bias, at) for bias, at in zip(self._biases, (rows, columns), strict=True))
        # Of the first ids; the others are a row of all of them further each.
        row_ids, col_ids = (
            None if ids is None else ids[0, at].data_ptr() for ids, at in zip(self._ids, (rows, columns), strict=True)
        )
        return ProblemStruct(
            *(len(x), len(y), x.shape[1], x.data_ptr(), y.data_ptr(), self.x.stride(0), self.y.stride(0)),
            *(self._scale.data_ptr(), row_bias, col_bias, _part(self._positives, rows), rows.start, columns.start),
            *(row_ids, col_ids, *p.shape, p.lo, p.hi, OPERANDS[x.dtype], FUNCTIONS[p.fn], _JOINT[p.joint]),
            *(0 if p.row_ids is None else len(p.row_ids), p.grouped),
            *(self.device.index or 0, stream_of(self.device), VARIANT),
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """(N,) and (M,) float32, log-sum-exps in nats or sums; empty where not wanted."""
        (n, m), p = self.problem.shape, self.problem
        rows, columns = (
            torch.empty(size if wanted else 0, dtype=torch.float32, device=self.device)
            for size, wanted in ((n, p.wants_rows), (m, p.wants_columns))
        )
        struct = self._struct(slice(0, n), slice(0, m))
        workspace = self.workspace(n, m)
        outputs = (_address(rows), _address(columns), workspace.data_ptr())
        _check(_library().simmim_cuda_statistics(ctypes.byref(struct), *outputs))
        return rows, columns

    def workspace(self, n: int, m: int) -> Tensor:
        """For the statistics of so many rows and columns."""
        return torch.empty(_library().simmim_cuda_workspace(n, m), dtype=torch.uint8, device=self.device)

    def weights(
        self,
        out: Tensor,
        rows: slice,
        columns: slice,
        of_rows: Side | None,
        of_columns: Side | None,
        sums: Tensor | None = None,
        workspace: Tensor | None = None,
    ) -> None:
        """Writes dL/ds of a block of pairs to the upper left of `out`, whose columns are a multiple of 8.

        Of a pointwise function `sums` (N,) are set, or from the second block of a row on added to.
        """
        sides = ((of_rows, rows), (of_columns, columns))
        vectors = [_part(vector, at) for side, at in sides for vector in (side or (None, None))]
        gradient = GradientStruct(
            *(*vectors, out.data_ptr(), out.stride(0), _part(sums, rows)),
            *(None if workspace is None else workspace.data_ptr(), columns.start > 0),
        )
        _check(_library().simmim_cuda_weights(ctypes.byref(self._struct(rows, columns)), ctypes.byref(gradient)))

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
        vectors = [
            _address(vector) if vector is not None else None
            for side in (of_rows, of_columns)
            for vector in side or (None, None)
        ]
        gradient = GradientStruct(*vectors, None, 0, None, None, False)
        outputs = (int(by_column), products.data_ptr(), None if of_weights is None else of_weights.data_ptr())
        struct = self._struct(slice(0, n), slice(0, m))
        _check(_library().simmim_cuda_products(ctypes.byref(struct), ctypes.byref(gradient), *outputs))
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
    return torch.cuda.current_stream(device).cuda_stream


def _library() -> ctypes.CDLL:
    found = loaded()
    # select() asks `unavailable` first.
    assert found is not None
    return found


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"the CUDA library: {_library().simmim_cuda_message().decode()}")


def _dense(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _part(vector: Tensor | None, at: slice) -> int | None:
    return None if vector is None else vector[at].data_ptr()


def _address(tensor: Tensor) -> int | None:
    """None for an empty one."""
    return tensor.data_ptr() or None
