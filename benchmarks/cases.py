"""Every benchmark case, written once: a loss of ours, the dense formula that it stands in for, and the bars."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import simmim_kernels as sk
from simmim_kernels.comparison import dense

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One loss at one size, forward and backward in float32 on normalised features.

    `ratio` bars our seconds over dense seconds; `megabytes` bars our memory beyond inputs and gradients. A case without
    them is recorded: no gain is promised there.
    """

    name: str
    ours: Loss = field(repr=False)
    dense: Loss = field(repr=False)
    n: int
    d: int
    scale: float = 1 / 0.07
    ratio: float | None = None
    megabytes: float | None = None

    @property
    def id(self) -> str:
        return f"{self.name}-N{self.n}-d{self.d}-scale{self.scale:.3g}"

    def inputs(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """x, y and the logit scale; a row of y is a noisy copy of its row of x."""
        g = torch.Generator().manual_seed(0)
        x, noise = (F.normalize(torch.randn(self.n, self.d, generator=g), dim=1) for _ in range(2))
        y = F.normalize(x + noise, dim=1)
        return tuple(t.to(device).requires_grad_() for t in (x, y, torch.tensor(self.scale)))


def clip(n: int, d: int, **bars) -> Case:
    return Case("clip", sk.clip_loss, dense.clip_loss, n, d, **bars)


def _siglip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return sk.siglip_loss(x, y, scale, dense.SIGLIP_BIAS)


def _nt_xent(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return sk.nt_xent_loss(x, y, 1 / scale)


def _smile(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return -sk.bounds.smile(sk.DotCritic(scale)(x, y))


def mlp_scores(critic: sk.MLPCritic, x: Tensor, y: Tensor) -> Tensor:
    """(N, M) scores by the network as it stands, in plain PyTorch, with its first layer split by operand."""
    first, *later = critic.hidden_layers
    weight_x, weight_y = first.weight.split([critic.dim_x, critic.dim_y], dim=1)
    hidden = (F.linear(x, weight_x)[:, None] + F.linear(y, weight_y, first.bias)).relu()
    for layer in later:
        hidden = layer(hidden).relu()
    return critic.output(hidden).squeeze(2)


CASES = [
    *(clip(64, d) for d in (512, 64)),
    clip(256, 512, ratio=1.1),
    clip(256, 64),
    *(clip(n, d, ratio=1.1) for n in (512, 1024) for d in (512, 64)),
    clip(4096, 512),
    clip(8192, 512, ratio=0.5, megabytes=100),
    clip(8192, 512, scale=100.0, ratio=0.5, megabytes=100),
    clip(8192, 64, ratio=0.9, megabytes=100),
    Case("siglip", _siglip, dense.siglip_loss, 8192, 512, ratio=0.5, megabytes=100),
    Case("nt_xent", _nt_xent, dense.nt_xent_loss, 4096, 512, ratio=0.5, megabytes=100),
    Case("smile", _smile, dense.smile, 8192, 64, megabytes=100),
]
