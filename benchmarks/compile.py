"""Compiles every Triton kernel ahead of time, without a GPU, and reads what the compiler made of it.

python -m benchmarks.compile cuda:90 hip:gfx942

One line a kernel: registers, spills, shared memory and the matrix instruction. `--json` for programs. The launches are
those that the package itself makes for the problems below, with its default tiles for the target's architecture.
`cuda:90 --record` writes benchmarks/results/kernels.json, which tests/test_triton_compile.py compares later ones with.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

# Before Triton is imported: kernels decorated for the interpreter cannot be compiled.
os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from simmim_kernels.backends import triton as backend
from simmim_kernels.backends.triton import configurations
from simmim_kernels.problem import Problem

# Shared memory that one block of threads may have, in bytes, by the vendors' tables of compute capabilities.
SHARED_LIMIT = {
    "cuda:80": 166912,
    "cuda:86": 101376,
    "cuda:89": 101376,
    "cuda:90": 232448,
    "cuda:100": 232448,
    "cuda:120": 101376,
    "hip:gfx90a": 65536,
    "hip:gfx942": 65536,
    "hip:gfx950": 163840,
}
TARGETS = tuple(SHARED_LIMIT)
_LOOK_AT_PAIRS = {
    *("_statistics_of_tiles", "_inexact_tiles_again", "_fused_gradients", "_weights_of_tiles"),
    *("statistics_of_network", "gradients_of_second_sums", "gradients_of_first_sums"),
}
RECORD = Path(__file__).parent / "results" / "kernels.json"
# One of each kind of tiles and of each room of the backend, for targets that share all else with one looked at in full.
QUICK = {
    *("clip bf16 d=64", "clip tf32 d=512", "all options bf16 d=768", "siglip bf16 d=256", "network of 2 bf16 d=256"),
    *("guided bf16 d=128", "guided tf32 d=64", "entropies by both bf16"),
}
_OF_OTHERS = {"cuda:90": r"wgmma\.mma_async", "cuda:100": r"tcgen05\.mma"}
MATRIX_INSTRUCTION = {
    target: _OF_OTHERS.get(target, r"v_mfma" if target.startswith("hip") else r"mma\.sync") for target in TARGETS
}


@dataclass
class Compiled:
    """What the compiler made of one kernel."""

    target: str
    problem: str
    kernel: str
    looks_at_pairs: bool
    """And so decides, by its registers, how many programs run at a time"""
    warps: int
    registers: int
    spilled: int
    """Bytes of memory a thread"""
    instructions: int | None
    """Of NVIDIA's machine code, loops and branches once; None where they were not counted"""
    shared: int
    """Bytes a block of threads"""
    shared_limit: int
    matrix_instruction: bool


