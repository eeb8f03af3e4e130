"""The product of two tiles as the tiled backend makes it, against torch.mm: GFLOP/s of both."""

from statistics import median

import torch

from simmim_kernels.backends.tiled.products import times_transposed
from simmim_kernels.comparison.measure import interleaved_seconds


def test_product_of_tiles(benchmark):
    x, y = torch.randn(512, 512), torch.randn(1024, 512)
    seconds = interleaved_seconds({"ours": lambda: times_transposed(x, y), "mm": lambda: torch.mm(x, y.T)}, 51)
    gflop = 2 * x.numel() * len(y) / 1e9
    benchmark.extra_info.update(
        {"case": "product of tiles", **{f"{name}_gflops": gflop / median(times) for name, times in seconds.items()}}
    )
    benchmark.pedantic(times_transposed, (x, y), rounds=51)
