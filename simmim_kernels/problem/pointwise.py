"""Pointwise functions of a score whose sums over pairs are statistics, each with its derivative.

A function added here is at once a statistic on the `reference` and `tiled` backends.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG_2 = 0.6931471805599453


class Pointwise(NamedTuple):
    """psi(s) and psi'(s), elementwise and themselves differentiable by autograd."""

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


def clamp(s: Tensor, lo: float, hi: float) -> Tensor:
    """s within [lo, hi], with gradient 1 on the closed interval; torch.clamp's on its ends depends on the version."""
    return torch.where(s < lo, lo, torch.where(s > hi, hi, s))


def log1mexp(s: Tensor) -> Tensor:
    """log(1 - e^s) for s < 0, -inf at 0 and NaN above; the branches are those of Maechler (2012)."""
    near_zero = s > -_LOG_2
    # Each branch sees only arguments that it is accurate for, so that the other's gradient is never 0 * inf.
    small = torch.where(near_zero, s, -_LOG_2)
    large = torch.where(near_zero, -_LOG_2, s)
    return torch.where(near_zero, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))


def logsumexp_over_first(values: Tensor) -> Tensor:
    """torch.logsumexp over the first dimension, with zero gradient and not NaN where every entry is -inf."""
    if not len(values):
        return values.logsumexp(0)
    total = values.detach().logsumexp(0)
    empty = total == -torch.inf
    safe = torch.where(empty, torch.zeros_like(values), values)
    return torch.where(empty, total, safe.logsumexp(0))


POINTWISE: dict[str, Pointwise] = {
    "identity": Pointwise(lambda s: s, torch.ones_like),
    "softplus": Pointwise(lambda s: -F.logsigmoid(-s), torch.sigmoid),
    "square": Pointwise(torch.square, lambda s: 2 * s),
    "log1mexp": Pointwise(log1mexp, lambda s: -1 / torch.expm1(-s)),
}
