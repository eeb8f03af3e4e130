"""One look at all scores: what is asked of it, and what it finds."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...problem import Problem
from .finish import finish
from .sides import Critic, JointPairs, Side
from .statistics import compile_time_options


class Wanted(NamedTuple):
    """What a pass is to make for one side."""

    gradient: bool = False
    bias: bool = False

    @property
    def anything(self) -> bool:
        return self.gradient or self.bias


@dataclass
class Pass:
    """One look at all scores: the gradients of its own side and, if wanted, of the other one."""

    problem: Problem
    own: Side
    other: Side
    critic: Critic
    joint_own: JointPairs
    joint_other: JointPairs
    wanted_own: Wanted
    wanted_other: Wanted
    wants_scale: bool
    wants_value: bool
    dtype: torch.dtype
    """Of the gradients of the operands; all else is in float32"""
    weight_unit: Tensor | None
    """A power of two that float16 weights are multiplied by, lest small ones vanish; None for other dtypes"""

    gradient: Tensor | None = None
    other_gradient: Tensor | None = None
    bias: Tensor | None = None
    other_bias: Tensor | None = None
    dots: Tensor | None = None
    """Whose sum is the gradient of the scale"""
    value: Tensor | None = None

    def __post_init__(self) -> None:
        self.device = self.problem.x.device
        d = self.critic.d
        self.gradient = self.empty(self.wanted_own.gradient, self.own.size, d, dtype=self.dtype)
        self.other_gradient = self.empty(self.wanted_other.gradient, self.other.size, d, dtype=self.dtype)
        self.dots = self.empty(self.wants_scale, self.own.size)

    def empty(self, wanted: bool, *size: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return torch.empty(size, dtype=dtype, device=self.device) if wanted else None

    def zeros(self, wanted: bool, *size: int) -> Tensor | None:
        return torch.zeros(size, dtype=torch.float32, device=self.device) if wanted else None

    @property
    def references(self) -> tuple[str, ...]:
        """What kernels that weigh pairs are launched for, one after the other: see tile.is_for."""
        return ("any",) if self.critic.shared is None else ("one", "two")

    def constants(self) -> dict[str, Any]:
        """What every kernel of this pass is compiled for, but for the shape of tiles."""
        return {**compile_time_options(self.problem), "device": self.device}

    def finish_own(self, totals: Tensor, start: int = 0) -> None:
        """Takes complete products (splits, n, d) of the own side, from a line on, into its gradient and dots."""
        finish(self.own, self.joint_own, self.critic, totals, self.weight_unit, self.gradient, self.dots, start)

    def finish_other(self, totals: Tensor) -> None:
        """Takes the complete products (size, d) of the other side into its gradient."""
        other = (self.other, self.joint_other, self.critic)
        finish(*other, totals[None], self.weight_unit, self.other_gradient, None)
