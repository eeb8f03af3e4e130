"""Every Triton kernel, compiled ahead of time for GPUs that need not be here: registers, memory, instructions."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton has no package for this platform")

TARGETS = ("cuda:80", "cuda:86", "cuda:90", "cuda:100", "hip:gfx942")


@pytest.mark.parametrize("target", TARGETS)
def test_default_configurations(target):
    # A process of its own: kernels that were decorated for the interpreter cannot be compiled.
    command = [sys.executable, "-m", "benchmarks.compile", target, "--json"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {k["kernel"] for k in kernels} == {"_statistics_of_tiles", "_merge", "_fused_gradients", "_weights_of_tiles"}
    assert [k for k in kernels if k["spilled"]] == []
    assert [k for k in kernels if k["shared"] > k["shared_limit"]] == []
    # float32 "as it is" runs outside the tensor cores, and so does a merge of sums.
    dense = [k for k in kernels if k["kernel"] != "_merge" and "fp32" not in k["problem"]]
    assert [k for k in dense if not k["matrix_instruction"]] == []
