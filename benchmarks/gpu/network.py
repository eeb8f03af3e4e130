"""The concatenated MLP on a GPU: Triton kernels beside dense float64, and beside dense PyTorch's time and memory.

python -m benchmarks.gpu.network RESULTS.json [SECONDS]

Rewrites the file after every step, and begins none after SECONDS (35).
"""

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import simmim_kernels as sk
from simmim_kernels.backends.triton import configurations
from simmim_kernels.backends.triton.configurations import Tile
from simmim_kernels.comparison.measure import extra_bytes

from ..cases import mlp_scores
from .run import attempt

DEVICE, DIM = "cuda", 32
SMALLER = Tile(8, 8, 32, 4, 4), Tile(8, 8, 32, 8, 3)


def inputs(n: int, m: int, hidden: int, layers: int, dtype: torch.dtype) -> tuple[sk.MLPCritic, Tensor, Tensor]:
    torch.manual_seed(0)
    critic = sk.MLPCritic(DIM, DIM, hidden=hidden, layers=layers).to(DEVICE, dtype)
    x, y = (torch.randn(size, DIM, device=DEVICE).to(dtype).requires_grad_() for size in (n, m))
    return critic, x, y


def values_and_gradients(rows: Tensor, columns: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Log-sum-exps, and gradients in which no two rows count alike."""

    def weighted(t: Tensor) -> Tensor:
        return (t * torch.linspace(0.5, 1.5, len(t), device=t.device, dtype=t.dtype)).sum()

    found = torch.autograd.grad(weighted(rows) + weighted(columns), leaves)
    return [rows.detach(), columns.detach(), *found]


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max())


def check(n: int, m: int, hidden: int, layers: int, dtype: torch.dtype) -> dict:
    """The errors of ours and of dense PyTorch in the same dtype, each relative to the truth's largest entry."""
    critic, x, y = inputs(n, m, hidden, layers, dtype)
    leaves = [x, y, *critic.parameters()]
    got = values_and_gradients(*critic(x, y).logsumexps(backend="triton"), leaves)
    s = mlp_scores(critic, x, y)
    low = values_and_gradients(s.logsumexp(1), s.logsumexp(0), leaves)
    wide = inputs(n, m, hidden, layers, dtype)[0].double()
    x64, y64 = (t.detach().double().requires_grad_() for t in (x, y))
    s = mlp_scores(wide, x64, y64)
    want = values_and_gradients(s.logsumexp(1), s.logsumexp(0), [x64, y64, *wide.parameters()])
    names = ["rows", "columns", "x", "y", *(name for name, _ in critic.named_parameters())]
    ours, dense = ({k: error(a, b) for k, a, b in zip(names, values, want, strict=True)} for values in (got, low))
    # Through TF32 a product has its rounding, as a half-precision one its own.
    tf32 = layers > 1 and dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    floor = 2**-10 if tf32 else {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-5}[dtype]
    return {"ours": ours, "dense": dense, "right": all(ours[k] <= 2 * dense[k] + floor for k in names)}


def milliseconds(function: Callable[[], object], repeats: int) -> list[float]:
    function()
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - start))
    return found


def timed(n: int, hidden: int, layers: int) -> dict:
    """InfoNCE, forward and backward, with parameters in bfloat16."""
    critic, x, y = inputs(n, n, hidden, layers, torch.bfloat16)
    leaves = [x, y, *critic.parameters()]

    def ours() -> object:
        with sk.use_backend("triton"):
            return torch.autograd.grad(sk.bounds.infonce(critic(x, y)), leaves)

    def dense() -> object:
        loss = F.cross_entropy(mlp_scores(critic, x, y).float(), torch.arange(n, device=DEVICE))
        return torch.autograd.grad(loss, leaves)

    result: dict = {}
    for name, function in (("ours", ours), ("dense", dense)):
        torch.cuda.empty_cache()
        result[f"{name}_ms"], failure = attempt(lambda f=function: median(milliseconds(f, 5)))
        result[f"{name}_extra_mb"] = None if failure else extra_bytes(function, DEVICE) / 1e6
        result |= {f"{name}_failure": failure} if failure else {}
    if result["ours_ms"] and result["dense_ms"]:
        result["ratio"] = result["ours_ms"] / result["dense_ms"]
    if layers == 2 and result["ours_ms"]:
        # Four products a pair: the forward's, it once more, and two of the backward.
        result["ours_tflops"] = 8 * n * n * hidden**2 / result["ours_ms"] / 1e9
    return result


