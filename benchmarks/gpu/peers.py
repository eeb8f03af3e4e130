"""Other packages that compute the same losses, each behind one small adapter; none of them is a dependency."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from types import ModuleType

import torch
from torch import Tensor

from simmim_kernels.comparison.dense import SIGLIP_BIAS

from .losses import LossFunction
from .run import attempt

# From the module and the value of the scale, known ahead where a peer wants a number, to the loss.
Adapter = Callable[[ModuleType, float], LossFunction]


@dataclass(frozen=True)
class Peer:
    """A package, how its losses are called, and what it cannot run."""

    name: str
    module: str
    losses: Mapping[str, Adapter]
    limit: Callable[[int, int], str | None] = lambda n, d: None
    """Why N rows of width d are beyond it, or None."""


@dataclass(frozen=True)
class Found:
    """A peer as this machine has it: its module, or None and the reason."""

    peer: Peer
    module: ModuleType | None
    version: str


def find(peer: Peer) -> Found:
    """Imports a peer. One that cannot be imported is named as not installed, or with what its import raised."""
    module, failure = attempt(lambda: import_module(peer.module))
    if module is None:
        installed = not failure.startswith(("ImportError", "ModuleNotFoundError"))
        return Found(peer, None, failure if installed else f"not installed ({failure})")
    return Found(peer, module, _version(peer, module))


def _version(peer: Peer, module: ModuleType) -> str:
    try:
        return metadata.version(peer.name)
    except metadata.PackageNotFoundError:
        return getattr(module, "__version__", "of unknown version")


def _memeff_clip(module: ModuleType, scale: float) -> LossFunction:
    # stable=True would multiply the gradients by sqrt(N temperature). The scale is a constant to it.
    loss = module.MemoryEfficientCLIPLoss(temperature=1 / scale, normalized_inputs=True, stable=False)
    return lambda x, y, t: loss(x, y)


def _memeff_limit(n: int, d: int) -> str | None:
    return None if d >= 64 or d & (d - 1) == 0 else f"d must be at least 64 or a power of two, got {d}"


def _siglip_kernel(module: ModuleType, scale: float) -> LossFunction:
    def loss(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return module.fused_siglip_loss(x, y, t.log(), torch.full_like(t, SIGLIP_BIAS, requires_grad=False))

    return loss


_INF_CL_HEADS = (256, 128, 64, 32, 16)


def _inf_cl_clip(module: ModuleType, scale: float) -> LossFunction:
    """Both directions of cal_flash_loss: cal_inf_loss, which calls it on one GPU, wants a process group for t."""

    def loss(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        head = next(size for size in _INF_CL_HEADS if x.shape[1] % size == 0)
        rows, columns = (module.cal_flash_loss(a, b, scale=t, head_dim=head).mean() for a, b in ((x, y), (y, x)))
        return (rows + columns) / 2

    return loss


def _inf_cl_info_nce(module: ModuleType, scale: float) -> LossFunction:
    def loss(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        x, y = (torch.nn.functional.normalize(rows, dim=1) for rows in (x, y))
        head = next(size for size in _INF_CL_HEADS if x.shape[1] % size == 0)
        return module.cal_flash_loss(x, y, scale=t, head_dim=head).mean()

    return loss


def _inf_cl_limit(n: int, d: int) -> str | None:
    if d % 16:
        return f"d must be a multiple of 16, got {d}"
    # Its kernels address rows by 32-bit offsets, and read past the last row of an unfinished block.
    if n % 64 or n * d >= 2**31:
        return f"N must be a multiple of 64 and N d below 2^31, got N = {n}, d = {d}"
    return None


def _open_clip(module: ModuleType, scale: float) -> LossFunction:
    return module.ClipLoss()


def _open_clip_siglip(module: ModuleType, scale: float) -> LossFunction:
    loss = module.SigLipLoss()
    return lambda x, y, t: loss(x, y, t, SIGLIP_BIAS)


PEERS = (
    Peer("memeff", "memeff", {"clip": _memeff_clip}, _memeff_limit),
    Peer("siglip-kernel", "siglip_kernel", {"siglip": _siglip_kernel}),
    Peer("inf-cl", "inf_cl", {"clip": _inf_cl_clip, "info_nce": _inf_cl_info_nce}, _inf_cl_limit),
    Peer("open_clip", "open_clip", {"clip": _open_clip, "siglip": _open_clip_siglip}),
)
