"""What the bounds read with the optimal critic, by batch size: the biases and ceilings that no training removes."""

import resource
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from simmim_kernels import bounds

from .tasks import OptimalCritic, gaussian, gaussian_critic

BOUNDS = ("infonce", "dv", "nwj", "js", "smile")
INFORMATION = (2, 4, 6, 8, 10, 12, 15)
# How many batches of each size: many where they are cheap.
BATCHES = {64: 256, 256: 64, 1024: 16, 4096: 4, 8192: 4, 16384: 2, 32768: 2, 65536: 2}


def plan() -> Iterator[dict]:
    for n, batches in BATCHES.items():
        for information in INFORMATION:
            yield {"n": n, "information": information, "d": 20, "batches": batches}


def measure(n: int, information: float, d: int, batches: int) -> dict:
    """Mean and standard deviation of every bound's reading over batches, in nats, and the process's peak memory."""
    task, critic = gaussian(information, d), gaussian_critic(information, d)
    readings = [read(critic, *task.sample(n, torch.Generator().manual_seed(i))) for i in range(batches)]
    return {
        "mean": {name: statistics.fmean(reading[name] for reading in readings) for name in BOUNDS},
        "deviation": {name: statistics.stdev(reading[name] for reading in readings) for name in BOUNDS},
        "peak_gb": peak_gigabytes(),
    }


def read(critic: OptimalCritic, x: Tensor, y: Tensor) -> dict[str, float]:
    """Every bound with the critic that is optimal for it: log r, but 1 + log r for nwj."""
    readings = bounds.readouts(critic(x, y)) | {"nwj": bounds.nwj(critic(x, y, offset=1.0))}
    return {name: readings[name].item() for name in BOUNDS}


def peak_gigabytes() -> float:
    """The most memory that this process has held, in units of 10^9 bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