def kernels(n: int, hidden: int, layers: int) -> dict:
    """Milliseconds of a step of InfoNCE by kernel, the ten that take most, and of all together."""
    critic, x, y = inputs(n, n, hidden, layers, torch.bfloat16)
    leaves = [x, y, *critic.parameters()]

    def step() -> object:
        with sk.use_backend("triton"):
            return torch.autograd.grad(sk.bounds.infonce(critic(x, y)), leaves)

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda event: -event.device_time_total)
    times = {event.key[:60]: (event.count, event.device_time_total / 1e3) for event in found}
    return {"kernels": dict(list(times.items())[:10]), "all_ms": sum(ms for _, ms in times.values())}


def kernels_with_tiles(n: int, hidden: int, forward: Tile, backward: Tile) -> dict:
    """`kernels` of two layers with other tiles than the default ones."""
    tiles = configurations._WARPGROUP_NETWORK["half"]
    default, tiles[hidden] = tiles[hidden], (forward, backward)
    try:
        return kernels(n, hidden, 2)
    finally:
        tiles[hidden] = default


def steps() -> list[tuple[str, Callable[[], dict]]]:
    bf16, fp32, fp16 = torch.bfloat16, torch.float32, torch.float16

    def tf32() -> dict:
        # Dense PyTorch's products go through TF32 as well.
        torch.set_float32_matmul_precision("high")
        try:
            return check(300, 517, 256, 2, fp32)
        finally:
            torch.set_float32_matmul_precision("highest")

    return [
        ("check bf16, 2 layers of 256, 304 x 528", lambda: check(304, 528, 256, 2, bf16)),
        ("time bf16, 2 layers of 256, N = 1024", lambda: timed(1024, 256, 2)),
        ("time bf16, 2 layers of 256, N = 4096", lambda: timed(4096, 256, 2)),
        ("kernels bf16, 2 layers of 256, N = 2048", lambda: kernels(2048, 256, 2)),
        ("kernels with smaller tiles, two to a multiprocessor", lambda: kernels_with_tiles(2048, 256, *SMALLER)),
        ("check bf16, 1 layer of 256, 304 x 528", lambda: check(304, 528, 256, 1, bf16)),
        ("time bf16, 1 layer of 256, N = 1024", lambda: timed(1024, 256, 1)),
        ("time bf16, 1 layer of 256, N = 4096", lambda: timed(4096, 256, 1)),
        ("kernels bf16, 1 layer of 256, N = 2048", lambda: kernels(2048, 256, 1)),
        ("check fp32 through tf32, 2 layers of 256, 300 x 517", tf32),
        ("check bf16, 2 layers of 256, 300 x 517", lambda: check(300, 517, 256, 2, bf16)),
        ("check bf16, 2 layers of 200, 67 x 131", lambda: check(67, 131, 200, 2, bf16)),
        ("check fp32, 1 layer of 72, 67 x 131", lambda: check(67, 131, 72, 1, fp32)),
        ("check fp16, 2 layers of 64, 67 x 131", lambda: check(67, 131, 64, 2, fp16)),
        ("check fp32, 2 layers of 64, 67 x 131", lambda: check(67, 131, 64, 2, fp32)),
    ]


def main(file: str, seconds: float = 35.0) -> int:
    import triton

    start = time.monotonic()
    found: dict = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    found["steps"] = {}
    for name, step in steps():
        if time.monotonic() - start > seconds:
            break
        began = time.monotonic()
        result, failure = attempt(step)
        found["steps"][name] = (result or {}) | {"seconds": time.monotonic() - began, "failure": failure}
        with open(file, "w", encoding="utf-8") as out:
            json.dump(found, out, indent=1)
        print(name, json.dumps(found["steps"][name]), flush=True)
    return 0 if all(r.get("right", True) and not r["failure"] for r in found["steps"].values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
