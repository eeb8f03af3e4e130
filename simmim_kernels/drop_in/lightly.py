"""lightly's NTXentLoss, DCLLoss and DCLWLoss (of 1.6.0), without the logits."""

import torch
import torch.nn.functional as F
from lightly.loss import DCLLoss as _DCLLoss
from lightly.loss import DCLWLoss as _DCLWLoss
from lightly.loss import NTXentLoss as _NTXentLoss
from torch import Tensor

from ..decoupled import dcl_loss
from ..losses import info_nce_loss, nt_xent_loss
from ._processes import only_one


def _any_sign(temperature: float | Tensor) -> float | Tensor:
    """Ours take numbers above zero, and tensors as they are."""
    if isinstance(temperature, Tensor) or temperature > 0:
        return temperature
    return torch.tensor(temperature, dtype=torch.float64)


class NTXentLoss(_NTXentLoss):
    """lightly's NTXentLoss: SimCLR's without a memory bank, MoCo's with one, which is lightly's own module."""

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        if self.gather_distributed:
            only_one("NTXentLoss(gather_distributed=True)")
        temperature = _any_sign(self.temperature)
        if self.memory_bank.size[0] == 0:
            return nt_xent_loss(out0, out1, temperature)
        out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        out1, bank = self.memory_bank(out1, update=out0.requires_grad)
        return info_nce_loss(out0, out1, bank.T.to(out0), temperature, normalize=False)


class DCLLoss(_DCLLoss):
    """lightly's DCLLoss."""

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        if self.gather_distributed:
            only_one(f"{type(self).__name__}(gather_distributed=True)")
        return dcl_loss(out0, out1, _any_sign(self.temperature), weight_fn=self.weight_fn)


class DCLWLoss(_DCLWLoss, DCLLoss):
    """lightly's DCLWLoss: its constructor, whose weight_fn goes to DCLLoss above."""
