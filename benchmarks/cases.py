"""Every benchmark case, written once: a loss of ours, the dense formula that it stands in for, and the bars."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import simmim_kernels as sk
from simmim_kernels.demo import dense_clip_loss

Loss = Callable[..., Tensor]


def open_clip_siglip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """open_clip 3.3's SigLipLoss."""
    logits = scale * x @ y.T - 10.0
    labels = 2 * torch.eye(len(x), device=x.device) - torch.ones_like(logits)
    return -F.logsigmoid(labels * logits).sum() / len(x)


def lightly_nt_xent(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """lightly 1.6's NTXentLoss: four blocks of logits without their diagonals."""
    n = len(x)
    x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    off = ~torch.eye(n, dtype=torch.bool, device=x.device)
    blocks = [torch.einsum("nc,mc->nm", a, b) * scale for a, b in ((x, x), (x, y), (y, x), (y, y))]
    xx, yy = blocks[0][off].view(n, -1), blocks[3][off].view(n, -1)
    logits = torch.cat([torch.cat([blocks[1], xx], dim=1), torch.cat([blocks[2], yy], dim=1)])
    return F.cross_entropy(logits, torch.arange(n, device=x.device).repeat(2))


def dense_smile(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """SMILE as its authors' code has it: the Jensen-Shannon gradient, the clamped Donsker-Varadhan value."""
    s = scale * x @ y.T
    off = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    marginal = s[off]
    js = F.logsigmoid(s.diagonal()).mean() - F.softplus(marginal).mean()
    value = s.diagonal().mean() - marginal.clamp(-5, 5).logsumexp(0) + math.log(marginal.numel())
    return -(js + (value - js).detach())


@dataclass(frozen=True)
class Case:
    """One loss at one size, forward and backward in float32 on normalised features.

    `ratio` bars our seconds over dense seconds; `megabytes` bars our memory beyond inputs and gradients.
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
    return Case("clip", sk.clip_loss, dense_clip_loss, n, d, **bars)


CASES = [
    *(clip(n, d, ratio=1.1) for n in (256, 512, 1024) for d in (512, 64)),
    clip(4096, 512),
    clip(8192, 512, ratio=0.5, megabytes=100),
    clip(8192, 512, scale=100.0, ratio=0.5, megabytes=100),
    clip(8192, 64, ratio=0.9, megabytes=100),
    Case(
        "siglip", lambda x, y, t: sk.siglip_loss(x, y, t, -10.0), open_clip_siglip, 8192, 512, ratio=0.5, megabytes=100
    ),
    Case("nt_xent", lambda x, y, t: sk.nt_xent_loss(x, y, 1 / t), lightly_nt_xent, 4096, 512, ratio=0.5, megabytes=100),
    Case("smile", lambda x, y, t: -sk.bounds.smile(sk.DotCritic(t)(x, y)), dense_smile, 8192, 64, megabytes=100),
]
