"""lightly's NTXentLoss, DCLLoss and DCLWLoss (of 1.6.0), without the logits."""

from functools import partial

import torch
import torch.nn.functional as F
from lightly.loss import DCLLoss as _DCLLoss
from lightly.loss import DCLWLoss as _DCLWLoss
from lightly.loss import NTXentLoss as _NTXentLoss
from torch import Tensor

from ..decoupled import dcl_loss, mises_fisher_weights
from ..losses import info_nce_loss, nt_xent_loss
from ._processes import only_one, world


def _any_sign(temperature: float | Tensor) -> float | Tensor:
    """Ours take numbers above zero, and tensors as they are."""
    if isinstance(temperature, Tensor) or temperature > 0:
        return temperature
    return torch.tensor(temperature, dtype=torch.float64)


class NTXentLoss(_NTXentLoss):
    """lightly's NTXentLoss: SimCLR's without a memory bank, MoCo's with one, which is lightly's own module.

    With gather_distributed every process has the loss of the whole batch and, once DDP averaged them, its gradients.
    """

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        temperature = _any_sign(self.temperature)
        if self.memory_bank.size[0] == 0:
            group = world("NTXentLoss(gather_distributed=True)") if self.gather_distributed else None
            return nt_xent_loss(out0, out1, temperature, group=group)
        out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        out1, bank = self.memory_bank(out1, update=out0.requires_grad)
        return info_nce_loss(out0, out1, bank.T.to(out0), temperature, normalize=False)


class DCLLoss(_DCLLoss):
    """lightly's DCLLoss; of several processes as NTXentLoss above, but with a weight_fn in one alone."""

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        group = None
        if self.gather_distributed:
            if self.weight_fn is not None:
                only_one("DCLLoss(gather_distributed=True) with a weight_fn")
            group = world("DCLLoss(gather_distributed=True)")
        return dcl_loss(out0, out1, _any_sign(self.temperature), weight_fn=self.weight_fn, group=group)


class DCLWLoss(_DCLWLoss, DCLLoss):
    """lightly's DCLWLoss; of several processes with the weights of one, which are relative to the whole batch."""

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        group = world("DCLWLoss(gather_distributed=True)") if self.gather_distributed else None
        if group is None:
            return super().forward(out0, out1)
        weigh = partial(mises_fisher_weights, sigma=self.weight_fn.keywords["sigma"], group=group)
        return dcl_loss(out0, out1, _any_sign(self.temperature), weight_fn=weigh, group=group)
