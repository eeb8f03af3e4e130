"""CUDA C++ kernels for Hopper GPUs (csrc/cuda), called through a plain C interface: tensors go in as addresses.

bfloat16 log-sum-exps of inner products alone, so far; calls.py hands a problem to the library, strips.py makes the
products of the backward.
"""

from functools import cache

import torch
from torch import Tensor

from ...problem import Problem
from .calls import Call
from .library import why_not
from .strips import gradients

_FORM, _FUNCTION = "inner_product", "logsumexp"
_CAPABILITY = (9, 0)
# Coordinates of tiles are 32 bits; see csrc/cuda/interface.hpp.
_MOST = 2**31 - 2**15


# torch.compile does not look into what asks the machine, but takes the answer for a constant.
@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    return why_not() or _no_device()


@cache
def _no_device() -> str | None:
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "needs an NVIDIA GPU, and a PyTorch for CUDA"
    return None


def not_by_default(device: torch.device) -> str | None:
    return "checked on an H100 (benchmarks/results/cuda_backend.json), but its library is built by hand"


def supports(problem: Problem) -> str | None:
    if problem.form != _FORM:
        return f"the form {problem.form!r} has no CUDA kernel"
    if problem.fn != _FUNCTION:
        return f"the function {problem.fn!r} has no CUDA kernel"
    if problem.x.dtype != torch.bfloat16:
        return f"{problem.x.dtype} operands have no CUDA kernel, bfloat16 ones alone"
    if problem.clamped:
        return "clamped scores have no CUDA kernel"
    if problem.row_ids is not None:
        return "pairs that ids leave out have no CUDA kernel"
    if max(problem.shape) > _MOST:
        return f"the kernels take up to {_MOST} rows and columns; there are {max(problem.shape)}"
    return _cannot_run_on(problem.x.device)


@torch.compiler.assume_constant_result
def _cannot_run_on(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the kernels need an NVIDIA GPU; operands are on {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability != _CAPABILITY:
        return "the kernels need compute capability {}.{}; {} has {}.{}".format(*_CAPABILITY, device, *capability)
    return None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    return Call(problem).log_sum_exps()


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`."""
    of_rows = (rows, grad_rows) if problem.wants_rows else None
    return gradients(problem, of_rows, (columns, grad_columns) if problem.wants_columns else None, needs)


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    raise NotImplementedError("supports() lets no pointwise function come here")
