"""The processes that torchrun started, as one process group."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


class NotLaunched(Exception):
    """What is to be run by torchrun was not; the message gives the command."""


@contextmanager
def process_group(device: torch.device, command: str) -> Iterator[dist.ProcessGroup]:
    """All processes, by NCCL on GPUs, each on its own, and by Gloo on CPUs. Raises NotLaunched without torchrun."""
    if not dist.is_torchelastic_launched():
        raise NotLaunched(f"--distributed needs torchrun: torchrun --nproc-per-node 2 -m simmim_kernels {command}")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
