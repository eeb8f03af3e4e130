"""Times of our losses beside dense PyTorch, its compiled form and other packages: interleaved, from a cold L2 cache."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

import simmim_kernels as sk
from simmim_kernels.comparison.measure import extra_bytes

from .losses import LOSSES, SCALE, Loss, LossFunction
from .peers import Found
from .run import Captured, Deadline, Run, attempt
from .spot_truth import relative_error

# A contender is timed until it has taken this long, within these numbers of rounds.
MILLISECONDS_EACH = 500.0
FEWEST_ROUNDS, MOST_ROUNDS = 3, 50
# One that takes longer than this runs once: what it shows needs no median.
SLOW = 1000.0
SPOTS = 16
# Above this many rows the tiled backend is slow enough to take the time of other cases.
MOST_TILED_ROWS = 32_768
# A case of a million rows wants this much free memory (bytes), and may take this much more than it is given (MB).
HUGE_NEEDS, HUGE_EXTRA_MB = 70e9, 1000
# Timed beside each other, where the machine runs them.
GPU_BACKENDS = ("cuda", "triton")
DENSE, COMPILED = "dense PyTorch", "torch.compile"


@dataclass(frozen=True)
class TimedCase:
    """One loss at one size. `passes` is "both", "forward" (no gradients wanted) or "both, graph" (a CUDA graph).

    `precision` is PyTorch's float32_matmul_precision. A `huge` case runs ours alone, once.
    """

    loss: str
    n: int
    d: int
    passes: str = "both"
    dtype: torch.dtype = torch.bfloat16
    precision: str = "highest"
    huge: bool = False

    @property
    def name(self) -> str:
        """The loss; and, where a product in float32 depends on it, the precision."""
        return f"{self.loss}, {self.precision}" if self.dtype == torch.float32 else self.loss

    @property
    def id(self) -> str:
        return f"{self.name}, N={self.n:,}, d={self.d}, {_word(self.dtype)}, {self.passes}"

    @property
    def graph(self) -> bool:
        return self.passes == "both, graph"

    @property
    def product(self) -> str:
        """The key of `gemm_tflops` whose rate bounds this case."""
        return "tf32" if self.dtype == torch.float32 and self.precision == "high" else _word(self.dtype)


# Those that matter most first: a run that is short of time leaves out the last.
CASES = [
    TimedCase("clip", 65_536, 768),
    TimedCase("siglip", 65_536, 768),
    TimedCase("clip", 65_536, 512),
    *(TimedCase("clip", n, 512) for n in (256, 1024, 4096)),
    *(TimedCase("clip", n, 512, passes="both, graph") for n in (256, 1024, 4096)),
    TimedCase("clip", 32_768, 128),
    TimedCase("clip", 32_768, 64),
    TimedCase("clip", 16_384, 256),
    *(TimedCase("clip", 16_384, 512, dtype=torch.float32, precision=p) for p in ("highest", "high")),
    TimedCase("info_nce", 32_768, 512),
    TimedCase("nt_xent", 16_384, 128),
    TimedCase("clip", 1_048_576, 512, huge=True),
    TimedCase("clip", 65_536, 768, passes="forward"),
    TimedCase("siglip", 65_536, 768, passes="forward"),
    TimedCase("clip", 65_536, 512, passes="forward"),
    TimedCase("clip", 32_768, 128, passes="forward"),
    TimedCase("clip", 32_768, 64, passes="forward"),
    TimedCase("clip", 16_384, 256, passes="forward"),
]


@dataclass(frozen=True)
class Contender:
    """One way of computing a case's loss."""

    name: str
    role: str
    """ "backend" for this package's, "peer" for all others."""
    make: Callable[[], LossFunction]
    first_call: float = 5.0
    """Seconds that its first call may take: compiling, mostly."""


@dataclass
class Entry:
    """A contender's figures in one case, as they come in."""

    contender: Contender
    call: Callable[[], Any] | None = None
    rounds: int = 0
    milliseconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    error: float | None = None
    failure: str | None = None


