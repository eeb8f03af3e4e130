"""Fused kernels for NVIDIA (sm_80 and later) and AMD (gfx942) GPUs, in Triton.

forward -> statistics.py; gradients -> gradients.py, which goes by fused.py or strips.py; cross entropies, around both
-> cross_entropy.py. All hand a problem to kernels as sides.py says, whose tiles are computed in tile.py. Kernels are
imported when first needed: Triton is not everywhere, and slow to import.
"""

import importlib.util
from functools import cache

import torch
from torch import Tensor

from ...problem import Problem

# The form that Triton kernels exist for. The concatenated MLP's pairwise network runs on `tiled`.
_FORM = "inner_product"
# What pointwise.py here has device code for.
_FUNCTIONS = ("logsumexp", "identity", "softplus", "square", "log1mexp")
# Rows of configurations.py on whose hardware `python -m benchmarks.gpu` passed, as a file of benchmarks/results shows.
_VERIFIED = ("90",)


# torch.compile does not look into what asks the machine, but takes the answers for constants.
@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    return _missing()


@cache
def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if _interpreted() or torch.cuda.is_available():
        return None
    return "needs a CUDA or ROCm device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, for tests)"


@torch.compiler.assume_constant_result
def not_by_default(device: torch.device) -> str | None:
    return _not_verified(device)


@cache
def _not_verified(device: torch.device) -> str | None:
    if device.type != "cuda" or _interpreted():
        return "the interpreter is for tests"
    from .configurations import architecture

    row = architecture(device)
    if row in _VERIFIED:
        return None
    return f"not verified on hardware: no run on {'sm_' if row.isdigit() else ''}{row} is recorded"


def supports(problem: Problem) -> str | None:
    if problem.form != _FORM:
        return f"the form {problem.form!r} has no Triton kernel"
    if problem.fn not in _FUNCTIONS:
        return f"the function {problem.fn!r} has no Triton kernel"
    if problem.x.dtype == torch.float64:
        return "float64 operands have no Triton kernel"
    return _cannot_run_on(problem.x.device)


@torch.compiler.assume_constant_result
def _cannot_run_on(device: torch.device) -> str | None:
    return _unfit(device)


@cache
def _unfit(device: torch.device) -> str | None:
    if _interpreted():
        return None if device.type == "cpu" else f"the kernels are interpreted, on the CPU; operands are on {device}"
    if device.type != "cuda":
        return f"the kernels need a CUDA or ROCm device; operands are on {device}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"the kernels need compute capability 8.0; {device} has {torch.cuda.get_device_capability(device)}"
    from .configurations import without_tiles

    return without_tiles(device)


def _interpreted() -> bool:
    from triton import knobs

    return knobs.runtime.interpret


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    from .statistics import forward

    return forward(problem)


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    from .gradients import backward

    return backward(problem, rows, columns, grad_rows, grad_columns, needs)


def cross_entropies(problem: Problem, needs_gradients: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    from .cross_entropy import cross_entropies

    return cross_entropies(problem, needs_gradients)


def cross_entropy_gradients(
    problem: Problem, statistics: tuple[Tensor, ...], upstream: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    from .cross_entropy import cross_entropy_gradients

    return cross_entropy_gradients(problem, statistics, upstream, needs)


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    from .gradients import value_and_gradients

    return value_and_gradients(problem, needs)
