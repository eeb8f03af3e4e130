"""Differentiable collectives: two, and their derivatives, of which all that crosses ranks is made.

A gradient here is that of the sum, over ranks, of what each rank made of its results: nothing else can be had from what
ranks know of each other, and DDP's mean over ranks makes of it the gradient of the mean. PyTorch's functional operators
do the work, which torch.compile traces.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# PyTorch's functional collectives: of a tensor and a group's name a new tensor, which is there when it is waited for.
OPS = torch.ops._c10d_functional

_HALF = (torch.bfloat16, torch.float16)


class AllGather(torch.autograd.Function):
    """(x (k, ...), size, name, factor) -> (size k, ...), in the order of ranks; `factor` multiplies the gradient."""

    @staticmethod
    def forward(ctx, x, size, name, factor):
        ctx.settings = (size, name)
        ctx.factor = factor
        return _wait(OPS.all_gather_into_tensor(x.contiguous(), size, name))

    @staticmethod
    def backward(ctx, upstream):
        gradient = ReduceScatter.apply(upstream, *ctx.settings)
        return gradient if ctx.factor == 1 else ctx.factor * gradient, None, None, None


class ReduceScatter(torch.autograd.Function):
    """(x (size k, ...), size, name) -> (k, ...): sums over ranks, of half precision made in float32."""

    @staticmethod
    def forward(ctx, x, size, name):
        ctx.settings = (size, name)
        wide = x.float() if x.dtype in _HALF else x
        found = OPS.reduce_scatter_tensor(wide.contiguous(), "sum", size, name)
        return _wait(found).to(x.dtype)

    @staticmethod
    def backward(ctx, upstream):
        return AllGather.apply(upstream, *ctx.settings, 1), None, None


class AllToAll(torch.autograd.Function):
    """(x (sum of given, ...), taken, given, name) -> (sum of taken, ...): given[q] rows go to rank q."""

    @staticmethod
    def forward(ctx, x, taken, given, name):
        ctx.settings = (given, taken, name)
        return _wait(OPS.all_to_all_single(x.contiguous(), taken, given, name))

    @staticmethod
    def backward(ctx, upstream):
        return AllToAll.apply(upstream, *ctx.settings), None, None, None


def _wait(x: Tensor) -> Tensor:
    return OPS.wait_tensor(x)


def all_reduced(x: Tensor, name: str) -> Tensor:
    """The sum over ranks of integers, which have no gradient."""
    return _wait(OPS.all_reduce(x, "sum", name))


def gathered(x: Tensor, counts: Sequence[int], name: str) -> Tensor:
    """(sum of counts, ...): the rows of every rank, of which rank q has counts[q]."""
    most = max(counts)
    padded = x if len(x) == most else F.pad(x, (0, 0) * (x.dim() - 1) + (0, most - len(x)))
    found = AllGather.apply(padded, len(counts), name, 1)
    if min(counts) == most:
        return found
    return torch.cat([block[:count] for block, count in zip(found.split(most), counts, strict=True)])
