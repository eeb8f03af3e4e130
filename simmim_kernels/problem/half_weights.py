"""The unit of weights dL/ds that a backend keeps in float16."""

import math

import torch
from torch import Tensor

# float16 weights are scaled so that the largest possible one is between 2^11 and 2^12: the smallest are then kept down
# to 2^-36 of it.
_HALF_EXPONENT = 12
# Functions whose derivative is at most 1, so that upstream gradients bound the weights; of others float16 does not
# hold them.
BOUNDED = ("logsumexp", "softplus", "identity")


def weight_unit(operand: Tensor, upstream: tuple[Tensor | None, ...]) -> Tensor | None:
    """A power of two that float16 weights are multiplied by, lest small ones vanish; None for operands of other dtypes.

    `upstream` has the gradients of the statistics, which bound the weights.
    """
    if operand.dtype != torch.float16:
        return None
    largest = [gradient.abs().max().float() for gradient in upstream if gradient is not None and len(gradient)]
    # Without upstream gradients a weight is at most 1.
    most = torch.stack(largest).sum() if largest else torch.ones((), device=operand.device)
    unit = torch.exp2(_HALF_EXPONENT - torch.ceil(torch.log2(most)))
    return torch.where(torch.isfinite(unit) & (most > 0), unit, torch.ones_like(unit))


def unit_below(most: float, device: torch.device) -> Tensor:
    """() as `weight_unit` makes it, of weights of float16 operands that are at most `most`, which is above 0."""
    return torch.full((), 2.0 ** (_HALF_EXPONENT - math.ceil(math.log2(most))), device=device)
