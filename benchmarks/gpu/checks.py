"""Correctness of a backend on the device at hand, against float64: large, odd and small, and what must not change.

Every check is a function of a Run that returns an Outcome; `CHECKS` names them all. Those in `SUITES` start another
process and are given the seconds that they may take.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import simmim_kernels as sk
from simmim_kernels.comparison.measure import extra_bytes

from .losses import LOSSES, SCALE, LossFunction
from .run import OUT_OF_MEMORY, Captured, Run, attempt, loss_and_gradients
from .spot_truth import SpotTruth, relative_error

ROOT = Path(__file__).parents[2]
SPOTS = 64


@dataclass(frozen=True)
class Outcome:
    """Whether a check passed, None where it could not be made, and its figure or the reason."""

    passed: bool | None
    figure: float | str


@dataclass(frozen=True)
class Comparison:
    """One result beside its truth."""

    what: str
    error: float
    allowed: float


def allowed_error(dtype: torch.dtype, dense_error: float = 0.0) -> float:
    """1e-10 in float64, 1e-5 in float32; in half precision twice dense PyTorch's own error, plus a rounding."""
    if dtype in (torch.float64, torch.float32):
        return {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    return 2 * dense_error + torch.finfo(dtype).eps


def judge(comparisons: list[Comparison]) -> Outcome:
    worst = max(comparisons, key=lambda c: c.error / c.allowed)
    # Written so that a NaN fails.
    passed = all(c.error <= c.allowed for c in comparisons)
    return Outcome(passed, f"{worst.what}: error {worst.error:.2g}, allowed {worst.allowed:.2g}")


def spots(size: int, device: torch.device) -> Tensor:
    """Up to SPOTS distinct random rows, the last one among them."""
    g = torch.Generator().manual_seed(1)
    some = torch.randperm(size - 1, generator=g)[: SPOTS - 1]
    return torch.cat([some, torch.tensor([size - 1])]).to(device)


def compare(
    truth: SpotTruth, found: dict[str, Tensor], dense: dict[str, Tensor] | None, at: dict[str, Tensor]
) -> list[Comparison]:
    """Comparisons of whatever was found among loss, rows, columns, x and y; the last four in the entries `at`.

    `dense` has what dense PyTorch found, in those entries alone.
    """
    rows, columns = truth.statistics()
    want = {
        "loss": truth.loss,
        "rows": lambda: rows[at["rows"]],
        "columns": lambda: columns[at["columns"]],
        "x": lambda: truth.gradient_rows(at["rows"]),
        "y": lambda: truth.transposed().gradient_rows(at["columns"]),
    }
    words = {"rows": "row statistics", "columns": "column statistics", "x": "gradient of x", "y": "gradient of y"}
    comparisons = []
    for name, got in found.items():
        entries = at["rows"] if name in ("rows", "x") else at["columns"]
        exact = want[name]()
        theirs = relative_error(dense[name], exact) if dense and name in dense else 0.0
        allowed = allowed_error(truth.x.dtype, theirs)
        comparisons.append(
            Comparison(words.get(name, name), relative_error(got if name == "loss" else got[entries], exact), allowed)
        )
    return comparisons


def spot_check(run: Run, name: str, n: int, d: int, dtype: torch.dtype = torch.bfloat16) -> Outcome:
    """A loss, its statistics and its gradients in random rows and columns."""
    loss, n, d = LOSSES[name], run.rows(n), run.width(d)
    x, y = run.features(n, d, dtype)
    inputs = (x, y, run.scale())
    some = spots(n, run.device)
    at = {"rows": some, "columns": some}
    dense = None if dtype in (torch.float32, torch.float64) else _dense_spots(loss.dense, inputs, some)
    value, dx, dy, _ = loss_and_gradients(run.on_backend(loss.ours), inputs)
    found = {"loss": value, "x": dx, "y": dy}
    with torch.no_grad():
        statistics = run.on_backend(loss.statistics)(*inputs)
    found |= dict(zip(("rows", "columns"), statistics, strict=False))
    return judge(compare(loss.truth(x, y, SCALE), found, dense, at))


def _dense_spots(loss: LossFunction, inputs: tuple[Tensor, ...], some: Tensor) -> dict[str, Tensor] | None:
    """Dense PyTorch's loss and gradient rows; None where they do not fit, and ours are then held to a rounding."""

    def rows() -> dict[str, Tensor]:
        value, dx, dy, _ = loss_and_gradients(loss, inputs)
        return {"loss": value, "x": dx[some], "y": dy[some]}

    found, failure = attempt(rows)
    if failure not in (None, OUT_OF_MEMORY):
        raise RuntimeError(f"dense PyTorch: {failure}")
    return found


def many_elements(run: Run) -> Outcome:
    """x has more than 2^31 elements: the last rows' statistics and gradients, and every column's."""
    n, m, d = run.rows(2**22 + 3), run.rows(300), run.width(520)
    free, needed = run.free_bytes(), 30e9
    if free is not None and free < needed:
        return Outcome(None, f"needs {needed / 1e9:.0f} GB of free memory, has {free / 1e9:.0f}")
    x, y = run.features(n, d, torch.bfloat16, m=m)
    scale = run.scale()

    def ours() -> tuple[Tensor, ...]:
        rows, columns = sk.PairwiseScores(x, y, scale=scale).logsumexps()
        return rows, columns, *torch.autograd.grad(rows.mean() + columns.mean(), (x, y))

    rows, columns, dx, dy = run.on_backend(ours)()
    truth = SpotTruth(x, y, SCALE, row_weight=1 / n, column_weight=1 / m)
    at = {
        "rows": torch.arange(max(0, n - SPOTS), n, device=run.device),
        "columns": torch.arange(m, device=run.device),
    }
    return judge(compare(truth, {"rows": rows, "columns": columns, "x": dx, "y": dy}, None, at))


def every_option(run: Run, dtype: torch.dtype) -> Outcome:
    """Ids, clamp, biases and positives at once, N = 1000, M = 77, against dense float64 autograd."""
    n, m, d = run.rows(1000), run.rows(77), run.width(33)
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    low = torch.float32
    leaves = [t.to(dtype) for t in (normal(n, d) / d**0.25, normal(m, d) / d**0.25)]
    leaves += [t.to(low) for t in (torch.tensor(0.7), normal(n), normal(m))]
    leaves = [t.to(run.device).requires_grad_() for t in leaves]
    row_ids, col_ids = (torch.randint(0, 30, (size,), generator=g).to(run.device) for size in (n, m))
    positives = torch.randint(0, m, (n,), generator=g).to(run.device)

    def ours(x, y, scale, row_bias, col_bias) -> tuple[Tensor, Tensor]:
        scores = sk.PairwiseScores(x, y, scale=scale, row_bias=row_bias, col_bias=col_bias, positives=positives)
        return scores.clamp(-3, 3).exclude(row_ids, col_ids, keep_joint=True).logsumexps()

    def exact(x, y, scale, row_bias, col_bias) -> tuple[Tensor, Tensor]:
        s = (scale * x @ y.T + row_bias[:, None] + col_bias).clamp(-3, 3)
        joint = positives[:, None] == torch.arange(m, device=run.device)
        s = s.masked_fill((row_ids[:, None] == col_ids) & ~joint, -torch.inf)
        return s.logsumexp(1), s.logsumexp(0)

    def values_and_gradients(function, tensors) -> list[Tensor]:
        values = [v.double() for v in function(*tensors)]
        total = sum((v * torch.linspace(0.5, 1.5, len(v), dtype=v.dtype, device=v.device)).sum() for v in values)
        return [v.detach() for v in values] + list(torch.autograd.grad(total, tensors))

    got = values_and_gradients(run.on_backend(ours), leaves)
    want = values_and_gradients(exact, [t.detach().double().requires_grad_() for t in leaves])
    dense = values_and_gradients(exact, leaves)
    names = ["row statistics", "column statistics", *(f"gradient of {k}" for k in ("x", "y", "scale", "a", "b"))]
    return judge(
        [
            Comparison(name, relative_error(a, b), allowed_error(dtype, relative_error(c, b)))
            for name, a, b, c in zip(names, got, want, dense, strict=True)
        ]
    )


def determinism(run: Run) -> Outcome:
    """Under torch.use_deterministic_algorithms two runs give the same bits; the figure says what that costs."""
    differing = []
    with _Deterministic():
        for n, d in ((16_384, 64), (8_192, 768), (4_099, 64)):
            difference = _run_to_run(run, n, d)
            if difference != 0:
                differing.append(f"N={n}, d={d}: {difference:.2g}")
    return Outcome(not differing, "; ".join(differing) or f"takes {_price_of_determinism(run):.3g} times as long")


def run_to_run(run: Run) -> Outcome:
    """Largest relative difference of two runs with no mode set."""
    largest = max(_run_to_run(run, n, d) for n, d in ((16_384, 64), (8_192, 768)))
    return Outcome(largest <= allowed_error(torch.bfloat16), largest)


def _run_to_run(run: Run, n: int, d: int) -> float:
    inputs = (*run.features(run.rows(n), run.width(d), torch.bfloat16), run.scale())
    first, second = (loss_and_gradients(run.on_backend(LOSSES["clip"].ours), inputs) for _ in range(2))
    return max(relative_error(b, a.double()) for a, b in zip(first, second, strict=True))


class _Deterministic:
    """PyTorch's deterministic mode, for a block."""

    def __enter__(self) -> None:
        self._before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_) -> None:
        torch.use_deterministic_algorithms(self._before)


