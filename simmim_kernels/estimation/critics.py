"""The critics that are trained: what they are made of."""

from typing import Any

import torch
from torch import Tensor, nn

from ..critics import GaussianCritic, MLPCritic, SeparableCritic
from ..scores import PairwiseScores
from .linear_start import LinearStart
from .rows import FoldRows

CRITICS = ("separable", "mlp")
DEFAULT_BATCH = {"separable": 512, "mlp": 128}

_HIDDEN = {"separable": 256, "mlp": 64}
_LEAST_FEATURES, _MOST_FEATURES = 32, 256


class Tower(nn.Module):
    """W x of x's first `width` columns, plus a ReLU network of its first `base` ones where `full`.

    The network starts as zero, and W too where `zero`.
    """

    def __init__(self, width: int, base: int, features: int, zero: bool):
        super().__init__()
        hidden = _HIDDEN["separable"]
        self.width, self.base, self.full = width, base, True
        self.linear = nn.Linear(width, features, bias=False)
        self.network = nn.Sequential(
            nn.Linear(base, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, features)
        )
        _zero(self.network[-1])
        if zero:
            _zero(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        linear = self.linear(x[:, : self.width])
        return linear + self.network(x[:, : self.base]) if self.full else linear


def features_of(data: FoldRows) -> int:
    return min(max(_LEAST_FEATURES, min(data.base_x, data.base_y)), _MOST_FEATURES)


def separable(data: FoldRows, start: LinearStart | None) -> SeparableCritic:
    """The critic of `start`; or one at random that scores no y above another, so that calibrated it reads 0."""
    features = features_of(data)
    if start is None:
        towers = (
            Tower(data.base_x, data.base_x, features, zero=False),
            Tower(data.base_y, data.base_y, features, zero=True),
        )
    else:
        widths = start.weight_x.shape[1], start.weight_y.shape[1]
        towers = (
            Tower(widths[0], data.base_x, features, zero=False),
            Tower(widths[1], data.base_y, features, zero=True),
        )
        with torch.no_grad():
            for tower, weight in zip(towers, (start.weight_x, start.weight_y), strict=True):
                tower.linear.weight[: len(weight)] = weight
    return SeparableCritic(*towers, GaussianCritic())


class Concatenated(MLPCritic):
    """Of the first columns of x and of y, as many as it was made for."""

    def forward(self, x: Tensor, y: Tensor, positives: Tensor | None = None, group: Any = None) -> PairwiseScores:
        return super().forward(x[:, : self.dim_x], y[:, : self.dim_y], positives, group)


def concatenated(data: FoldRows) -> Concatenated:
    """A critic that scores no y above another, as `separable` without a start."""
    mlp = Concatenated(data.base_x, data.base_y, hidden=_HIDDEN["mlp"])
    _zero(mlp.output)
    return mlp


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
