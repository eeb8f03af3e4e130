"""The concatenated MLP on the Triton backend, of one hidden layer and of two, against dense float64."""

from pathlib import Path

import pytest
import torch
from truth import GUIDED, OPTIONS, NetworkCase, check_statistic

import simmim_kernels as sk
from simmim_kernels.backends import BACKENDS
from simmim_kernels.backends.triton import configurations, launch

# Scores of a network have no biases.
WITHOUT_BIASES = {
    name: {**options, "biases": False} for name, options in (OPTIONS | GUIDED).items() if name != "biases"
}


@pytest.fixture(autouse=True)
def small_blocks(small_tiles, monkeypatch):
    """Blocks of a few tiles, so that small problems have seams in both directions."""
    monkeypatch.setattr(configurations, "NETWORK_BLOCK", 32)
    monkeypatch.setattr(configurations, "NETWORK_BYTES", 2**11)


@pytest.mark.parametrize("option", range(len(WITHOUT_BIASES)), ids=list(WITHOUT_BIASES))
@pytest.mark.parametrize("layers", [1, 2])
def test_options(layers, option):
    """Each option meets both statistics, and so do the layers."""
    fn, dim = (("logsumexp", 1), ("softplus", (0, 1)))[(layers + option) % 2]
    options = list(WITHOUT_BIASES.values())[option]
    check_statistic(sk, NetworkCase(19, 37, 5, torch.float32, layers=layers, **options), fn, dim, "triton")


STATISTICS = (("logsumexp", 1), ("square", 0), ("softplus", (0, 1)))


@pytest.mark.parametrize("t", range(3), ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", range(5))
@pytest.mark.parametrize("layers", [1, 2])
def test_shapes_and_dtypes(layers, size, t, monkeypatch):
    """Each shape and each dtype meets every statistic."""
    monkeypatch.setattr(configurations, "NETWORK_BYTES", 2**16)
    n, m, d = ((1, 1, 1), (2, 3, 7), (17, 5, 16), (5, 65, 33), (33, 17, 64))[size]
    case = NetworkCase(n, m, d, (torch.float32, torch.bfloat16, torch.float16)[t], layers=layers)
    check_statistic(sk, case, *STATISTICS[(size + t) % 3], "triton")


def test_products_of_guides():
    """A guide's own, of every pair: the network of one layer makes no others."""
    case = NetworkCase(19, 37, 5, torch.float32, layers=1, guide=7)
    with launch.counted_multiplications() as work, torch.no_grad():
        case.scores(sk).logsumexp(1, backend="triton")
        assert work.multiplications == 19 * 37 * 7


def test_what_it_runs():
    x = torch.randn(4, 3)
    with pytest.raises(RuntimeError, match="of 3 hidden layers has no Triton kernel, those of 1 and 2 have"):
        sk.MLPCritic(3, 3, hidden=4, layers=3)(x, x).logsumexp(1, backend="triton")
    with pytest.raises(RuntimeError, match="of 2 hidden layers has Triton kernels up to 256 units, not 257"):
        sk.MLPCritic(3, 3, hidden=257)(x, x).logsumexp(1, backend="triton")


@pytest.mark.parametrize("name", ["y", "weight", "output"])
def test_a_planted_error_is_seen(monkeypatch, name):
    backward, names = BACKENDS["triton"].backward, ("x", "y", "row_bias", "col_bias", "weight", "weight_bias", "output")

    def off(*arguments):
        found = backward(*arguments)
        found[names.index(name)].view(-1)[3] *= 1.001
        return found

    monkeypatch.setattr(BACKENDS["triton"], "backward", off)
    with pytest.raises(AssertionError, match=f"{name}: error"):
        check_statistic(sk, NetworkCase(20, 30, 5, torch.float32, layers=2), "logsumexp", 1, "triton")


def test_the_check_on_a_gpu_sees_a_planted_error(monkeypatch):
    """benchmarks/gpu/network.py's, here on the CPU."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks.gpu import network

    monkeypatch.setattr(network, "DEVICE", "cpu")
    assert network.check(19, 37, 20, 2, torch.bfloat16)["right"]
    forward = BACKENDS["triton"].forward
    monkeypatch.setattr(BACKENDS["triton"], "forward", lambda problem: [t + 0.1 for t in forward(problem)])
    assert not network.check(19, 37, 20, 2, torch.bfloat16)["right"]