def _price_of_determinism(run: Run) -> float:
    """Seconds with the mode over seconds without, interleaved."""
    inputs = (*run.features(run.rows(32_768), run.width(128), torch.bfloat16), run.scale())
    call = partial(loss_and_gradients, run.on_backend(LOSSES["clip"].ours), inputs)
    call()
    ratios = []
    for _ in range(10):
        without = run.clock(call)[0]
        with _Deterministic():
            ratios.append(run.clock(call)[0] / without)
    return median(ratios)


def memory_growth(run: Run) -> Outcome:
    """Beyond the inputs, a batch of twice the size takes at most twice the memory; the figure is in MB."""
    if run.dry and run.backend == "triton":
        return Outcome(None, "Triton's interpreter is too slow for sizes that show it")
    sizes = (1024, 2048, 4096) if run.dry else (16_384, 32_768, 65_536)
    figures, passed = [], True
    for d in (64, 512):
        extra = [_extra_memory(run, n, run.width(d)) for n in sizes]
        passed &= all(large <= 2 * small for small, large in pairwise(extra))
        figures.append(f"d={d}: " + ", ".join(f"{e / 1e6:.1f}" for e in extra))
    return Outcome(passed, "; ".join(figures))


def _extra_memory(run: Run, n: int, d: int) -> int:
    inputs = (*run.features(n, d, torch.bfloat16), run.scale())
    call = partial(loss_and_gradients, run.on_backend(LOSSES["clip"].ours), inputs)
    # Workspaces that a first call makes for good are no growth.
    call()
    return extra_bytes(call, run.device)