def problems() -> Iterator[tuple[str, Problem, str]]:
    """A name, a problem on the meta device, and the precision of its float32 products."""
    half, single = torch.bfloat16, torch.float32
    for d in (64, 128, 256, 768):
        yield f"clip bf16 d={d}", meta_problem(d, half, dims="both", joint="left_out"), "highest"
    for d in (64, 128, 512):
        yield f"clip tf32 d={d}", meta_problem(d, single, dims="both", joint="left_out"), "high"
    for d in (16, 64, 512):
        yield f"clip fp32 d={d}", meta_problem(d, single, dims="both", joint="left_out"), "highest"
    for d in (64, 128, 256, 768):
        bias = {"row_bias": _meta(4096), "col_bias": _meta(4096)}
        ids = {"row_ids": _meta(2, 4096, dtype=torch.int64), "col_ids": _meta(2, 4096, dtype=torch.int64)}
        options = {"positives": _meta(4096, dtype=torch.int64), "joint": "kept", "lo": -5.0, "hi": 5.0}
        yield f"all options bf16 d={d}", meta_problem(d, half, dims="both", **bias, **ids, **options), "highest"
        yield f"groups bf16 d={d}", meta_problem(d, half, dims="rows", grouped=True, **bias, **ids), "highest"
    for d in (64, 256, 768):
        yield (
            f"siglip bf16 d={d}",
            meta_problem(d, half, fn="softplus", joint="negated", row_bias=_meta(4096)),
            "highest",
        )
    # A guide's mask beside all else; as two masks of a tile, that of a function and that of its weights, are one.
    ids = {"row_ids": _meta(1, 4096, dtype=torch.int64), "col_ids": _meta(1, 4096, dtype=torch.int64)}
    for dtype, precision, widths in ((half, "highest", (64, 128, 256)), (single, "high", (64, 128, 512))):
        for d in widths:
            name = f"guided {'bf16' if dtype == half else 'tf32'} d={d}"
            yield name, meta_problem(d, dtype, dims="both", joint="left_out", **guide(384), **ids), precision
    for d in (16, 64):
        yield f"guided fp32 d={d}", meta_problem(d, single, dims="both", joint="left_out", **guide(50)), "highest"
    for d in (64, 768):
        yield f"guided siglip bf16 d={d}", meta_problem(d, half, fn="softplus", joint="kept", **guide(384)), "highest"
    for dtype, precision in ((half, "highest"), (single, "high"), (single, "highest")):
        for dims in ("rows", "both"):
            name = f"entropies by {dims} {'bf16' if dtype == half else 'fp32' if precision == 'highest' else 'tf32'}"
            options = {"dims": dims, "joint": "left_out", "lo": -5.0, "hi": 5.0, "wants_entropy": True}
            yield name, meta_problem(128, dtype, **options), precision
    for d in (64, 512):
        options = {"dims": "rows", "joint": "left_out", "mirrored": True}
        yield f"symmetric bf16 d={d}", meta_problem(d, half, **options), "highest"
    # More than one block, for which a merge goes on where the last one stopped; and sizes that Triton takes for
    # constants, or cannot vectorise.
    yield "clip bf16 N=40000 d=512", meta_problem(512, half, n=40000, dims="both"), "highest"
    for n, m, d in ((1, 1, 1), (1, 77, 3), (1000, 1, 300)):
        yield f"clip bf16 N={n} M={m} d={d}", meta_problem(d, half, n=n, m=m, dims="both", joint="left_out"), "highest"
    yield "rows fp16 d=128", meta_problem(128, torch.float16, dims="rows"), "highest"
    yield "columns bf16 d=128", meta_problem(128, half, dims="columns"), "highest"
    yield "log1mexp bf16 d=64", meta_problem(64, half, fn="log1mexp", dims="rows"), "highest"
    yield "log1mexp bf16 d=768", meta_problem(768, half, fn="log1mexp", dims="both"), "highest"

    yield "network of 1 fp32 d=256", meta_network(256, 1, single, dims="both"), "highest"
    # Each width of configurations.py has tiles of its own.
    for d in (64, 128, 256):
        yield f"network of 2 bf16 d={d}", meta_network(d, 2, half, dims="both"), "highest"
    yield "network of 2 tf32 d=256", meta_network(256, 2, single, dims="both"), "high"
    yield "network of 2 fp32 d=256", meta_network(256, 2, single, dims="both"), "highest"
    ids = {"row_ids": _meta(2, 4096, dtype=torch.int64), "col_ids": _meta(2, 4096, dtype=torch.int64)}
    for layers in (1, 2):
        options = {"joint": "left_out", "lo": -5.0, "hi": 5.0, **ids}
        yield f"network of {layers}, all options", meta_network(256, layers, half, fn="softplus", **options), "highest"
        yield f"guided network of {layers}", meta_network(256, layers, half, dims="both", **guide(384)), "highest"
        options = {"dims": "both", "wants_entropy": True}
        yield f"entropies of a network of {layers}", meta_network(256, layers, half, **options), "highest"


