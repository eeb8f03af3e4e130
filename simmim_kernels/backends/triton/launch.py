"""Launching a kernel, and counting the matrix products that launches make."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _Work(threading.local):
    def __init__(self) -> None:
        self.multiplications: int | None = None


_work = _Work()


@contextmanager
def counted_multiplications() -> Iterator["_Work"]:
    """Counts this thread's multiplications within matrix products: one product of the operands is N M d."""
    before, _work.multiplications = _work.multiplications, 0
    try:
        yield _work
    finally:
        _work.multiplications = before


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up: triton.cdiv, which kernels may call, takes 5 us outside them."""
    return -(-a // b)


def count(multiplications: int) -> None:
    if _work.multiplications is not None:
        _work.multiplications += multiplications


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, device: torch.device, **options: Any) -> None:
    """Runs a kernel on the device of its tensors, which need not be the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel[grid](*arguments, **options)
        return
    with torch.cuda.device(device):
        kernel[grid](*arguments, **options)


def add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a @ b for a float32 total, or total = a @ b, by the vendor's library, accumulated in float32."""
    count(a.shape[0] * a.shape[1] * b.shape[1])
    beta = 0 if first else 1
    if a.dtype == torch.float32:
        total.addmm_(a, b, beta=beta)
    elif total.device.type == "cpu":
        # PyTorch's CPU product has no such output; only the interpreter comes here.
        total.addmm_(a.float(), b.float(), beta=beta)
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, beta=beta, out=total)


def long_product(a: Tensor, b: Tensor, pieces: int) -> Tensor:
    """a.T @ b in float32 of (K, n) and (K, m), by pieces of K: n x m alone would occupy but a few multiprocessors."""
    count(a.shape[0] * a.shape[1] * b.shape[1])
    a, b = (t.view(pieces, -1, t.shape[1]) for t in (a, b))
    if a.dtype == torch.float32 or a.device.type == "cpu":
        # PyTorch's CPU product has no such output; only the interpreter comes here.
        return torch.bmm(a.mT.float(), b.float()).sum(0)
    return torch.bmm(a.mT, b, out_dtype=torch.float32).sum(0)
