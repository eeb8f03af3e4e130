"""bfloat16 on matrix tiles (Intel's AMX), with the tiles emulated: every index that leads to them, on any processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_other_dtypes_take_no_tiles(dtype):
    check_statistic(sk, Case(37, 53, 45, dtype), "logsumexp", 1, "native")


def test_tiles_do_run():
    """Their products round the weights, which those of the portable kernels take as they are."""

    def gradient() -> torch.Tensor:
        case = Case(40, 50, 8, torch.bfloat16)
        return torch.autograd.grad(case.scores(sk).logsumexp(1).sum(), case.tensors["scale"])[0]

    on_tiles = gradient()
    assert library.loaded().simmim_choose(b"portable") == 0
    assert 0 < (on_tiles - gradient()).abs() < 1e-2 * on_tiles.abs()
