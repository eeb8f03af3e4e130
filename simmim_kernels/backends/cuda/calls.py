"""A problem as the C interface takes it."""

import ctypes

import torch
from torch import Tensor

from ...problem import Problem
from .library import GradientStruct, ProblemStruct, loaded

# The kernels load rows in pieces of 16 bytes.
_ALIGNMENT = 8

Side = tuple[Tensor, Tensor]
"""Log-sum-exps of the rows or of the columns, and the gradients of them."""


class Call:
    """One problem, or the rows of it that `of_rows` and columns that `of_columns` are. Keeps its tensors alive."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.device = problem.x.device
        self.x = aligned(problem.x)
        self.y = self.x if problem.y is problem.x else aligned(problem.y)
        self._scale = problem.parameters[0].to(device=self.device, dtype=torch.float32)
        self._biases = [_dense(bias, torch.float32) for bias in (problem.row_bias, problem.col_bias)]
        self._leaves_out = problem.joint == "left_out"
        self._positives = _dense(problem.positives, torch.int64) if self._leaves_out else None

    def _struct(self, rows: slice, columns: slice) -> ProblemStruct:
        x, y = self.x[rows], self.y[columns]
        row_bias, col_bias = (_part(bias, at) for bias, at in zip(self._biases, (rows, columns), strict=True))
        return ProblemStruct(
            *(len(x), len(y), x.shape[1], x.data_ptr(), y.data_ptr(), self.x.stride(0), self.y.stride(0)),
            *(self._scale.data_ptr(), row_bias, col_bias, _part(self._positives, rows), rows.start, columns.start),
            *(self._leaves_out, self.device.index or 0, stream_of(self.device), -1),
        )

    def log_sum_exps(self) -> tuple[Tensor, Tensor]:
        """(N,) and (M,) float32 in nats; empty where not wanted."""
        (n, m), p = self.problem.shape, self.problem
        rows, columns = (
            torch.empty(size if wanted else 0, dtype=torch.float32, device=self.device)
            for size, wanted in ((n, p.wants_rows), (m, p.wants_columns))
        )
        library = _library()
        workspace = torch.empty(library.simmim_cuda_workspace(n, m), dtype=torch.uint8, device=self.device)
        struct = self._struct(slice(0, n), slice(0, m))
        outputs = (_address(rows), _address(columns), _address(workspace))
        _check(library.simmim_cuda_log_sum_exps(ctypes.byref(struct), *outputs))
        return rows, columns

    def weights(self, out: Tensor, rows: slice, columns: slice, of_rows: Side | None, of_columns: Side | None) -> None:
        """Writes dL/ds of a block of pairs to the upper left of `out`, bfloat16, whose columns are a multiple of 8."""
        sides = ((of_rows, rows), (of_columns, columns))
        vectors = [_part(vector, at) for side, at in sides for vector in (side or (None, None))]
        gradient = GradientStruct(*vectors, out.data_ptr(), out.stride(0))
        _check(_library().simmim_cuda_weights(ctypes.byref(self._struct(rows, columns)), ctypes.byref(gradient)))


def aligned(operand: Tensor) -> Tensor:
    """(N, d), or a copy of it with zeros up to a multiple of 8 columns, whose rows can be loaded."""
    n, d = operand.shape
    padded = -(-d // _ALIGNMENT) * _ALIGNMENT
    row, column = operand.stride()
    fits = d == padded and column == 1 and row >= d and row % _ALIGNMENT == 0 and operand.data_ptr() % 16 == 0
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
