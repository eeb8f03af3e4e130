"""Microseconds of a step of small batches, forward and backward, ours and dense PyTorch's interleaved, as a table.

python -m benchmarks.small
python -m benchmarks.small --cpu   # of one thread's processor, on a machine that others use
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import simmim_kernels as sk
from simmim_kernels.comparison import dense
from simmim_kernels.comparison.measure import forward_backward

TEMPERATURE = 0.07
SIZES = ((64, 64), (64, 512), (256, 64), (256, 512))


def classes(x: Tensor) -> Tensor:
    """One target a row, none of them the diagonal's."""
    return torch.arange(len(x)).flip(0)


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "clip": (
        lambda x, y: sk.clip_loss(x, y, 1 / TEMPERATURE),
        lambda x, y: dense.clip_loss(x, y, 1 / TEMPERATURE),
    ),
    "siglip": (
        lambda x, y: sk.siglip_loss(x, y, 1 / TEMPERATURE, dense.SIGLIP_BIAS),
        lambda x, y: dense.siglip_loss(x, y, 1 / TEMPERATURE),
    ),
    "info_nce": (
        lambda x, y: sk.info_nce_loss(x, y, temperature=TEMPERATURE),
        lambda x, y: dense.info_nce_loss(x, y, 1 / TEMPERATURE),
    ),
    "nt_xent": (
        lambda x, y: sk.nt_xent_loss(x, y, TEMPERATURE),
        lambda x, y: dense.nt_xent_loss(x, y, 1 / TEMPERATURE),
    ),
    "classes": (
        lambda x, y: sk.linear_cross_entropy(x, y, classes(x)),
        lambda x, y: F.cross_entropy(F.linear(x, y), classes(x)),
    ),
}


def inputs(n: int, d: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, noise = (F.normalize(torch.randn(n, d, generator=g), dim=1) for _ in range(2))
    return x.requires_grad_(), F.normalize(x.detach() + noise, dim=1).requires_grad_()


def microseconds(
    functions: tuple[Callable[[], object], ...], seconds: float, clock: Callable[[], float]
) -> list[list[float]]:
    """Of each function, called in turn for some seconds, after a few calls that are not counted."""
    found: list[list[float]] = [[] for _ in functions]
    start = None
    for turn in range(10**6):
        if turn == 20:
            start = time.perf_counter()
        for function, times in zip(functions, found, strict=True):
            before = clock()
            function()
            times.append(1e6 * (clock() - before))
        if start is not None and time.perf_counter() - start > seconds and turn > 50:
            break
    return [times[20:] for times in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cpu", action="store_true", help="processor time, not the wall's, of one thread")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each case")
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu else time.perf_counter
    print("| loss | N | d | threads | ours, us | dense, us | ours / dense |\n|---|---|---|---|---|---|---|", flush=True)
    for name, losses in LOSSES.items():
        for n, d in SIZES:
            for threads in [1] if arguments.cpu else arguments.threads:
                torch.set_num_threads(threads)
                functions = tuple(partial(forward_backward, loss, inputs(n, d)) for loss in losses)
                ours, theirs = microseconds(functions, arguments.seconds, clock)
                ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
                row = (name, n, d, threads, f"{median(ours):.0f}", f"{median(theirs):.0f}", f"{ratio:.2f}")
                print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()
