"""Fused C++ kernels for CPUs (csrc/cpu), called through a plain C interface: tensors go in as pointers and strides.

A call runs on `torch.get_num_threads()` threads and releases the GIL. Forked workers run it on one thread: a
DataLoader's worker does so by itself, any other calls `torch.set_num_threads(1)` first. On several threads a forked
worker hangs, here as in PyTorch's own operations, if its parent ever ran on several: GNU's OpenMP, which PyTorch has
on Linux, waits for threads that a fork does not copy. Workers of the methods `spawn` and `forkserver` take any number.
"""

import ctypes

import torch
from torch import Tensor

from ...problem import Problem
from .library import ROW_STEP, EntropySum, Gradients, ProblemStruct, Values, loaded, why_not

# Hidden layers of the concatenated MLP that there are kernels for.
_MOST_LAYERS = 2
# Up to this many scores are kept from a forward to its backward, 1 MB of them, instead of being made twice.
KEPT_SCORES = 2**18
# Of more scores those of a strip of rows are kept, where their sums are by row alone: so many bytes of them, and not
# where that is fewer rows than this, in all or for a thread, since all columns are packed anew for each strip.
STRIP_BYTES = 2**24
_LEAST_ROWS, _LEAST_ROWS_OF_THREAD = 256, 48
# A thread for each so many multiply-adds of a problem: fewer are done before a second thread has begun. A score's
# exponentials count as 64.
WORK_OF_A_THREAD = 2**20
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_FUNCTIONS = {"logsumexp": 0, "identity": 1, "softplus": 2, "square": 3, "log1mexp": 4}
# Of `problem.differentiable`, by the number of an MLP's layers, 0 for an inner product: fields of the C interface.
_SIDES = ("dx", "dy", "drow", "dcol")
_GRADIENTS = (
    (*_SIDES, "dscale"),
    (*_SIDES, "doutput", "doutput_bias"),
    (*_SIDES, "dweight", "dweight_bias", "doutput", "doutput_bias"),
)
_JOINT = {"counted": 0, "left_out": 1, "kept": 2, "negated": 3}


# torch.compile does not look into what asks the machine, but takes the answer for a constant.
@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    return why_not()


def not_by_default(device: torch.device) -> str | None:
    return None


def supports(problem: Problem) -> str | None:
    if problem.form not in ("inner_product", "concatenated_mlp"):
        return f"the form {problem.form!r} has no native kernel"
    if _layers(problem) > _MOST_LAYERS:
        return f"a concatenated MLP of {_layers(problem)} hidden layers has no native kernel, those of 1 and 2 have"
    if problem.x.device.type != "cpu":
        return f"the kernels run on the CPU; operands are on {problem.x.device}"
    if problem.fn not in _FUNCTIONS:
        return f"the function {problem.fn!r} has no native kernel"
    return None


def _layers(problem: Problem) -> int:
    """Hidden layers of a concatenated MLP, 0 of an inner product."""
    return len(problem.parameters) // 2


