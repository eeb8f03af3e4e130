"""The dense formulas that fused losses stand in for: what the demo, the benchmarks and GPU runs compare with.

Written as their own packages write them, for any dtype and device; x and y are (N, d), scale is the logit scale.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIGLIP_BIAS = -10.0


def clip_loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """open_clip 3.3's ClipLoss: both logit matrices and their cross entropies."""
    labels = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(scale * x @ y.T, labels) + F.cross_entropy(scale * y @ x.T, labels)) / 2


def siglip_loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """open_clip 3.3's SigLipLoss, whose labels have the dtype of the features."""
    logits = scale * x @ y.T
    logits += SIGLIP_BIAS
    labels = -torch.ones((len(x), len(x)), device=x.device, dtype=x.dtype)
    labels = 2 * torch.eye(len(x), device=x.device, dtype=x.dtype) + labels
    return -F.logsigmoid(labels * logits).sum() / len(x)


def info_nce_loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Cross entropy of cosine similarities over rows, as info-nce-pytorch has it."""
    logits = scale * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    return F.cross_entropy(logits, torch.arange(len(x), device=x.device))


def nt_xent_loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """lightly 1.6's NTXentLoss: four blocks of logits, two of them without their diagonals."""
    n = len(x)
    x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    off = ~torch.eye(n, dtype=torch.bool, device=x.device)
    xx, xy, yx, yy = (torch.einsum("nc,mc->nm", a, b) * scale for a, b in ((x, x), (x, y), (y, x), (y, y)))
    above = torch.cat([xy, xx[off].view(n, -1)], dim=1)
    below = torch.cat([yx, yy[off].view(n, -1)], dim=1)
    return F.cross_entropy(torch.cat([above, below]), torch.arange(n, device=x.device).repeat(2))


def smile(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """SMILE, negated, as its authors' code has it: the Jensen-Shannon gradient, the clamped Donsker-Varadhan value."""
    s = scale * x @ y.T
    off = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    marginal = s[off]
    js = F.logsigmoid(s.diagonal()).mean() - F.softplus(marginal).mean()
    value = s.diagonal().mean() - marginal.clamp(-5, 5).logsumexp(0) + math.log(marginal.numel())
    return -(js + (value - js).detach())
