"""What every part of a GPU run shares: device, sizes, inputs, clocks, the deadline, and how failures are kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import simmim_kernels as sk

from .losses import SCALE, LossFunction

try:
    from triton.errors import TritonError
except ImportError:
    # Without Triton nothing can raise its errors; RuntimeError stands in, and is listed below anyway.
    TritonError = RuntimeError

# What a kernel that does not compile, does not fit or computes nonsense raises, in this package or in a peer's.
# Every check and every contender of a timed case runs under `attempt` alone, so that one failure is recorded in its
# place and the rest of a run on a rented machine is not lost. KeyboardInterrupt and MemoryError still end it.
FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    AttributeError,
    LookupError,
    ArithmeticError,
    NameError,
    ImportError,
    OSError,
    TritonError,
)

OUT_OF_MEMORY = "out of memory"


def attempt(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a function returns, and None; or None, and the failure in words."""
    try:
        return function(), None
    except torch.cuda.OutOfMemoryError:
        return None, OUT_OF_MEMORY
    except FAILURES as error:
        # PyTorch says what happened in the first line, Triton's compiler in the last.
        lines = str(error).strip().splitlines() or [""]
        return None, f"{type(error).__name__}: " + " ... ".join(
            line[:300] for line in dict.fromkeys((lines[0], lines[-1]))
        )


class Deadline:
    """A moment until which there is time."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()

    def earlier(self, seconds: float) -> "Deadline":
        return Deadline(self.left() - seconds)


@dataclass
class Run:
    """One run of the command. Without a CUDA device it is a dry run: tiny sizes, the same steps."""

    device: torch.device
    backend: str
    only: str = ""
    skip: Sequence[str] = ()
    deadline: Deadline = field(default_factory=lambda: Deadline(480))

    @property
    def dry(self) -> bool:
        return self.device.type != "cuda"

    def wants(self, name: str) -> bool:
        return self.only.lower() in name.lower()

    def skips(self, contender: str) -> bool:
        return any(text.lower() in contender.lower() for text in self.skip)

    def rows(self, n: int) -> int:
        """A number of rows: itself, or in a dry run one between 32 and 92, odd and even alike."""
        return 32 + n % 61 if self.dry else n

    def width(self, d: int) -> int:
        """A width: itself, or in a dry run one between 8 and 24."""
        return 8 + d % 17 if self.dry else d

    def features(self, n: int, d: int, dtype: torch.dtype, m: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """Normalised x (n, d), and y: a noisy copy of x, or (m, d) of its own; both require grad."""
        g = torch.Generator(self.device).manual_seed(seed)

        def rows(count: int) -> Tensor:
            made = torch.randn(count, d, generator=g, device=self.device, dtype=dtype)
            return F.normalize(made, dim=1)

        x = rows(n)
        y = F.normalize(x + rows(n), dim=1) if m is None else rows(m)
        return x.requires_grad_(), y.requires_grad_()

    def scale(self) -> Tensor:
        return torch.tensor(SCALE, device=self.device, requires_grad=True)

    def on_backend(self, function: Callable, backend: str | None = None) -> LossFunction:
        """A function of the package, on this run's backend or another."""

        def call(*arguments):
            with sk.use_backend(backend or self.backend):
                return function(*arguments)

        return call

    @cached_property
    def clock(self) -> "CudaClock | WallClock":
        return WallClock() if self.dry else CudaClock(self.device)

    def free_bytes(self) -> int | None:
        """Memory that the device has left, what PyTorch keeps in reserve included; None on a CPU."""
        if self.dry:
            return None
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]


class CudaClock:
    """Milliseconds of one call on an idle device with a cold L2 cache, by events around the call alone."""

    def __init__(self, device: torch.device):
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], Any]) -> tuple[float, Any]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        # Work that is still running would hide the time that the host takes to launch the call.
        torch.cuda.synchronize()
        start.record()
        returned = call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end), returned


class WallClock:
    """Milliseconds of one call by the host's clock."""

    def __call__(self, call: Callable[[], Any]) -> tuple[float, Any]:
        start = time.perf_counter()
        returned = call()
        return 1e3 * (time.perf_counter() - start), returned


class Captured:
    """A call as a CUDA graph: `replay()` runs it again on the same tensors and returns what it wrote."""

    def __init__(self, call: Callable[[], Any]):
        # Kernels compile and workspaces are made in calls that are not captured, on a stream other than the default.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._returned = call()

    def replay(self) -> Any:
        self._graph.replay()
        return self._returned


def loss_and_gradients(loss: LossFunction, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The loss and its gradients; None for an input that the loss, a peer's, does not differentiate."""
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs, allow_unused=True)
