"""One table of backends, and the choice among them.

A backend is a module with these functions:

    unavailable() -> None | reason            can it run on this machine at all?
    not_by_default(device) -> None | reason   must it be asked for by name, as what such hardware has not verified must?
    supports(problem) -> None | reason        can it run this problem?
    forward(problem) -> (rows, columns)       the statistic, in the compute dtype; empty where not wanted
    forward_with_entropies(problem) -> (rows, columns, entropies)     of a problem that wants_entropy
    backward(problem, rows, columns, grad_rows, grad_columns, needs) -> gradients of problem.differentiable
    value_and_gradients(problem, needs) -> the sum over all pairs of a pointwise function, and its gradients

and, where it must be asked for by name for some problems on hardware that is otherwise verified, with this one:

    not_verified(problem) -> None | reason

and, where it makes cross entropies of its own (operator/cross_entropy.py says what they are), with these two:

    cross_entropies(problem, needs_gradients) -> (entropies, statistics)    entropies (1 or 2, N), the rows' first
    cross_entropy_gradients(problem, statistics, upstream, needs) -> gradients of problem.differentiable

and, where their sums take less than that, with two more, which are as these but for a sum of all, by weights (N,) or
None for 1, times a factor:

    cross_entropy_total(problem, weights, factor, needs_gradients) -> (total (), statistics)
    cross_entropy_total_gradients(problem, statistics, upstream, needs) -> gradients of problem.differentiable

Gradients come in any dtype that holds them without loss, in memory of their own: the operator adds those of the joint
scores in place, and casts them.

A choice made by argument, by `use_backend` or by the environment is binding: where the backend cannot run the
problem it raises. With no choice made, the first of the table that may and can, does.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from ..problem import Problem, validation
from . import cuda, native, reference, tiled, triton

BACKENDS: dict[str, ModuleType] = {
    "cuda": cuda,
    "triton": triton,
    "native": native,
    "tiled": tiled,
    "reference": reference,
}

ENVIRONMENT_VARIABLE = "SIMMIM_KERNELS_BACKEND"


class CannotRun(RuntimeError):
    """No backend, or not the one that was asked for, can run a problem; the message gives the reasons."""


class _Chosen(threading.local):
    def __init__(self) -> None:
        self.name: str | None = None


_chosen = _Chosen()


def backends() -> dict[str, str]:
    """Every backend by name, in the order of preference, with "available" or the reason why it is not."""
    return {name: module.unavailable() or "available" for name, module in BACKENDS.items()}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs every statistic that this thread makes inside the block on one backend, its backward included.

    Raises ValueError for a name that is not in `backends()`.
    """
    _find(name, "use_backend")
    before = _chosen.name
    _chosen.name = name
    try:
        yield
    finally:
        _chosen.name = before


def _find(name: str, source: str) -> ModuleType:
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"{source} must name one of {', '.join(BACKENDS)}; got {validation.shown(name)}")
    return BACKENDS[name]


def asked_for(backend: str | None = None) -> tuple[str | None, str]:
    """The backend that argument, context or environment name, if any does, and which of them it was."""
    if backend is not None:
        return backend, "backend"
    if _chosen.name is not None:
        return _chosen.name, "use_backend"
    return os.environ.get(ENVIRONMENT_VARIABLE) or None, ENVIRONMENT_VARIABLE


def _not_by_default(module: ModuleType, problem: Problem) -> str | None:
    reason = module.not_by_default(problem.x.device)
    if reason is None and hasattr(module, "not_verified"):
        return module.not_verified(problem)
    return reason


def select(problem: Problem, backend: str | None = None) -> str:
    """The backend for a problem. Raises ValueError for an unknown name, CannotRun for one that cannot run it."""
    name, source = asked_for(backend)
    if name is not None:
        module = _find(name, source)
        reason = module.unavailable() or module.supports(problem)
        if reason is not None:
            raise CannotRun(f"backend {name!r} was asked for ({source}) but cannot run this: {reason}")
        return name
    reasons = []
    for candidate, module in BACKENDS.items():
        reason = module.unavailable() or module.supports(problem) or _not_by_default(module, problem)
        if reason is None:
            return candidate
        reasons.append(f"{candidate}: {reason}")
    raise CannotRun("no backend can run this: " + "; ".join(reasons))