def _threads(problem: Problem) -> int:
    most = torch.get_num_threads()
    if problem.form != "inner_product":
        return most
    n, m = problem.shape
    return max(1, min(most, n * m * (problem.x.shape[1] + 64) // WORK_OF_A_THREAD))


class _Call:
    """One problem as the C interface takes it. Keeps the tensors that it points to alive."""

    def __init__(self, problem: Problem, symmetric: bool):
        p, x, y, dtype = problem, problem.x, problem.y, problem.compute_dtype
        self.dtype = dtype
        self._kept: list[Tensor] = [x, y]
        layers = _layers(p)
        self.struct = ProblemStruct(  # by place: names take their time, of which a small problem sees much
            x.shape[0], y.shape[0], x.shape[1], x.data_ptr(), y.data_ptr(), *x.stride(), *y.stride(),
            _DTYPES[x.dtype], _FUNCTIONS[p.fn], _JOINT[p.joint], symmetric, _threads(p), layers,
            torch.get_float32_matmul_precision() != "highest",
            1.0 if layers else p.parameters[0].item(), p.lo, p.hi,
            self.point(p.row_bias, dtype), self.point(p.col_bias, dtype),
            self.point(p.positives, torch.int64), self.point(p.row_ids, torch.int64),
            self.point(p.col_ids, torch.int64), 0 if p.row_ids is None else len(p.row_ids), p.grouped,
        )  # fmt: skip
        if layers:
            *hidden, output, output_bias = p.parameters
            for name, tensor in zip(("output", "weight", "weight_bias"), (output, *hidden), strict=False):
                setattr(self.struct, name, self.point(tensor, dtype))
            self.struct.output_bias = output_bias.item()
        if p.guide_x is not None:
            for name in ("guide_x", "guide_y", "guide_limit"):
                setattr(self.struct, name, self.point(getattr(p, name), dtype))
            self.struct.guide_d = p.guide_x.shape[1]

    def point(self, tensor: Tensor | None, dtype: torch.dtype) -> int | None:
        """The address of a tensor, made contiguous in a dtype; None for an empty one, as for none."""
        if tensor is None:
            return None
        if tensor.dtype != dtype or not tensor.is_contiguous():
            tensor = tensor.to(dtype).contiguous()
        self._kept.append(tensor)
        return _address(tensor)


def _library() -> ctypes.CDLL:
    found = loaded()
    # select() asks `unavailable` first.
    assert found is not None
    return found


def _check(status: int) -> None:
    if status != 0:
        raise MemoryError("the native backend could not allocate its workspace")


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    call, rows, columns = _Call(problem, problem.symmetric), *_statistics_of(problem)
    values = Values(rows=_address(rows), columns=_address(columns))
    _check(_library().simmim_forward(ctypes.byref(call.struct), ctypes.byref(values)))
    return rows, columns


def forward_with_entropies(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    call, rows, columns = _Call(problem, False), *_statistics_of(problem)
    entropies = torch.empty_like(rows)
    values = Values(rows=_address(rows), columns=_address(columns), softmax_entropies=_address(entropies))
    _check(_library().simmim_forward(call.struct, values))
    return rows, columns, entropies


def cross_entropies(problem: Problem, needs_gradients: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(1 or 2, N) of the joint pairs, which the problem leaves out; and what their gradients are made from."""
    (n, m), dtype = problem.shape, problem.compute_dtype
    keeps = needs_gradients and not problem.clamped and n * m <= KEPT_SCORES
    call, rows, columns = _Call(problem, problem.symmetric), *_statistics_of(problem)
    joint = torch.empty(n, dtype=dtype)
    entropies = torch.empty((problem.wants_rows + problem.wants_columns, n), dtype=dtype)
    scores = torch.empty(n * -(-m // ROW_STEP) * ROW_STEP if keeps else 0, dtype=dtype)
    statistics = (rows, columns, joint, scores)
    values = Values(*map(_address, (rows, columns, joint, entropies, scores)))
    _check(_library().simmim_forward(ctypes.byref(call.struct), ctypes.byref(values)))
    return entropies, statistics


def _statistics_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """Rows and columns to be filled, empty where not wanted."""
    (n, m), dtype = problem.shape, problem.compute_dtype
    rows = torch.empty(n if problem.wants_rows else 0, dtype=dtype)
    return rows, torch.empty(m if problem.wants_columns else 0, dtype=dtype)


def _address(tensor: Tensor) -> int | None:
    """None for an empty one."""
    return tensor.data_ptr() or None


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`."""
    given = {"grad_rows": grad_rows} if problem.wants_rows else {}
    given |= {"grad_columns": grad_columns} if problem.wants_columns else {}
    if problem.fn == "logsumexp":
        given |= {"rows": rows, "columns": columns}
    return _gradients(problem, needs, given)


def cross_entropy_gradients(
    problem: Problem, statistics: tuple[Tensor, ...], upstream: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`, from those of the entropies and what was made along with these."""
    names = ("rows", "columns", "joint", "scores")
    return _gradients(problem, needs, dict(zip(names, statistics, strict=True)) | {"grad_entropies": upstream})


def sums_cross_entropies(problem: Problem) -> bool:
    """Whether `cross_entropy_sum` takes it: where scores can be kept, and gradients wait for their factor for that."""
    return _rows_at_once(problem) > 0


def _rows_at_once(problem: Problem) -> int:
    """How many rows' scores are kept from the cross entropies to their gradients; 0 where these make them again."""
    (n, m), d = problem.shape, problem.x.shape[1]
    if n * m <= KEPT_SCORES and (n + m) * d <= 4 * KEPT_SCORES:
        return n
    if problem.wants_columns or problem.clamped or problem.symmetric:
        return 0  # of symmetric scores half are made, twice
    rows = STRIP_BYTES // (problem.compute_dtype.itemsize * -(-m // ROW_STEP) * ROW_STEP)
    if rows < max(min(_LEAST_ROWS, n), _LEAST_ROWS_OF_THREAD * _threads(problem)):
        return 0
    return -(-n // -(-n // rows))  # strips of one size


def cross_entropy_sum(
    problem: Problem, weights: Tensor | None, factor: float, needs: list[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """`factor` times the sum of the cross entropies, each times its weight, and its gradients, from one call."""
    symmetric = problem.symmetric
    call = _Call(problem, symmetric)
    value = torch.empty((), dtype=call.dtype)
    made, gradients = _made(problem, needs, symmetric)
    asked = EntropySum(
        call.point(weights, call.dtype), value.data_ptr(), factor, problem.wants_rows, problem.wants_columns,
        _rows_at_once(problem),
    )  # fmt: skip
    _check(_library().simmim_cross_entropy_sum(call.struct, asked, gradients))
    return value, made


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients, from one look at the scores."""
    total = torch.empty((), dtype=problem.compute_dtype)
    return total, _gradients(problem, needs, {"total": total})


def _gradients(problem: Problem, needs: list[bool], given: dict[str, Tensor]) -> list[Tensor | None]:
    """In the compute dtype; of a symmetric problem those by y and col_bias are in those by x and row_bias."""
    symmetric = problem.symmetric
    call = _Call(problem, symmetric)
    made, gradients = _made(problem, needs, symmetric)
    for name, tensor in given.items():
        setattr(gradients, name, call.point(tensor, call.dtype))
    _check(_library().simmim_backward(call.struct, gradients))
    return made


def _made(problem: Problem, needs: list[bool], symmetric: bool) -> tuple[list[Tensor | None], Gradients]:
    """Gradients of `problem.differentiable`, to be filled, and as the C interface takes them."""
    if symmetric:
        needs = problem.gradients_made(needs)
    dtype, made, gradients = problem.compute_dtype, [], Gradients()
    for name, tensor, need in zip(_GRADIENTS[_layers(problem)], problem.differentiable, needs, strict=True):
        gradient = torch.empty(tensor.shape, dtype=dtype) if need and tensor is not None else None
        if gradient is not None:
            setattr(gradients, name, gradient.data_ptr())
        made.append(gradient)
    return made, gradients
