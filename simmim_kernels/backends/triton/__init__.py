"""Fused kernels for NVIDIA (sm_80 and later) and AMD (gfx90a, gfx942, gfx950) GPUs, in Triton.

forward -> statistics.py; gradients -> gradients.py, which goes by fused.py or strips.py; cross entropies, around both
-> cross_entropy.py. All hand a problem to kernels as sides.py says, whose tiles are computed in tile.py; those of the
concatenated MLP are in network.py and network_kernels.py. Kernels are imported when first needed: Triton is not
everywhere, and slow to import.
"""

import importlib.util
from functools import cache

import torch
from torch import Tensor

from ...problem import Problem

_NETWORK = "concatenated_mlp"
# Hidden layers of a network that there are kernels for, and the most units of those of two.
_MOST_LAYERS, _WIDEST = 2, 256
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


def not_verified(problem: Problem) -> str | None:
    if problem.guided:
        return "not verified on hardware: no run of pairs that a guide leaves out is recorded"
    if problem.wants_entropy:
        return "not verified on hardware: no run of entropies is recorded"
    return None


def supports(problem: Problem) -> str | None:
    if problem.form not in ("inner_product", _NETWORK):
        return f"the form {problem.form!r} has no Triton kernel"
    layers = len(problem.parameters) // 2 if problem.form == _NETWORK else 0
    if layers > _MOST_LAYERS:
        return f"a concatenated MLP of {layers} hidden layers has no Triton kernel, those of 1 and 2 have"
    units = problem.x.shape[1]
    if layers == 2 and units > _WIDEST:
        return f"a concatenated MLP of 2 hidden layers has Triton kernels up to {_WIDEST} units, not {units}"
    if problem.fn not in _FUNCTIONS:
        return f"the function {problem.fn!r} has no Triton kernel"
    if problem.x.dtype == torch.float64:
        return "float64 operands have no Triton kernel"
    if problem.guide_x is not None and problem.guide_x.dtype == torch.float64:
        return "a guide in float64 has no Triton kernel"
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
    from . import network, statistics

    return (network if problem.form == _NETWORK else statistics).forward(problem)


def forward_with_entropies(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    from . import network, statistics

    return (network if problem.form == _NETWORK else statistics).forward_with_entropies(problem)


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    from . import gradients, network

    chosen = network if problem.form == _NETWORK else gradients
    return chosen.backward(problem, rows, columns, grad_rows, grad_columns, needs)


def cross_entropies(problem: Problem, needs_gradients: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    from .cross_entropy import cross_entropies

    return cross_entropies(problem, needs_gradients)


def cross_entropy_gradients(
    problem: Problem, statistics: tuple[Tensor, ...], upstream: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    from .cross_entropy import cross_entropy_gradients

    return cross_entropy_gradients(problem, statistics, upstream, needs)


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    from . import gradients, network

    return (network if problem.form == _NETWORK else gradients).value_and_gradients(problem, needs)
