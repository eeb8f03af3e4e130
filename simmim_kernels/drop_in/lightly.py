"""lightly's NTXentLoss, DCLLoss and DCLWLoss (of 1.6.0), without the logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightly.loss import DCLLoss as _DCLLoss
from lightly.loss import DCLWLoss as _DCLWLoss
from lightly.loss import NTXentLoss as _NTXentLoss
from torch import Tensor

from ..decoupled import dcl_loss, mises_fisher_weights
from ..losses import info_nce_loss, nt_xent_loss
from ._processes import SeveralProcesses, on_whole_batch, world


def _any_sign(temperature: float | Tensor) -> float | Tensor:
    """Ours take numbers above zero, and tensors as they are."""
    if isinstance(temperature, Tensor) or temperature > 0:
        return temperature
    return torch.tensor(temperature, dtype=torch.float64)


class NTXentLoss(SeveralProcesses, _NTXentLoss):
    """lightly's NTXentLoss: SimCLR's without a memory bank, MoCo's with one, which is lightly's own module.

    With gather_distributed every process has the loss of the whole batch and, once DDP averaged them, its gradients;
    with original_gradients = True the loss of its own anchors, as there, and the same gradients.
    """

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        temperature = _any_sign(self.temperature)
        if self.memory_bank.size[0] == 0:
            group = world("gather_distributed=True") if self.gather_distributed else None
            return self._of_group(nt_xent_loss, out0, out1, temperature, group=group)
        out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        out1, bank = self.memory_bank(out1, update=out0.requires_grad)
        return info_nce_loss(out0, out1, bank.T.to(out0), temperature, normalize=False)


class DCLLoss(SeveralProcesses, _DCLLoss):
    """lightly's DCLLoss; of several processes as NTXentLoss above.

    A weight_fn is then asked once for each order of the views of the whole batch or, with original_gradients = True, as
    there, of a process's own rows: its weights may be relative to all that it is asked of.
    """

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        group = world("gather_distributed=True") if self.gather_distributed else None
        weigh = self.weight_fn
        if group is not None and weigh is not None and not self.original_gradients:
            weigh = self._weights_of_all(group)
        return self._of_group(dcl_loss, out0, out1, _any_sign(self.temperature), weight_fn=weigh, group=group)

    def _weights_of_all(self, group: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return on_whole_batch(self.weight_fn, group)


class DCLWLoss(_DCLWLoss, DCLLoss):
    """lightly's DCLWLoss; of several processes as DCLLoss above."""

    def _weights_of_all(self, group: Any) -> Callable[[Tensor, Tensor], Tensor]:
        # Theirs on the whole batch, for which no features need to be gathered.
        return partial(mises_fisher_weights, sigma=self.weight_fn.keywords["sigma"], group=group)
