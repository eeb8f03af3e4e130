"""The concatenated MLP with InfoNCE, forward and backward: native kernels beside `tiled` and dense PyTorch."""

from statistics import median

import pytest
import torch
import torch.nn.functional as F

import simmim_kernels as sk
from simmim_kernels.backends.native.library import why_not
from simmim_kernels.comparison.measure import extra_bytes, interleaved_seconds

from .cases import mlp_scores

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"the native library: {why_not()}")

BARS = {1: 0.35, 2: 0.6}  # of dense PyTorch's time, at N = 1024 and 256 hidden units
MEMORY_BAR = 1 / 20


@pytest.mark.parametrize("layers", [1, 2])
def test_infonce(layers, benchmark):
    n, dim, hidden = 1024, 10, 256
    torch.manual_seed(0)
    critic = sk.MLPCritic(dim, dim, hidden=hidden, layers=layers)
    x, y = (torch.randn(n, dim, requires_grad=True) for _ in range(2))
    leaves = (x, y, *critic.parameters())

    def on(backend: str):
        def run() -> object:
            with sk.use_backend(backend):
                return torch.autograd.grad(-sk.bounds.infonce(critic(x, y)), leaves)

        return run

    def dense() -> object:
        return torch.autograd.grad(F.cross_entropy(mlp_scores(critic, x, y), torch.arange(n)), leaves)

    functions = {"native": on("native"), "tiled": on("tiled"), "dense": dense}
    megabytes = {name: extra_bytes(functions[name]) / 1e6 for name in ("native", "dense")}
    seconds = interleaved_seconds(functions, 3)

    def over(name: str) -> float:
        return median(u / v for u, v in zip(seconds["native"], seconds[name], strict=True))

    benchmark.extra_info.update(
        {
            "case": "network",
            "n": n,
            "hidden": hidden,
            "layers": layers,
            "threads": torch.get_num_threads(),
            "seconds": median(seconds["native"]),
            "over_dense": over("dense"),
            "over_tiled": over("tiled"),
            "megabytes": megabytes["native"],
            "dense_megabytes": megabytes["dense"],
        }
    )
    benchmark.pedantic(functions["native"], rounds=1)
    assert over("dense") <= BARS[layers]
    assert megabytes["native"] <= MEMORY_BAR * megabytes["dense"]
