"""Fused C++ kernels for CPUs (csrc/cpu), called through a plain C interface: tensors go in as pointers and strides."""

import ctypes

import torch
from torch import Tensor

from ...problem import Problem
from .library import Gradients, ProblemStruct, library, why_not

_FORM = "inner_product"
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_FUNCTIONS = {"logsumexp": 0, "identity": 1, "softplus": 2, "square": 3, "log1mexp": 4}
_JOINT = {"counted": 0, "left_out": 1, "kept": 2}


# torch.compile does not look into what asks the machine, but takes the answer for a constant.
@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    return why_not()


def not_by_default() -> str | None:
    return None


def supports(problem: Problem) -> str | None:
    if problem.form != _FORM:
        return f"the form {problem.form!r} has no native kernel"
    if problem.x.device.type != "cpu":
        return f"the kernels run on the CPU; operands are on {problem.x.device}"
    if problem.fn not in _FUNCTIONS:
        return f"the function {problem.fn!r} has no native kernel"
    return None


class _Call:
    """One problem as the C interface takes it. Keeps the tensors that it points to alive."""

    def __init__(self, problem: Problem):
        p, dtype = problem, problem.compute_dtype
        self.dtype = dtype
        self._kept: list[Tensor] = []
        (n, m), d = p.shape, p.x.shape[1]
        self.struct = ProblemStruct(
            n=n, m=m, d=d, x=self.point(p.x), y=self.point(p.y),
            x_row=p.x.stride(0), x_column=p.x.stride(1), y_row=p.y.stride(0), y_column=p.y.stride(1),
            dtype=_DTYPES[p.x.dtype], function=_FUNCTIONS[p.fn], joint=_JOINT[p.joint],
            threads=torch.get_num_threads(), scale=float(p.parameters[0]), lo=p.lo, hi=p.hi,
            row_bias=self.point(p.row_bias, dtype), col_bias=self.point(p.col_bias, dtype),
            positives=self.point(p.positives, torch.int64), row_ids=self.point(p.row_ids, torch.int64),
            col_ids=self.point(p.col_ids, torch.int64), ids=0 if p.row_ids is None else len(p.row_ids),
        )  # fmt: skip

    def point(self, tensor: Tensor | None, dtype: torch.dtype | None = None) -> int | None:
        """The address of a tensor, made contiguous in a dtype if one is given."""
        if tensor is None:
            return None
        if dtype is not None:
            tensor = tensor.to(dtype).contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _library() -> ctypes.CDLL:
    loaded = library()
    # select() asks `unavailable` first.
    assert loaded is not None
    return loaded


def _check(status: int) -> None:
    if status != 0:
        raise MemoryError("the native backend could not allocate its workspace")


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    call, (n, m) = _Call(problem), problem.shape
    rows = torch.empty(n if problem.wants_rows else 0, dtype=call.dtype)
    columns = torch.empty(m if problem.wants_columns else 0, dtype=call.dtype)
    wanted = (t.data_ptr() if len(t) else None for t in (rows, columns))
    _check(_library().simmim_forward(ctypes.byref(call.struct), *wanted))
    return rows, columns


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`."""
    upstream = {"grad_rows": grad_rows} if problem.wants_rows else {}
    upstream |= {"grad_columns": grad_columns} if problem.wants_columns else {}
    if problem.fn == "logsumexp":
        upstream |= {"rows": rows} if problem.wants_rows else {}
        upstream |= {"columns": columns} if problem.wants_columns else {}
    return _gradients(problem, needs, upstream)


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients, from one look at the scores."""
    total = torch.empty((), dtype=problem.compute_dtype)
    return total, _gradients(problem, needs, {"total": total})


def _gradients(problem: Problem, needs: list[bool], given: dict[str, Tensor]) -> list[Tensor | None]:
    """In the compute dtype."""
    call = _Call(problem)
    names = ("dx", "dy", "drow", "dcol", "dscale")
    made = [
        torch.empty(tensor.shape, dtype=call.dtype) if need and tensor is not None else None
        for tensor, need in zip(problem.differentiable, needs, strict=True)
    ]
    pointers = {name: call.point(tensor, call.dtype) for name, tensor in given.items()}
    pointers |= {name: None if t is None else t.data_ptr() for name, t in zip(names, made, strict=True)}
    _check(_library().simmim_backward(ctypes.byref(call.struct), ctypes.byref(Gradients(**pointers))))
    return made
