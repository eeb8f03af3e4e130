"""Pairwise statistics over tiles that fit in cache, in PyTorch operations, on whatever PyTorch runs on.

One idea: walk the score matrix in tiles; a tile stays in cache from the product that makes it to the
exponential and the sums (forward), or the two products (backward), that consume it.

Scores are kept in base 2 where they are about to be exponentiated: torch.exp2 is up to four times faster
than torch.exp on a CPU, and the factor log2(e) rides along on the operand's scale.
"""

import torch

from ...problem import Problem
from .gradients import backward, value_and_gradients
from .statistics import forward, forward_with_entropies

__all__ = [
    "backward",
    "forward",
    "forward_with_entropies",
    "not_by_default",
    "supports",
    "unavailable",
    "value_and_gradients",
]


def unavailable() -> str | None:
    return None


def not_by_default(device: torch.device) -> str | None:
    return None


def supports(problem: Problem) -> str | None:
    return None
