"""Memory grows with N, not with N^2: PyTorch's own allocations during forward and backward, counted."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from truth import BACKENDS

import simmim_kernels as sk
from simmim_kernels.backends.native.library import why_not
from simmim_kernels.comparison.measure import extra_bytes, forward_backward

MB = 2**20


def pair(n, d, dtype=torch.float32):
    return [torch.randn(n, d).to(dtype).requires_grad_() for _ in range(2)]


LOSSES = {
    "clip": lambda x, y: sk.clip_loss(x, y, 0.1),
    "siglip": lambda x, y: sk.siglip_loss(x, y, 0.1, -1.0),
    "nt_xent": sk.nt_xent_loss,
    "supcon": lambda x, y: sk.supcon_loss(x + y, torch.arange(len(x)) % 100),
    "dcl": sk.dcl_loss,
    "smile": lambda x, y: -sk.bounds.smile(sk.GaussianCritic()(x, y)),
    "linear cross entropy": lambda x, y: sk.linear_cross_entropy(
        x, y, torch.arange(len(x)), class_weight=torch.ones(len(y)), label_smoothing=0.1
    ),
    "false negatives": lambda x, y: (
        -sk.bounds.infonce(
            sk.DotCritic()(x, y).exclude(torch.arange(len(x)) % 50, torch.arange(len(x)) % 50, keep_joint=True)
        )
    ),
}


# All but the reference. The native kernels' own workspace is not PyTorch's, and not counted.
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(LOSSES))
def test_doubling_the_batch_doubles_the_memory(name, dtype, backend):
    with sk.use_backend(backend):
        small, large = (
            extra_bytes(partial(forward_backward, LOSSES[name], inputs))
            for inputs in (pair(2048, 8, dtype), pair(4096, 8, dtype))
        )
    assert large <= 2 * small
    # One float32 matrix of scores alone would take 64 MB.
    assert large < 16 * MB


def test_the_mlp_critic_keeps_a_workspace_of_tiles():
    """N M hidden activations would take 2 x 268 MB."""
    torch.manual_seed(0)
    critic = sk.MLPCritic(8, 8, hidden=256, layers=2)
    x, y = pair(512, 8)
    leaves = (x, y, *critic.parameters())
    assert extra_bytes(lambda: torch.autograd.grad(sk.bounds.infonce(critic(x, y)), leaves)) < 40 * MB


def test_the_reference_does_materialise_so_that_this_measure_can_fail():
    x, y = pair(2048, 8)
    with sk.use_backend("reference"):
        assert extra_bytes(lambda: forward_backward(LOSSES["clip"], (x, y))) > 16 * MB


@pytest.mark.skipif(why_not() is not None, reason=f"the native library: {why_not()}")
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
def test_many_threads_share_a_bounded_workspace():
    """The process's own peak on 96 threads, each of which has strips: 64 MB, and 12 for the threads themselves.

    Where every thread had as much as one of two has, it would be 280 MB.
    """
    peaks = {}
    for threads in (1, 96):
        command = [sys.executable, "-c", _PEAK, str(threads)]
        # Threads that wait for others sleep, and leave the few cores to them.
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks[threads] = int(done.stdout)
    assert peaks[1] < peaks[96] < peaks[1] + 76 * 2**20


# Of a child of its own, since a process's peak never falls. x's rows are 96 for each of 96 threads.
_PEAK = """
import pathlib, re, sys, torch
import simmim_kernels as sk

torch.set_num_threads(int(sys.argv[1]))
x, y = torch.randn(96 * 96, 512, requires_grad=True), torch.randn(960, 512, requires_grad=True)

def peak_after(rows):
    value = sk.PairwiseScores(x[:rows], y, scale=0.05).logsumexp(1, backend="native").sum()
    torch.autograd.grad(value, (x, y))
    # Not getrusage's, which counts what this process was forked from.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])

before = peak_after(1)
print(peak_after(len(x)) - before)
"""
