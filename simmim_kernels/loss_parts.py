"""What losses share: reductions, the scale of a temperature, scores of rows of candidates, a Module for options."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .operator import sharded
from .operator.computation import without_autocast
from .operator.global_batch import Shards, global_batch
from .problem import compute_dtype, validation

REDUCTIONS = ("mean", "sum", "none")


def inverse(temperature: float | Tensor, like: Tensor) -> Tensor:
    """() 1 / temperature, on the device of `like`."""
    return validation.reciprocal(temperature, "temperature", like)


def rowwise_scores(
    x: Tensor, y: Tensor, name: str, scale: Tensor, normalize: bool = True, may_be_empty: bool = False
) -> Tensor:
    """(N, K) scale <x_i, y_ik> of x (N, d) and its own candidates y (N, K, d), in the compute dtype: linear work.

    With may_be_empty N may be 0, as on one of several ranks.
    """
    if y.dim() != 3 or y.shape[::2] != x.shape or y.shape[1] == 0:
        raise ValueError(f"{name} must have shape ({len(x)}, K, {x.shape[1]}), got {validation.describe(y)}")
    validation.operands(x, y.flatten(0, 1), ("query", name), may_be_empty=may_be_empty)
    with without_autocast(x.device):
        dtype = compute_dtype(x.dtype)
        y = (F.normalize(y, dim=2) if normalize else y).to(dtype)
        return scale * torch.einsum("nd,nkd->nk", x.to(dtype), y)


def reduced(values: Tensor, reduction: str, shards: Shards | None = None) -> Tensor:
    """Values (n,), one for each anchor, or what they come to over the anchors of all ranks."""
    if reduction == "none":
        return values
    return sharded.mean(values, shards) if reduction == "mean" else sharded.add(values.sum(), shards)


def reduced_over(
    values: Tensor,
    counted: Tensor,
    reduction: str,
    empty: float,
    weight: Tensor | None = None,
    shards: Shards | None = None,
) -> Tensor:
    """The reduction over the rows that count; the others are 0.

    The mean divides by the number of those rows, or by the sum of their weights; where that is 0 it is `empty`.
    """
    values = values.where(counted, 0)
    if reduction != "mean":
        return reduced(values, reduction, shards)
    number = counted.sum() if weight is None else weight.where(counted, 0).sum()
    number, total = sharded.add(number, shards), sharded.add(values.sum(), shards)
    return torch.where(number != 0, total / number.where(number != 0, 1), empty)


class Loss(nn.Module):
    """Holds a loss function's options; shows them in its repr."""

    def __init__(self, **options):
        super().__init__()
        if "reduction" in options:
            validation.choice(options["reduction"], "reduction", REDUCTIONS)
        if "temperature" in options:
            validation.positive(options["temperature"], "temperature")
        if options.get("group") is not None:
            options["group"] = global_batch(options["group"])
        for name, value in options.items():
            setattr(self, name, value)
        self._names = tuple(options)

    @property
    def _options(self) -> dict:
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        shown = {name: value for name, value in self._options.items() if name != "group" or value is not None}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
