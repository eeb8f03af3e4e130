"""Critics: modules that score every pair of x (N, dx) and y (M, dy), as PairwiseScores.

forward(x, y, positives=None, group=None) gives the scores; `positives` (N,) int64 is the column of each row's joint
pair, by default the diagonal, and `group` a process group whose ranks' rows are one batch: see PairwiseScores. All but
MLPCritic are affine in an inner product of features, so that one kernel family serves them.

All raise TypeError or ValueError naming the argument, what it got and what it needs.
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .operator.computation import autocast, without_autocast
from .operator.global_batch import shards_of
from .operator.sharded import mean_column
from .problem import Problem, compute_dtype, validation
from .scores import PairwiseScores


class DotCritic(nn.Module):
    """s_ij = scale <x_i, y_j> of x (N, d), y (M, d).

    `scale` is a number, or a tensor of one element that may require grad.
    """

    def __init__(self, scale: float | Tensor = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor, positives: Tensor | None = None, group: Any = None) -> PairwiseScores:
        return PairwiseScores(x, y, scale=self.scale, positives=positives, group=group)

    def extra_repr(self) -> str:
        return "" if isinstance(self.scale, Tensor) else f"scale={self.scale}"


class CosineCritic(nn.Module):
    """s_ij = cos(x_i, y_j) / temperature, as SimCLR and CLIP score pairs; x (N, d), y (M, d), temperature > 0.

    With learnable=True the parameter is log_temperature, so that the temperature stays positive.
    """

    def __init__(self, temperature: float = 0.07, learnable: bool = False):
        super().__init__()
        validation.flag(learnable, "learnable")
        self._temperature = temperature = validation.positive_number(temperature, "temperature")
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learnable else None

    @property
    def temperature(self) -> float | Tensor:
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, x: Tensor, y: Tensor, positives: Tensor | None = None, group: Any = None) -> PairwiseScores:
        x, y = validation.operands(x, y, ("x", "y"), may_be_empty=group is not None)
        scale = validation.reciprocal(self.temperature, "temperature", x)
        unit = F.normalize(x, dim=1)
        unit_y = unit if y is x else F.normalize(y, dim=1)
        return PairwiseScores(unit, unit_y, scale=scale, positives=positives, group=group)

    def extra_repr(self) -> str:
        return f"temperature={_number(self.temperature):.4g}, learnable={self.log_temperature is not None}"


class BilinearCritic(nn.Module):
    """s_ij = x_i^T W y_j with W = `weight` (dim_x, dim_y), as in CPC (van den Oord et al. 2018, eq. 3).

    x (N, dim_x), y (M, dim_y).
    """

    def __init__(self, dim_x: int, dim_y: int):
        super().__init__()
        dim_x, dim_y = validation.integer(dim_x, "dim_x", 1), validation.integer(dim_y, "dim_y", 1)
        self.weight = nn.Parameter(torch.empty(dim_x, dim_y))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, y: Tensor, positives: Tensor | None = None, group: Any = None) -> PairwiseScores:
        x, y = validation.operands(x, y, ("x", "y"), same_width=False, may_be_empty=group is not None)
        validation.width(x, self.weight.shape[0], "x")
        validation.width(y, self.weight.shape[1], "y")
        return PairwiseScores(x @ self.weight.to(x.dtype), y, positives=positives, group=group)

    def extra_repr(self) -> str:
        return f"dim_x={self.weight.shape[0]}, dim_y={self.weight.shape[1]}"


class GaussianCritic(nn.Module):
    """s_ij = -|x_i - y_j|^2 / (2 bandwidth^2), an inner product with a row bias and a column bias.

    x (N, d), y (M, d), bandwidth > 0. With learnable=True the parameter is log_bandwidth.
    """

    def __init__(self, bandwidth: float = 1.0, learnable: bool = False):
        super().__init__()
        validation.flag(learnable, "learnable")
        self._bandwidth = bandwidth = validation.positive_number(bandwidth, "bandwidth")
        if not 1e-19 <= bandwidth <= 1e19:
            raise ValueError(f"bandwidth must be between 1e-19 and 1e19, for its square, got {bandwidth!r}")
        self.log_bandwidth = nn.Parameter(torch.tensor(math.log(bandwidth))) if learnable else None

    @property
    def bandwidth(self) -> float | Tensor:
        return self._bandwidth if self.log_bandwidth is None else self.log_bandwidth.exp()

    def forward(self, x: Tensor, y: Tensor, positives: Tensor | None = None, group: Any = None) -> PairwiseScores:
        x, y = autocast(*validation.operands(x, y, ("x", "y"), may_be_empty=group is not None))
        precision = self.bandwidth**-2
        shards = shards_of(group, Problem(x, y, [validation.scalar(precision, "bandwidth", x)], positives=positives))
        if x.dtype in (torch.float32, torch.float64):
            # Distances do not see a common shift, but their expansion into products loses |shift|^2 digits.
            # In half precision the shift itself would round; the products are exact in float32 there.
            centre = mean_column(y.detach(), shards)
            shifted = x - centre
            x, y = shifted, shifted if y is x else y - centre
        row_bias = -0.5 * precision * x.to(compute_dtype(x.dtype)).square().sum(1)
        # One tensor where x and y are one: half of the scores then stand for all.
        col_bias = row_bias if y is x else -0.5 * precision * y.to(compute_dtype(y.dtype)).square().sum(1)
        biases = {"row_bias": row_bias, "col_bias": col_bias}
        return PairwiseScores(x, y, scale=precision, **biases, positives=positives, group=shards)

    def extra_repr(self) -> str:
        return f"bandwidth={_number(self.bandwidth):.4g}, learnable={self.log_bandwidth is not None}"


class SeparableCritic(nn.Module):
    """critic(g(x), h(y)): two towers, of whatever input, and a critic of their features (N, d) and (M, d).

    `critic` is by default DotCritic().
    """

    def __init__(self, g: nn.Module, h: nn.Module, critic: nn.Module | None = None):
        super().__init__()
        self.g, self.h = g, h
        self.critic = DotCritic() if critic is None else critic

    def forward(self, x: Tensor, y: Tensor, positives: Tensor | None = None, group: Any = None) -> PairwiseScores:
        pair = self.g(x), self.h(y)
        given = {"positives": positives, "group": group}
        return self.critic(*pair, **{name: value for name, value in given.items() if value is not None})


class MLPCritic(nn.Module):
    """s_ij = w . MLP([x_i, y_j]) + b: the concatenated critic, a ReLU network run on every pair.

    x (N, dim_x), y (M, dim_y). `layers` counts hidden layers of width `hidden`. The first is split into its x and y
    halves, so that only the later ones are run on N x M pairs; statistics recompute them tile by tile, in O((N + M)
    hidden) memory.
    """

    def __init__(self, dim_x: int, dim_y: int, hidden: int = 256, layers: int = 2):
        super().__init__()
        dim_x, dim_y = (validation.integer(v, name, 1) for v, name in ((dim_x, "dim_x"), (dim_y, "dim_y")))
        hidden, layers = validation.integer(hidden, "hidden", 1), validation.integer(layers, "layers", 1)
        self.dim_x, self.dim_y = dim_x, dim_y
        widths = [dim_x + dim_y] + [hidden] * layers
        self.hidden_layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.output = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, y: Tensor, positives: Tensor | None = None, group: Any = None) -> PairwiseScores:
        x, y = self._check(x, y, may_be_empty=group is not None)
        first_weight, first_bias, *parameters = [*self.hidden_layers.parameters(), *self.output.parameters()]
        x, y = autocast(x, y)
        # The halves stay in full precision: rounded one by one, their sum could fall on the wrong side of the ReLU.
        dtype = compute_dtype(x.dtype)
        weight_x, weight_y = first_weight.to(x.dtype).to(dtype).split([self.dim_x, self.dim_y], dim=1)
        with without_autocast(x.device):
            half_x = F.linear(x.to(dtype), weight_x)
            half_y = F.linear(y.to(dtype), weight_y, first_bias.to(dtype))
        return PairwiseScores.of_mlp(half_x, half_y, parameters, positives, group)

    def pair_scores(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,) scores of the pairs (x_i, y_i) of x (N, dim_x) and y (N, dim_y), by the network as it stands."""
        x, y = self._check(x, y, same_length=True)
        hidden = torch.cat([x, y], dim=1)
        for layer in self.hidden_layers:
            hidden = layer(hidden).relu()
        return self.output(hidden).squeeze(1)

    def _check(
        self, x: Tensor, y: Tensor, same_length: bool = False, may_be_empty: bool = False
    ) -> tuple[Tensor, Tensor]:
        lengths = {"same_length": same_length, "may_be_empty": may_be_empty}
        x, y = validation.operands(x, y, ("x", "y"), same_width=False, **lengths)
        validation.width(x, self.dim_x, "x")
        validation.width(y, self.dim_y, "y")
        if not torch.is_autocast_enabled(x.device.type) and x.dtype != self.output.weight.dtype:
            raise TypeError(
                f"x and y must have the dtype of the critic's parameters, {self.output.weight.dtype}; got {x.dtype}"
            )
        return x, y


def _number(value: float | Tensor) -> float:
    return value.item() if isinstance(value, Tensor) else value
