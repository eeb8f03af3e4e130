"""Seconds and bytes of functions that compute the same thing, measured side by side."""

import os
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def forward_backward(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of loss(*inputs) with respect to all inputs; leaves no .grad behind, so that runs are alike."""
    return torch.autograd.grad(loss(*inputs), inputs)


def extra_megabytes(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> float:
    """Peak memory of a loss and its gradients beyond inputs and gradients themselves, in units of 10^6 bytes."""
    gradients = sum(t.numel() * t.element_size() for t in inputs)
    return (extra_bytes(lambda: forward_backward(loss, inputs), inputs[0].device) - gradients) / 1e6


def extra_bytes(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Peak of what PyTorch's allocator holds on a device (CPU or CUDA) during a call, less what it held before.

    Memory that the call frees again counts, and so does what it returns.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise ValueError(f"device must be a CPU or CUDA device, got {device}")
    return _extra_cpu_bytes(function)


def _extra_cpu_bytes(function: Callable[[], object]) -> int:
    # The profiler's backend otherwise announces every start and stop on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        returned = function()
    del returned
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.device_type() == torch.profiler.DeviceType.CPU:
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def interleaved_seconds(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall times of every function, called in turn (A B A B ...) so that a drifting machine is fair to all.

    Each is called once beforehand, untimed.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(timed(function))
    return seconds


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, until a GPU is done with it."""
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