def measure_gemm(run: Run) -> dict[str, float]:
    """TFLOP/s of a product of two square matrices of random data, by dtype; "tf32" is float32 with TF32 allowed."""
    size = 64 if run.dry else 8192
    wanted = {
        "bfloat16": (torch.bfloat16, "highest"),
        "tf32": (torch.float32, "high"),
        "float32": (torch.float32, "highest"),
    }
    found = {}
    for name, (dtype, precision) in wanted.items():
        a, b = (torch.randn(size, size, device=run.device, dtype=dtype) for _ in range(2))
        with _matmul_precision(precision):
            found[name] = 2 * size**3 / _median_seconds(run, partial(torch.mm, a, b)) / 1e12
    return found


def measure_copy(run: Run) -> float:
    """TB/s of a copy from the device to itself, bytes read and bytes written both counted."""
    source = torch.empty(2**16 if run.dry else 2**30, dtype=torch.uint8, device=run.device).random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / _median_seconds(run, partial(target.copy_, source)) / 1e12


def _median_seconds(run: Run, call: Callable[[], Any], repeats: int = 20) -> float:
    for _ in range(3):
        call()
    return median(run.clock(call)[0] for _ in range(repeats)) / 1e3


def time_case(
    case: TimedCase, run: Run, deadline: Deadline, gemm: dict[str, float], peers: list[Found]
) -> tuple[list[dict], list[dict]]:
    """A row for every contender, and what there was no time or no place for, each with the reason."""
    reason = _impossible(case, run)
    if reason is not None:
        return [], [{"name": case.id, "reason": reason}]
    # A compiled function is compiled anew for each case: one that has seen too many shapes quietly runs uncompiled.
    torch.compiler.reset()
    if not run.dry:
        torch.cuda.empty_cache()
    with _matmul_precision(case.precision):
        entries, not_run = _prepare_all(case, run, deadline, peers)
        _race(entries, run, deadline)
    return [_row(case, run, entry, gemm) for entry in entries], not_run


def _impossible(case: TimedCase, run: Run) -> str | None:
    if case.graph and run.dry:
        return "needs a CUDA device"
    free = run.free_bytes()
    if case.huge and free is not None and free < HUGE_NEEDS:
        return f"needs {HUGE_NEEDS / 1e9:.0f} GB of free memory, has {free / 1e9:.0f}"
    return None


def _contenders(case: TimedCase, run: Run, peers: list[Found]) -> Iterator[Contender]:
    loss = LOSSES[case.loss]
    yield Contender(run.backend, "backend", lambda: run.on_backend(loss.ours), first_call=20)
    if case.huge:
        return
    if not case.graph:
        for other in GPU_BACKENDS:
            if other != run.backend and sk.backends()[other] == "available":
                yield Contender(other, "backend", partial(run.on_backend, loss.ours, other), first_call=20)
        if run.backend != "tiled" and case.n <= MOST_TILED_ROWS:
            yield Contender("tiled", "backend", lambda: run.on_backend(loss.ours, "tiled"))
        yield Contender(DENSE, "peer", lambda: loss.dense)
    if not run.dry:
        yield Contender(COMPILED, "peer", lambda: torch.compile(loss.dense, dynamic=False), first_call=30)
    for found in peers:
        if found.module is not None and case.loss in found.peer.losses and not case.graph:
            yield Contender(found.peer.name, "peer", partial(_peer_loss, found, case), first_call=20)


def _peer_loss(found: Found, case: TimedCase) -> LossFunction:
    reason = found.peer.limit(case.n, case.d)
    if reason is not None:
        raise ValueError(reason)
    return found.peer.losses[case.loss](found.module, SCALE)


def _prepare_all(case: TimedCase, run: Run, deadline: Deadline, peers: list[Found]) -> tuple[list[Entry], list[dict]]:
    """Every contender called, its memory and error measured, and the number of its rounds chosen."""
    n, d = run.rows(case.n), run.width(case.d)
    inputs = (*run.features(n, d, case.dtype), run.scale())
    gradient_rows = _exact_gradient_rows(LOSSES[case.loss], inputs) if case.passes == "both" and not case.huge else None
    entries, not_run = [], []
    for contender in _contenders(case, run, peers):
        if run.skips(contender.name):
            continue
        if deadline.left() < contender.first_call:
            not_run.append({"name": f"{case.id}, {contender.name}", "reason": "no time left"})
            if contender.name == run.backend:
                break  # the others are there to be compared with
            continue
        entry = Entry(contender)
        _, entry.failure = attempt(partial(_prepare, entry, case, run, inputs, gradient_rows))
        entries.append(entry)
    return entries, not_run


