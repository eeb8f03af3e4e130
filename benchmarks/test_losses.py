"""Time and memory of every case against its dense formula: `pytest benchmarks --benchmark-json=FILE`."""

from functools import partial
from statistics import median

import pytest
import torch

import simmim_kernels as sk
from simmim_kernels.comparison.measure import extra_megabytes, forward_backward, interleaved_seconds

from .cases import CASES, Case, clip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_against_dense(case: Case, benchmark):
    inputs = case.inputs()
    ours, dense = (partial(forward_backward, loss, inputs) for loss in (case.ours, case.dense))
    rounds = 3 if case.n > 2048 else 51
    seconds = interleaved_seconds({"ours": ours, "dense": dense}, rounds)
    ratio = median(a / b for a, b in zip(seconds["ours"], seconds["dense"], strict=True))
    found = {
        "case": case.name,
        "n": case.n,
        "d": case.d,
        "scale": case.scale,
        "threads": torch.get_num_threads(),
        "seconds": median(seconds["ours"]),
        "dense_seconds": median(seconds["dense"]),
        "ratio": ratio,
        "ratio_bar": case.ratio,
        "extra_mb": extra_megabytes(case.ours, inputs),
        "dense_extra_mb": extra_megabytes(case.dense, inputs),
        "extra_mb_bar": case.megabytes,
        "torch": torch.__version__,
    }
    benchmark.extra_info.update(found)
    benchmark.pedantic(ours, rounds=rounds)
    assert case.ratio is None or ratio <= case.ratio, found
    assert case.megabytes is None or found["extra_mb"] <= case.megabytes, found


def test_doubling_the_batch_doubles_the_memory(benchmark):
    """Beyond inputs and gradients; the clock is beside the point here."""
    found = {}
    for n in (4096, 8192, 16384):
        case = clip(n, 64)
        inputs = case.inputs()
        found[n] = extra_megabytes(case.ours, inputs)
    benchmark.extra_info.update({"case": "memory growth", "extra_mb": found})
    inputs = clip(4096, 64).inputs()
    benchmark.pedantic(partial(forward_backward, sk.clip_loss, inputs), rounds=1)
    assert found[8192] <= 2 * found[4096]
    assert found[16384] <= 2 * found[8192]


def test_mlp_critic(benchmark):
    """InfoNCE with MLPCritic(hidden=256, layers=2): dense PyTorch would hold two N x M x 256 activations."""
    n, bar = 2048, 400
    torch.manual_seed(0)
    critic = sk.MLPCritic(10, 10, hidden=256, layers=2)
    x, y = (torch.randn(n, 10, requires_grad=True) for _ in range(2))
    leaves = (x, y, *critic.parameters())

    def loss(*_):
        return -sk.bounds.infonce(critic(x, y))

    extra = extra_megabytes(loss, leaves)
    benchmark.extra_info.update(
        {
            "case": "mlp critic",
            "n": n,
            "extra_mb": extra,
            "extra_mb_bar": bar,
            "dense_extra_mb": 2 * n * n * 256 * 4 / 1e6,
        }
    )
    benchmark.pedantic(partial(forward_backward, loss, leaves), rounds=1)
    assert extra <= bar