def graph_capture(run: Run) -> Outcome:
    """A captured forward and backward, replayed on other values, gives what an eager one does."""
    if run.dry:
        return Outcome(None, "needs a CUDA device")
    inputs = (*run.features(1000, 72, torch.float32), run.scale())
    call = partial(loss_and_gradients, run.on_backend(LOSSES["clip"].ours), inputs)
    captured = Captured(call)
    others = run.features(1000, 72, torch.float32, seed=1)
    with torch.no_grad():
        for static, other in zip(inputs, others, strict=False):
            static.copy_(other)
    replayed = [t.clone() for t in captured.replay()]
    return _same(replayed, call())


def other_stream(run: Run) -> Outcome:
    """On a stream that is still busy making the inputs: work that went to the default stream would miss them."""
    if run.dry:
        return Outcome(None, "needs a CUDA device")
    values = run.features(1000, 72, torch.float32)
    inputs = (*(torch.zeros_like(v).requires_grad_() for v in values), run.scale())
    loss = run.on_backend(LOSSES["clip"].ours)
    want = loss_and_gradients(loss, (*values, run.scale()))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(200_000_000)
        for late, value in zip(inputs, values, strict=False):
            late.copy_(value)
        with torch.enable_grad():
            got = loss_and_gradients(loss, inputs)
    stream.synchronize()
    return _same(got, want)


def second_device(run: Run) -> Outcome:
    """On a device that is not the current one."""
    if run.dry or torch.cuda.device_count() < 2:
        return Outcome(None, "needs two CUDA devices")
    values = (*run.features(1000, 72, torch.float32), run.scale())
    elsewhere = tuple(v.detach().to("cuda:1").requires_grad_() for v in values)
    loss = run.on_backend(LOSSES["clip"].ours)
    got = loss_and_gradients(loss, elsewhere)
    return _same([t.to(run.device) for t in got], loss_and_gradients(loss, values))


def _same(got, want) -> Outcome:
    names = ("loss", "gradient of x", "gradient of y", "gradient of the scale")
    allowed = allowed_error(torch.float32)
    return judge(
        [Comparison(name, relative_error(a, b.double()), allowed) for name, a, b in zip(names, got, want, strict=True)]
    )


