"""What `estimate` makes of samples of a fixed size, with its default settings."""

import time
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from simmim_kernels import estimate

from .tasks import Task, cubic, digits_channel, gaussian, spiral, student_t, symbols, uniform_noise

BOUNDS = ("infonce", "dv", "nwj", "smile")
DRAWS = 3
ROWS = 10_000


# By name: the task, and how many pairs of it are drawn.
CASES: dict[str, tuple[Task, int]] = {
    **{f"gaussian, {nats:g} nats, d = 5": (gaussian(nats, 5), ROWS) for nats in (0.1, 0.5, 2.0, 5.0)},
    **{f"gaussian, 2 nats, d = 5, N = {n:,}": (gaussian(2.0, 5), n) for n in (200, 500, 2000)},
    **{f"gaussian, {nats:g} nats, d = {d}": (gaussian(nats, d), ROWS) for d, nats in ((1, 1.0), (50, 2.0), (200, 2.0))},
    **{f"independent, d = {d}, N = {n:,}": (gaussian(0.0, d), n) for d in (1, 5, 50) for n in (500, ROWS)},
    "cubic, d = 5": (cubic(2.0, 5), ROWS),
    "spiral, d = 6": (spiral(2.0, 6), ROWS),
    "student-t (3), d = 5": (student_t(1.0, 3, 5), ROWS),
    "uniform noise, d = 5": (uniform_noise(), ROWS),
    "digits channel": (digits_channel(), ROWS),
    "symbols": (symbols(), ROWS),
}


def without_constant_columns(values: Tensor) -> Tensor:
    """(n, d) without what carries no information, such as pixels that every image leaves blank."""
    table = values.reshape(len(values), -1)
    return table[:, (table != table[0]).any(0)]


def plan() -> Iterator[dict]:
    for case in CASES:
        for seed in range(DRAWS):
            yield {"case": case, "seed": seed}


def measure(case: str, seed: int) -> dict:
    """Every bound's estimate from one draw, the 95% interval of InfoNCE, in nats, and the seconds it took."""
    task, n = CASES[case]
    x, y = map(without_constant_columns, task.sample(n, Generator().manual_seed(seed)))
    start = time.perf_counter()
    found = estimate(x, y).bounds
    return {
        "truth": task.information,
        "estimate": {name: found[name].value for name in BOUNDS},
        "interval": [found["infonce"].low, found["infonce"].high],
        "seconds": time.perf_counter() - start,
        "threads": torch.get_num_threads(),
    }
