"""The native backend beside `tiled`, PyTorch's chunked cross entropy and the processor's own peak."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import torch
import torch.nn.functional as F

import setup
import simmim_kernels as sk
from simmim_kernels.backends.native.library import in_use, why_not
from simmim_kernels.comparison.measure import forward_backward, interleaved_seconds
from simmim_kernels.problem import Problem

from .cases import clip

SOURCES = Path(setup.__file__).parent / setup.SOURCES
pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"the native library: {why_not()}")


def on(backend: str, loss):
    def run(*inputs):
        with sk.use_backend(backend):
            return loss(*inputs)

    return run


def ratio(seconds: dict[str, list[float]], a: str, b: str) -> float:
    return median(u / v for u, v in zip(seconds[a], seconds[b], strict=True))


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Callable[..., float]:
    """Compiles a C++ program with flags, runs it on as many threads as PyTorch has, and reads the number it prints."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("the peak and the products are measured by C++ programs, and there is no compiler")

    def run(source: str, flags: Sequence[str], *arguments: int | str) -> float:
        built = tmp_path_factory.mktemp("program") / "program"
        path = Path(__file__).with_name(source)
        command = [compiler, "-std=c++17", "-O3", "-fopenmp", *flags, path, "-o", built]
        subprocess.run(command, check=True)
        given = map(str, (torch.get_num_threads(), *arguments))
        return float(subprocess.run([built, *given], capture_output=True, check=True).stdout)

    return run


@pytest.fixture(scope="module")
def peak(program) -> float:
    """GFLOP/s of multiply-adds."""
    return program("fma_peak.cpp", ["-march=native"])


@pytest.fixture(scope="module")
def peak_of_tiles(program) -> float | str:
    """GFLOP/s of products of bfloat16 on Intel's AMX, or why there are none."""
    flags = ["-march=native", "-mamx-tile", "-mamx-bf16", "-DSIMMIM_ISA=avx512_amx", f"-I{SOURCES}"]
    try:
        return program("fma_peak.cpp", flags, "tiles")
    except subprocess.CalledProcessError as error:
        return error.stderr.decode().strip() if error.stderr else "the compiler has no AMX"


@pytest.mark.parametrize("d", [512, 64])
def test_products(d, program, peak, benchmark):
    """The three products of a tile, without all else."""
    sets = {each.name: each for every in setup.INSTRUCTION_SETS.values() for each in every}
    flags = [*sets[in_use()].options, f"-I{SOURCES}"]
    rate = benchmark.pedantic(program, ("native_products.cpp", flags, d), rounds=1)
    benchmark.extra_info.update({"case": "native products", "d": d, "gflops": rate, "of_peak": rate / peak})


@pytest.mark.parametrize(("n", "d"), [(512, 512), (2048, 512), (8192, 512), (8192, 64), (8192, 16)])
def test_clip(n, d, peak, benchmark):
    inputs = clip(n, d).inputs()
    functions = {name: partial(forward_backward, on(name, sk.clip_loss), inputs) for name in ("native", "tiled")}
    seconds = interleaved_seconds(functions, 5 if n > 2048 else 31)
    rate = 8 * n * n * d / median(seconds["native"]) / 1e9
    found = {
        "case": "native clip",
        "n": n,
        "d": d,
        "seconds": median(seconds["native"]),
        "over_tiled": ratio(seconds, "native", "tiled"),
        "gflops": rate,
        "of_peak": rate / peak,
        "peak_gflops": peak,
    }
    benchmark.extra_info.update(found)
    benchmark.pedantic(functions["native"], rounds=1)


@pytest.mark.parametrize(("n", "d"), [(64, 128), (512, 128), (2048, 512), (4096, 128)])
def test_symmetric_scores(n, d, benchmark, monkeypatch):
    """NT-Xent of 2N x 2N scores by one half of them, and by all of them as of two different tensors."""
    inputs = clip(n, d).inputs()[:2]
    half = Problem.symmetric

    def run(symmetric: property):
        monkeypatch.setattr(Problem, "symmetric", symmetric)
        return forward_backward(on("native", sk.nt_xent_loss), inputs)

    functions = {"half": partial(run, half), "whole": partial(run, property(lambda problem: False))}
    seconds = interleaved_seconds(functions, 7 if n > 512 else 31)
    found = {
        "case": "native nt_xent",
        "n": n,
        "d": d,
        "seconds": median(seconds["half"]),
        "over_whole": ratio(seconds, "half", "whole"),
    }
    benchmark.extra_info.update(found)
    benchmark.pedantic(functions["half"], rounds=1)


def test_linear_cross_entropy(benchmark):
    """One direction, as PyTorch's chunked one."""
    x, y, _ = clip(8192, 512).inputs()
    target, chunks = torch.arange(8192), torch.nn.LinearCrossEntropyOptions()
    functions = {
        "native": lambda: forward_backward(on("native", lambda x, y: sk.linear_cross_entropy(x, y, target)), (x, y)),
        "torch": lambda: forward_backward(lambda x, y: F.linear_cross_entropy(x, y, target, options=chunks), (x, y)),
    }
    seconds = interleaved_seconds(functions, 3)
    found = {
        "case": "native linear_cross_entropy",
        "n": 8192,
        "d": 512,
        "seconds": median(seconds["native"]),
        "over_torch": ratio(seconds, "native", "torch"),
    }
    benchmark.extra_info.update(found)
    benchmark.pedantic(functions["native"], rounds=1)


def test_bfloat16(peak_of_tiles, benchmark):
    single = clip(4096, 512).inputs()
    half = tuple(t.detach().bfloat16().requires_grad_() for t in single[:2]) + single[2:]
    loss = on("native", sk.clip_loss)
    seconds = interleaved_seconds(
        {"half": partial(forward_backward, loss, half), "single": partial(forward_backward, loss, single)}, 5
    )
    found = {
        "case": "native bfloat16",
        "n": 4096,
        "d": 512,
        "over_float32": ratio(seconds, "half", "single"),
        "gflops": 8 * 4096**2 * 512 / median(seconds["half"]) / 1e9,
        "peak_of_tiles_gflops": peak_of_tiles,
    }
    benchmark.extra_info.update(found)
    benchmark.pedantic(partial(forward_backward, loss, half), rounds=1)
