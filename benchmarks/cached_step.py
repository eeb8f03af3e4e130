"""Memory and time of a step on the whole batch, and by cached_step, against the size of the batch.

python -m benchmarks.cached_step
"""

import argparse
import time

import torch
from torch import Tensor, nn

import simmim_kernels as sk
from simmim_kernels.comparison.measure import extra_bytes

WIDTH, BLOCKS, MICRO_BATCH = 256, 12, 128


def encoder() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(BLOCKS)))


def loss(x: Tensor, y: Tensor) -> Tensor:
    return sk.nt_xent_loss(x, y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096])
    sizes = parser.parse_args().sizes
    torch.manual_seed(0)
    model = encoder()
    print(f"micro-batches of {MICRO_BATCH}, {BLOCKS} blocks of width {WIDTH}, {torch.get_num_threads()} threads")
    print("| N | whole batch, MB | cached_step, MB | whole batch, s | cached_step, s |\n|---|---|---|---|---|")
    for n in sizes:
        views = [torch.randn(n, WIDTH) for _ in range(2)]

        def whole(views: list[Tensor] = views) -> None:
            loss(*map(model, views)).backward()

        def cached(views: list[Tensor] = views) -> None:
            sk.cached_step(model, views, loss, MICRO_BATCH)

        figures = []
        for step in (whole, cached):
            model.zero_grad(set_to_none=False)
            megabytes = extra_bytes(step) / 1e6
            start = time.perf_counter()
            step()
            figures.append((megabytes, time.perf_counter() - start))
        (a, s), (b, t) = figures
        print(f"| {n:,} | {a:,.0f} | {b:,.0f} | {s:.2f} | {t:.2f} |", flush=True)


if __name__ == "__main__":
    main()