def _exact_gradient_rows(loss: Loss, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """A few rows of x, and the float64 gradient there."""
    x, y, _ = inputs
    some = torch.linspace(0, len(x) - 1, min(SPOTS, len(x)), device=x.device).long()
    return some, loss.truth(x, y, SCALE).gradient_rows(some)


def _prepare(
    entry: Entry,
    case: TimedCase,
    run: Run,
    inputs: tuple[Tensor, ...],
    gradient_rows: tuple[Tensor, Tensor] | None,
) -> None:
    loss = entry.contender.make()
    call = partial(_forward if case.passes == "forward" else _both, loss, inputs)
    if case.graph:
        call = Captured(call).replay
        call()
        entry.rounds = _rounds(run, run.clock(call)[0])
    else:
        _warm_up(loss, call, case, run)
        timed: list[tuple[float, Any]] = []
        extra = extra_bytes(lambda: timed.append(run.clock(call)), run.device)
        (milliseconds, returned), gradients = timed[0], _bytes(inputs) if case.passes == "both" else 0
        entry.peak_mb = (extra - gradients) / 1e6
        if gradient_rows is not None:
            some, exact = gradient_rows
            entry.error = relative_error(returned[0][some], exact)
        entry.rounds = 0 if case.huge else _rounds(run, milliseconds)
        if case.huge:
            entry.milliseconds.append(milliseconds)
    entry.call = call


def _warm_up(loss: LossFunction, call: Callable[[], Any], case: TimedCase, run: Run) -> None:
    """Compiles what is compiled at first use: a huge case does it on fewer rows of the same width."""
    if case.huge:
        _both(loss, (*run.features(run.rows(8192), run.width(case.d), case.dtype), run.scale()))
    else:
        call()


def _forward(loss: LossFunction, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return loss(*inputs)


def _both(loss: LossFunction, inputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    # A peer may take the scale for a constant.
    return torch.autograd.grad(loss(*inputs), inputs, allow_unused=True)


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _rounds(run: Run, milliseconds: float) -> int:
    if milliseconds > SLOW:
        return 1
    return FEWEST_ROUNDS if run.dry else int(min(MOST_ROUNDS, max(FEWEST_ROUNDS, MILLISECONDS_EACH / milliseconds)))


def _race(entries: list[Entry], run: Run, deadline: Deadline) -> None:
    """Times the contenders in turn; one with fewer rounds drops out early, one that fails keeps no time."""
    for turn in range(max((entry.rounds for entry in entries), default=0)):
        for entry in entries:
            if entry.failure is None and turn < entry.rounds and (turn == 0 or deadline.left() > 0):
                timed, entry.failure = attempt(partial(run.clock, entry.call))
                if timed is not None:
                    entry.milliseconds.append(timed[0])


def _row(case: TimedCase, run: Run, entry: Entry, gemm: dict[str, float]) -> dict:
    n, d = run.rows(case.n), run.width(case.d)
    milliseconds = median(entry.milliseconds) if entry.milliseconds and entry.failure is None else None
    fraction = None
    if milliseconds is not None:
        fraction = LOSSES[case.loss].required_flop(n, d, case.passes) / (milliseconds * 1e9) / gemm[case.product]
    return {
        "name": case.name,
        entry.contender.role: entry.contender.name,
        "n": n,
        "m": n,
        "d": d,
        "dtype": _word(case.dtype),
        "pass": case.passes,
        "ms": milliseconds,
        "rounds": len(entry.milliseconds),
        "peak_mb": entry.peak_mb,
        "gemm_fraction": fraction,
        "error": entry.error,
        "failure": entry.failure,
    }


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