def _meta(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def guide(width: int, n: int = 4096) -> dict[str, Tensor]:
    """Features and limits by which a guide leaves pairs out."""
    return {"guide_x": _meta(n, width), "guide_y": _meta(n, width), "guide_limit": _meta(n)}


def meta_problem(d: int, dtype: torch.dtype, n: int = 4096, m: int | None = None, **options) -> Problem:
    x = _meta(n, d, dtype=dtype)
    return Problem(x, x if options.get("mirrored") else _meta(m or n, d, dtype=dtype), [_meta()], **options)


def meta_network(d: int, layers: int, dtype: torch.dtype, n: int = 4096, **options) -> Problem:
    """A concatenated MLP's, with halves in float32 as MLPCritic has them, and parameters in a dtype."""
    sizes = [(d, d), (d,)] * (layers - 1) + [(1, d), (1,)]
    parameters = [_meta(*size, dtype=dtype) for size in sizes]
    return Problem(_meta(n, d), _meta(n, d), parameters, form="concatenated_mlp", **options)


class _Driver:
    """Stands for the driver of a device that is not here, so that Triton compiles for its architecture."""

    def __init__(self, target: GPUTarget):
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return str(self._target)

    def get_current_stream(self, device: str) -> int:
        return 0


def launching_nothing(target: str):
    """Launches are neither compiled nor run."""
    return _launching_on(target, lambda self, *arguments, **options: None)


def compiling_for(target: str, compiled: list):
    """Launches compile for the target, and are noted instead of run."""
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        compiled.append((self.__name__, run(self, *arguments, grid=grid, warmup=True, **options)))

    return _launching_on(target, compile_only)


def telling_apart(target: str, binaries: set):
    """Launches are neither compiled nor run: what Triton would compile anew for them is noted."""

    def tell_apart(self, *arguments, grid, warmup, **options):
        options |= {"debug": False, "instrumentation_mode": ""}
        binder = self.device_caches[triton.runtime.driver.active.get_current_device()][-1]
        _, specialization, chosen = binder(*arguments, **options)
        binaries.add((self.__name__, str(specialization), str(chosen)))

    return _launching_on(target, tell_apart)


@contextmanager
def _launching_on(target: str, launch):
    """Launches go to a function, as if there were a device of the target."""
    kind, _, arch = target.partition(":")
    gpu = GPUTarget("cuda", int(arch), 32) if kind == "cuda" else GPUTarget("hip", arch, 64)
    run, architecture = JITFunction.run, configurations.architecture
    triton.runtime.driver.set_active(_Driver(gpu))
    JITFunction.run = launch
    configurations.architecture = lambda device: configurations.row_of(arch)
    try:
        yield
    finally:
        JITFunction.run, configurations.architecture = run, architecture


def compile_for(target: str, instructions: bool = False, quick: bool = False) -> Iterator[Compiled]:
    seen = set()
    for name, problem, precision in problems():
        if quick and name not in QUICK:
            continue
        found: list = []
        torch.set_float32_matmul_precision(precision)
        with compiling_for(target, found):
            launch_all(problem)
        for kernel, binary in found:
            if binary.hash not in seen:
                seen.add(binary.hash)
                yield _read(target, name, kernel, binary, instructions)


def record(target: str) -> None:
    found: dict[str, list[list[int | None]]] = {}
    for k in compile_for(target, instructions=True):
        if k.looks_at_pairs:
            found.setdefault(f"{k.problem}, {k.kernel}", []).append([k.registers, k.instructions])
    lines = [f"  {json.dumps(name)}: {json.dumps(sorted(of_kernel))}" for name, of_kernel in sorted(found.items())]
    head = {"target": target, "triton": triton.__version__, "columns": ["registers a thread", "instructions"]}
    text = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    RECORD.write_text("{\n" + text + ' "kernels": {\n' + ",\n".join(lines) + "\n }\n}\n")


def binaries_of(target: str, sizes: list[int], d: int) -> list[int]:
    """How many kernels Triton compiles for a CLIP step in bfloat16 of each of the sizes."""
    found = []
    for n in sizes:
        binaries: set = set()
        with telling_apart(target, binaries):
            launch_all(meta_problem(d, torch.bfloat16, n=n, dims="both", joint="left_out"), modes=(False,))
        found.append(len(binaries))
    return found


def launch_all(problem: Problem, modes: tuple[bool, ...] = (False, True)) -> None:
    """Every launch of a forward and a backward, in one pass and in the two of deterministic mode.

    Of log-sum-exps without the joint pairs these are cross entropies. Entropies have a forward alone.
    """
    if problem.wants_entropy:
        backend.forward_with_entropies(problem)
        return
    needs = [tensor is not None for tensor in problem.differentiable]
    entropies = problem.fn == "logsumexp" and problem.joint == "left_out" and problem.form == "inner_product"
    if entropies:
        made, kept = backend.cross_entropies(problem, needs_gradients=True)
    else:
        found = backend.forward(problem)
        upstream = [torch.empty_like(statistic) for statistic in found]
    for deterministic in modes:
        torch.use_deterministic_algorithms(deterministic)
        if entropies:
            backend.cross_entropy_gradients(problem, kept, torch.empty_like(made), needs)
        elif problem.fn == "logsumexp":
            backend.backward(problem, *found, *upstream, needs)
        else:
            backend.value_and_gradients(problem, needs)
    torch.use_deterministic_algorithms(False)


def _read(target: str, problem: str, kernel: str, binary, instructions: bool) -> Compiled:
    registers, spilled = _of_nvidia(binary) if target.startswith("cuda") else _of_amd(binary)
    text = binary.asm["ptx" if target.startswith("cuda") else "amdgcn"]
    return Compiled(
        target,
        problem,
        kernel,
        kernel in _LOOK_AT_PAIRS,
        binary.metadata.num_warps,
        registers,
        spilled,
        _instructions(binary) if instructions else None,
        binary.metadata.shared,
        SHARED_LIMIT[target],
        re.search(MATRIX_INSTRUCTION[target], text) is not None,
    )


def cuobjdump(binary, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump", option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _instructions(binary) -> int:
    return len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", cuobjdump(binary, "-sass"), re.MULTILINE))


def _of_nvidia(binary) -> tuple[int, int]:
    usage = cuobjdump(binary, "-res-usage")
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def _of_amd(binary) -> tuple[int, int]:
    """Vector registers, and bytes of scratch memory: spilled scalar registers go to lanes of vector registers."""
    text = binary.asm["amdgcn"]
    registers, scratch = (
        int(re.search(rf"\.{word}:\s*(\d+)", text)[1]) for word in ("vgpr_count", "private_segment_fixed_size")
    )
    return registers, scratch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--instructions", action="store_true", help="count them, on NVIDIA: 0.5 s more a kernel")
    parser.add_argument(
        "--binaries", nargs="+", type=int, metavar="N", help="count those of a step of these sizes, d = 768"
    )
    parser.add_argument("--quick", action="store_true", help="a few problems that stand for the rest")
    parser.add_argument("--record", action="store_true", help="write the table of registers and instructions")
    arguments = parser.parse_args()
    if arguments.record:
        record((arguments.targets or ["cuda:90"])[0])
        return 0
    if arguments.binaries:
        print(json.dumps(binaries_of((arguments.targets or ["cuda:90"])[0], arguments.binaries, 768)))
        return 0
    for target in arguments.targets or TARGETS:
        for found in compile_for(target, arguments.instructions, arguments.quick):
            if arguments.json:
                print(json.dumps(asdict(found)), flush=True)
            else:
                print(
                    f"{found.target:<11} {found.problem:<28} {found.kernel:<24} {found.warps} warps "
                    f"{found.registers:>3} registers  {found.spilled:>4} spilled  {found.shared:>6} shared"
                    f"{'' if found.matrix_instruction else '  no matrix instruction'}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
