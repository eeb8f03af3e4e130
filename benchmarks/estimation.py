"""How far `estimate`, with its default settings, is from informations that are known: python -m benchmarks.estimation.

Every case is drawn --seeds times; a line gives the mean of each bound over the draws, its worst error, how many of the
95% intervals of InfoNCE hold the truth, and the median time. --only PREFIX runs the cases that begin so.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import simmim_kernels as sk

Pairs = tuple[Tensor, Tensor]
SHOWN = ("infonce", "dv", "nwj", "smile")


def gaussians(n: int, d: int, nats: float, seed: int) -> Pairs:
    """d independent pairs of unit Gaussians with correlation rho, nats = -d/2 log(1 - rho^2)."""
    rho, g = math.sqrt(-math.expm1(-2 * nats / d)), torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, n, d, generator=g, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def cubed(n: int, d: int, nats: float, seed: int) -> Pairs:
    x, y = gaussians(n, d, nats, seed)
    return x**3, y**3


def swirled(n: int, d: int, nats: float, seed: int) -> Pairs:
    """y's first plane turned by 1.5 times its radius, which is one to one and so changes no information."""
    x, y = gaussians(n, d, nats, seed)
    z = torch.view_as_complex(y[:, :2].contiguous())
    return x, torch.cat([torch.view_as_real(z * torch.exp(1.5j * z.abs())), y[:, 2:]], dim=1)


def student(n: int, d: int, nats: float, seed: int, freedom: int = 3) -> Pairs:
    """A 2d-dimensional Student t: the Gaussians above, divided by a size that x and y share."""
    x, y = gaussians(n, d, nats, seed)
    g = torch.Generator().manual_seed(seed + 10**6)
    size = (torch.randn(n, freedom, generator=g, dtype=torch.float64).square().mean(1, keepdim=True)).sqrt()
    return x / size, y / size


def student_nats(d: int, nats: float, freedom: int = 3) -> float:
    """From the entropy of a k-dimensional t, log(G(v/2) / G((v+k)/2)) + (v+k)/2 (psi((v+k)/2) - psi(v/2)) + ..."""

    def entropy(k: int) -> float:
        half, more = (torch.tensor(v / 2, dtype=torch.float64) for v in (freedom, freedom + k))
        return float(half.lgamma() - more.lgamma() + more * (more.digamma() - half.digamma()))

    return nats + 2 * entropy(d) - entropy(2 * d)


def symbols(n: int, seed: int, count: int = 10, kept: float = 0.8) -> Pairs:
    """One of `count` numbers, and the same one with probability `kept`, any otherwise."""
    g = torch.Generator().manual_seed(seed)
    x, other = torch.randint(count, (2, n), generator=g)
    return x, torch.where(torch.rand(n, generator=g) < kept, x, other)


def symbols_nats(count: int = 10, kept: float = 0.8) -> float:
    same, other = kept + (1 - kept) / count, (1 - kept) / count
    return math.log(count) + same * math.log(same) + (count - 1) * other * math.log(other)


def cases() -> dict[str, tuple[float, Callable[[int], Pairs]]]:
    """By name, the truth in nats and a draw of the pairs from a seed."""
    found: dict[str, tuple[float, Callable[[int], Pairs]]] = {}

    def add(name: str, nats: float, draw: Callable[..., Pairs], *arguments) -> None:
        found[name] = (nats, lambda seed: draw(*arguments, seed))

    for nats in (2.0, 0.1, 0.5, 5.0):
        add(f"gaussians {nats:g}, N = 10000, d = 5", nats, gaussians, 10000, 5, nats)
    for d in (1, 5, 50):
        for n in (500, 10000):
            add(f"independent, N = {n}, d = {d}", 0.0, gaussians, n, d, 0.0)
    for n in (200, 500, 2000):
        add(f"gaussians 2, N = {n}, d = 5", 2.0, gaussians, n, 5, 2.0)
    for d, nats in ((1, 1.0), (50, 2.0), (50, 10.0), (200, 2.0)):
        add(f"gaussians {nats:g}, N = 10000, d = {d}", nats, gaussians, 10000, d, nats)
    add("cubed gaussians 2, N = 10000, d = 5", 2.0, cubed, 10000, 5, 2.0)
    add("swirled gaussians 2, N = 10000, d = 5", 2.0, swirled, 10000, 5, 2.0)
    add("Student t (3), N = 10000, d = 5", student_nats(5, 1.0), student, 10000, 5, 1.0)
    add("symbols, N = 10000", symbols_nats(), symbols, 10000)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; mean (worst error), nats")
    print("| case | truth | " + " | ".join(SHOWN) + " | in the interval | seconds |")
    print("|---" * (4 + len(SHOWN)) + "|")
    for name, (truth, draw) in cases().items():
        if not name.startswith(arguments.only):
            continue
        results, seconds = [], []
        for seed in range(arguments.seeds):
            x, y = draw(seed)
            start = time.perf_counter()
            results.append(sk.estimate(x, y).bounds)
            seconds.append(time.perf_counter() - start)
        cells = []
        for bound in SHOWN:
            values = [found[bound].value for found in results]
            worst = max((value - truth for value in values), key=abs)
            cells.append(f"{statistics.fmean(values):.3f} ({worst:+.3f})")
        held = sum(found["infonce"].low <= truth <= found["infonce"].high for found in results)
        counts = f"{held} of {len(results)} | {statistics.median(seconds):.0f}"
        print(f"| {name} | {truth:.3f} | {' | '.join(cells)} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
