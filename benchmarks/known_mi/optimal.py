"""What the bounds read with the optimal critic, by batch size: the biases and ceilings that no training removes."""

import resource
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from simmim_kernels import bounds

from .tasks import OptimalCritic, gaussian

INFORMATION = (2, 4, 6, 8, 10, 12, 15)
# How many batches of each size: many where they are cheap.
BATCHES = {64: 256, 256: 64, 1024: 16, 4096: 4, 8192: 4, 16384: 2, 32768: 2, 65536: 2}

# Each bound with the critic that is optimal for it: log r, or 1 + log r for nwj.
READINGS: dict[str, Callable[[OptimalCritic, Tensor, Tensor], Tensor]] = {
    "infonce": lambda critic, x, y: bounds.infonce(critic(x, y)),
    "dv": lambda critic, x, y: bounds.dv(critic(x, y)),
    "nwj": lambda critic, x, y: bounds.nwj(critic(x, y, offset=1.0)),
    "js": lambda critic, x, y: bounds.js(critic(x, y)),
    "smile": lambda critic, x, y: bounds.smile(critic(x, y)),
}


def plan() -> Iterator[dict]:
    for n, batches in BATCHES.items():
        for information in INFORMATION:
            yield {"n": n, "information": information, "d": 20, "batches": batches}


@torch.no_grad()
def measure(n: int, information: float, d: int, batches: int) -> dict:
    """Mean and standard deviation of every bound's reading over batches, in nats, and the process's peak memory."""
    task = gaussian(information, d)
    read: dict[str, list[float]] = {name: [] for name in READINGS}
    for seed in range(batches):
        x, y = task.sample(n, torch.Generator().manual_seed(seed))
        for name, reading in READINGS.items():
            read[name].append(reading(task.optimal_critic, x, y).item())
    return {
        "mean": {name: statistics.fmean(values) for name, values in read.items()},
        "deviation": {name: statistics.stdev(values) for name, values in read.items()},
        "peak_gb": peak_gigabytes(),
    }


def peak_gigabytes() -> float:
    """The most memory that this process has held, in units of 10^9 bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