def gpu_tests(run: Run, seconds: float) -> Outcome:
    """tests/test_gpu.py and that of CUDA C++, which compare every statistic and option, in a process of their own."""
    if importlib.util.find_spec("pytest") is None:
        return Outcome(False, "pytest missing")
    files = ("tests/test_gpu.py", "tests/test_cuda_gpu.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    if importlib.util.find_spec("xdist") is not None and not run.dry:
        # Compiling takes most of the time, and the host has more than one core for it.
        command += ["-n", str(min(14, os.cpu_count() or 1))]
    finished = _finish(command, seconds)
    if finished is None:
        return Outcome(False, f"not finished in {seconds:.0f} s")
    lines = finished.stdout.strip().splitlines() or finished.stderr.strip().splitlines() or ["no output"]
    if run.dry and finished.returncode == 0 and " passed" not in lines[-1]:
        return Outcome(None, f"needs a CUDA device: {lines[-1]}")
    return Outcome(finished.returncode == 0 and " passed" in lines[-1], lines[-1])


_MEMORY_ERRORS = 9


def memory_checker(run: Run, seconds: float) -> Outcome:
    """Small ragged problems under compute-sanitizer's memcheck, where it is installed."""
    if run.dry:
        return Outcome(None, "needs a CUDA device")
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        return Outcome(None, "not installed")
    # API errors that PyTorch provokes and handles are not what is looked for.
    options = ["--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", str(_MEMORY_ERRORS)]
    target = [sys.executable, "-m", "benchmarks.gpu", "--sanitizer-target", "--backend", run.backend]
    # With a tensor in an allocation of its own, what lies past its end is nobody's.
    finished = _finish([tool, *options, *target], min(90.0, seconds), PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if finished is None:
        return Outcome(None, "timed out")
    output = finished.stdout + finished.stderr
    if "Device not supported" in output:
        return Outcome(None, "compute-sanitizer does not support this device here")
    if finished.returncode == 0:
        return Outcome(True, "no errors")
    found = [line for line in output.splitlines() if "Invalid" in line or "ERROR SUMMARY" in line or "Error:" in line]
    return Outcome(False, "; ".join(found[:2] + found[-1:]) or f"exit status {finished.returncode}")


def sanitizer_target(run: Run) -> None:
    """What runs under the memory checker: sizes that no block divides, every kind of kernel, both passes."""
    for dtype in (torch.bfloat16, torch.float32):
        for n, d in ((67, 10), (131, 72), (200, 300)):
            inputs = (*run.features(n, d, dtype), run.scale())
            for loss in LOSSES.values():
                loss_and_gradients(run.on_backend(loss.ours), inputs)
        every_option(run, dtype)
    if not run.dry:
        torch.cuda.synchronize()


def _finish(command: list[str], seconds: float, **environment: str) -> subprocess.CompletedProcess | None:
    """A command that has ended, run from the repository's root; None where it did not end in time."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    try:
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(1.0, seconds)
        )
    except subprocess.TimeoutExpired:
        return None


CHECKS: dict[str, Callable[[Run], Outcome]] = {
    "clip, N=65,536, d=768, bfloat16": partial(spot_check, name="clip", n=65_536, d=768),
    "siglip, N=65,536, d=768, bfloat16": partial(spot_check, name="siglip", n=65_536, d=768),
    "softmax over rows, N=65,536, d=768, bfloat16": partial(spot_check, name="info_nce", n=65_536, d=768),
    "clip, N=32,767, d=640, bfloat16": partial(spot_check, name="clip", n=32_767, d=640),
    "clip, N=16,381, d=512, float32": partial(spot_check, name="clip", n=16_381, d=512, dtype=torch.float32),
    "siglip, N=8,192, d=10, float32": partial(spot_check, name="siglip", n=8_192, d=10, dtype=torch.float32),
    "clip, N=8,192, d=10, float32": partial(spot_check, name="clip", n=8_192, d=10, dtype=torch.float32),
    "more than 2^31 elements": many_elements,
    "ids, clamp, biases, positives, float32": partial(every_option, dtype=torch.float32),
    "ids, clamp, biases, positives, bfloat16": partial(every_option, dtype=torch.bfloat16),
    "determinism": determinism,
    "run to run": run_to_run,
    "memory growth": memory_growth,
    "CUDA graph": graph_capture,
    "other stream": other_stream,
    "second device": second_device,
}

SUITES: dict[str, Callable[[Run, float], Outcome]] = {
    "compute-sanitizer memcheck": memory_checker,
    "tests/test_gpu.py": gpu_tests,
}


def attempted(check: Callable[[], Outcome]) -> Outcome:
    """The outcome of a check; one that raises has failed."""
    outcome, failure = attempt(check)
    return Outcome(False, failure) if outcome is None else outcome
