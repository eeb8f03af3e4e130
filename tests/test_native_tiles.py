"""Products on matrix tiles (Intel's AMX), with the tiles emulated: every index that leads to them, on any processor.

bfloat16 as it is; float32 and float16 as sums of three bfloat16 parts, or of two where PyTorch's precision of float32
products is not "highest".
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from truth import OPTIONS, Case, check_statistic

import simmim_kernels as sk
from simmim_kernels.backends.native import library

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=f"the native library: {library.why_not()}")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("emulated")
    environment = os.environ | {"SIMMIM_KERNELS_NATIVE": "1", "SIMMIM_KERNELS_EMULATE_TILES": "1"}
    options = ["--build-lib", folder, "--build-temp", folder]
    command = [sys.executable, "setup.py", "-q", "build_ext", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "simmim_kernels" / "backends" / "native"


@pytest.fixture(autouse=True)
def loaded(emulated, monkeypatch):
    for name in ("_LIBRARY", "_DIGEST", "_REASON"):
        monkeypatch.setattr(library, name, emulated / getattr(library, name).name)
    library._load.cache_clear()
    assert library.why_not() is None
    assert library.built_for() == ("portable", "emulated_tiles")
    assert library.loaded().simmim_choose(b"emulated_tiles") == 0
    yield
    library._load.cache_clear()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize(("fn", "dim"), [("logsumexp", 1), ("logsumexp", 0), ("softplus", (0, 1))])
def test_options(fn, dim, options, mirrored):
    m = 37 if mirrored else 53
    check_statistic(sk, Case(37, m, 45, torch.bfloat16, mirrored=mirrored, **options), fn, dim, "native")


@pytest.mark.parametrize(
    ("n", "m", "d"),
    [
        (1, 1, 1),
        (3, 200, 31),
        (33, 31, 32),
        (64, 64, 64),
        (97, 130, 33),
        (100, 1000, 70),
        (130, 129, 700),
        (7, 1921, 3),
    ],
)
def test_shapes(n, m, d, threads):
    case = Case(n, m, d, torch.bfloat16, biases=True, ids=1)
    check_statistic(sk, case, "logsumexp", 0, "native")
    check_statistic(sk, Case(n, m, d, torch.bfloat16), "logsumexp", 1, "native")


@pytest.mark.parametrize(("n", "d"), [(2, 9), (97, 33), (300, 600), (1000, 16)])
def test_symmetric_shapes(n, d, threads):
    check_statistic(sk, Case(n, n, d, torch.bfloat16, mirrored=True, joint="left_out"), "logsumexp", 1, "native")


def test_float64_takes_no_tiles():
    check_statistic(sk, Case(37, 53, 45, torch.float64), "logsumexp", 1, "native")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("mirrored", [False, True])
def test_options_of_float32(mirrored, options):
    m = 37 if mirrored else 53
    check_statistic(sk, Case(37, m, 45, torch.float32, mirrored=mirrored, **options), "logsumexp", 1, "native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (33, 31, 32), (97, 130, 33), (40, 1000, 7), (35, 33, 700)])
def test_shapes_in_parts(n, m, d, dtype, threads):
    check_statistic(sk, Case(n, m, d, dtype, biases=True, ids=1), "logsumexp", 0, "native")


def errors(x: Tensor, y: Tensor, scale: float, upstream: float = 1.0) -> dict[str, float]:
    """Of scores' log-sum-exps and of gradients against float64, by norm, on the instruction set in use."""
    leaves = [t.clone().requires_grad_() for t in (x, y, torch.tensor(scale))]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    found = {}
    for name, (a, b, s) in {"got": leaves, "want": wide}.items():
        rows = sk.PairwiseScores(a, b, scale=s).logsumexp(1)
        found[name] = [rows.detach(), *torch.autograd.grad(upstream * rows.sum(), (a, b))]
    return {
        name: float((got.double() - want).norm() / want.norm())
        for name, got, want in zip(("rows", "x", "y"), found["got"], found["want"], strict=True)
    }


def on_fma(x: Tensor, y: Tensor, *arguments: float) -> dict[str, float]:
    assert library.loaded().simmim_choose(b"portable") == 0
    found = errors(x, y, *arguments)
    assert library.loaded().simmim_choose(b"emulated_tiles") == 0
    return found


@pytest.fixture
def medium():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("d", "scale"), [(40, 1.0), (40, 14.3), (512, 14.3)])
def test_three_parts_are_as_exact_as_float32(d, scale):
    x, y = (F.normalize(torch.randn(60, d), dim=1) * 2 for _ in range(2))
    tiles, fma = errors(x, y, scale), on_fma(x, y, scale)
    for name, error in tiles.items():
        assert error <= 1.5 * fma[name] + 3e-8, (name, error, fma[name])


def test_two_parts_have_sixteen_bits(medium):
    x, y = (F.normalize(torch.randn(100, 64), dim=1) * 2 for _ in range(2))
    tiles, fma = errors(x, y, 14.3), on_fma(x, y, 14.3)
    for name in ("x", "y"):
        assert 4 * fma[name] < tiles[name] < 3e-5, (name, tiles[name], fma[name])


@pytest.mark.parametrize("upstream", [1e-30, 1e-15, 1e20])
def test_weights_of_any_size(upstream):
    """Whose later parts, as they are, would be denormal."""
    x, y = (F.normalize(torch.randn(60, 40), dim=1) for _ in range(2))
    tiles, fma = errors(x, y, 5.0, upstream), on_fma(x, y, 5.0, upstream)
    for name, error in tiles.items():
        assert error <= 1.5 * fma[name] + 3e-8, (name, error, fma[name])


@pytest.mark.parametrize("value", [1e-36, 1e-30, 1e20])
def test_features_that_parts_do_not_hold_go_by_float32(value):
    """To the bit: it is the portable kernels' own arithmetic."""
    x, y = torch.randn(40, 9), torch.randn(50, 9)
    x[3] *= value
    scale = 1e-20 if value > 1 else 1.0
    rows = sk.PairwiseScores(x, y, scale=scale).logsumexp(1)
    assert library.loaded().simmim_choose(b"portable") == 0
    assert torch.equal(rows, sk.PairwiseScores(x, y, scale=scale).logsumexp(1))


def test_infinite_features_are_no_worse_than_in_float32():
    x, y = torch.randn(40, 9), torch.rand(50, 9) + 0.1
    x[3, 2] = -torch.inf
    got = sk.PairwiseScores(x, y).logsumexp(1)
    assert got[3] == -torch.inf
    assert got.isnan().sum() == 0


def test_tiles_do_run():
    """Their products round the weights, which those of the portable kernels take as they are."""

    def gradient() -> Tensor:
        case = Case(40, 50, 8, torch.bfloat16)
        return torch.autograd.grad(case.scores(sk).logsumexp(1).sum(), case.tensors["scale"])[0]

    on_tiles = gradient()
    assert library.loaded().simmim_choose(b"portable") == 0
    assert 0 < (on_tiles - gradient()).abs() < 1e-2 * on_tiles.abs()
