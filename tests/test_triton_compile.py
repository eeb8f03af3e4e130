"""Every Triton kernel, compiled ahead of time for GPUs that need not be here: registers, memory, instructions."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no package for this platform")

ROOT = Path(__file__).parents[1]
# In full those whose tiles no other has; by a few problems the rest, whose tiles are those of sm_86, which has least
# shared memory, and AMD's, for which LLVM takes minutes: `python -m benchmarks.compile hip:gfx942` has all of them.
TARGETS = ("cuda:86", "cuda:90", "cuda:100")
BY_A_FEW = ("cuda:80", "cuda:89", "cuda:120", "hip:gfx90a", "hip:gfx942", "hip:gfx950")
KERNELS = {
    *("_statistics_of_tiles", "_inexact_tiles_again", "_fused_gradients", "_weights_of_tiles", "_merge"),
    *("statistics_of_network", "gradients_of_second_sums", "gradients_of_first_sums", "gradients_of_one_layer"),
    *("_factors_of_lines", "_cross_entropies", "_finished"),
}


def run(module: str, *arguments: object) -> str:
    """A module's output. In a process of its own: kernels decorated for the interpreter cannot be compiled."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("target", BY_A_FEW)
def test_default_configurations_of_a_few_problems(target):
    kernels = [json.loads(line) for line in run("benchmarks.compile", target, "--json", "--quick").splitlines()]
    assert {k["kernel"] for k in kernels} == KERNELS - {"gradients_of_one_layer"}
    assert_fit(kernels)
    assert [k for k in kernels if k["looks_at_pairs"] and not k["matrix_instruction"]] == []


@pytest.mark.parametrize("target", TARGETS)
def test_default_configurations(target):
    kernels = [json.loads(line) for line in run("benchmarks.compile", target, "--json").splitlines()]
    assert {k["kernel"] for k in kernels} == KERNELS
    assert_fit(kernels)
    large = [k for k in kernels if k["looks_at_pairs"]]
    if target == "cuda:90":
        assert_registers_as_recorded(large)
    # float32 "as it is" runs outside the tensor cores, and so does what makes no products.
    dense = [k for k in large if "fp32" not in k["problem"]]
    dense = [k for k in dense if "network of 1" not in k["problem"]]
    assert [k for k in dense if not k["matrix_instruction"]] == []


def assert_fit(kernels):
    # In the linear work ptxas keeps a few bytes on the stack rather than take registers from another program.
    assert [k for k in kernels if k["spilled"] > (0 if k["looks_at_pairs"] else 16)] == []
    assert [k for k in kernels if k["shared"] > k["shared_limit"]] == []


def assert_registers_as_recorded(kernels):
    """At most 10% more than in benchmarks/results/kernels.json, of `python -m benchmarks.compile --record`."""
    recorded = json.loads((ROOT / "benchmarks" / "results" / "kernels.json").read_text())
    if version("triton") != recorded["triton"]:
        return  # another compiler's
    found = {}
    for k in kernels:
        found.setdefault(f"{k['problem']}, {k['kernel']}", []).append(k["registers"])
    assert found.keys() == recorded["kernels"].keys()
    for name, registers in found.items():
        most = max(of_one for of_one, _ in recorded["kernels"][name])
        assert max(registers) <= 1.1 * most, f"{name}: {max(registers)} registers, recorded {most}"


@pytest.mark.parametrize(("d", "deterministic"), [(64, ()), (512, ("--deterministic",))], ids=str)
def test_workspace(d, deterministic):
    """Memory beyond inputs and gradients, from the allocations of a forward and a backward."""
    lines = run("benchmarks.workspace", 131072, 262144, d, *deterministic).splitlines()
    small, large = (float(line.split()[0]) for line in lines)
    assert large <= 2 * small
    assert large < 720


def test_arithmetic_on_compiled_code():
    """Cycles of a tile of 128 x 128 pairs: products by their number, and the rest as the machine code has it."""
    lines = run("benchmarks.arithmetic", 512).splitlines()
    rows = {line.split()[1]: [float(word.rstrip("%")) for word in line.split()[2:]] for line in lines[1:]}
    assert rows.keys() == {"_statistics_of_tiles", "_weights_of_tiles"}
    for products, issued, exponentials, shuffles, l2, programs, least, most, *step in rows.values():
        assert products == 8 * 512
        # An exponential a pair at least, by 16 lanes; operands once a tile, at 39 bytes a cycle.
        assert issued > exponentials >= 128 * 128 / 16 > shuffles
        assert l2 == pytest.approx(2 * 128 * 512 * 2 / (5120 / 132), abs=1)
        assert programs == 2
        assert least < most <= 100
        assert 60 <= step[0] < step[1] < 100


def test_few_binaries_whatever_the_size():
    """A step compiles the same few kernels for one block of scores and for hundreds, ragged or not."""
    sizes = ("300", "16384", "50001", "65536", "100003")
    found = json.loads(run("benchmarks.compile", "cuda:90", "--binaries", *sizes))
    assert len(found) == len(sizes)
    # Where 16 does not divide the size, a kernel's offsets are of another kind.
    assert max(found) <= min(found) + 1 <= 10
