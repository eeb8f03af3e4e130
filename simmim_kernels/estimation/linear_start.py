"""The linear answer, where training begins: ridge CCA, shrunk as far as the validation rows want it.

A Gaussian critic -|g(x) - h(y)|^2 / 2 of linear g and h contains the log density ratio of correlated Gaussians: for
canonical correlations r_k, g_k = u_k / sqrt(1 - r_k^2) and h_k = r_k v_k / sqrt(1 - r_k^2), up to a function of x,
which InfoNCE does not see.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import bounds
from ..critics import GaussianCritic
from .rows import FoldRows

_RIDGE = 1e-3  # of a column's mean variance
_MOST_CORRELATED, _LEAST_CORRELATED = 0.9999, 1e-3
# How the whitened cross-covariance is shrunk. "soft" and "hard" are thresholds of its singular values, in units of the
# largest one that independent columns would give; "entries" is one of its entries, in their standard deviations there.
_WAYS = (
    ("soft", 0.0),
    ("soft", 0.5),
    ("soft", 1.0),
    ("hard", 1.0),
    ("entries", 2.5),
    ("entries", 3.5),
    ("entries", 4.5),
)
_TEMPERATURES = (1.0, 0.5, 0.25, 0.1, 0.03)


@dataclass(frozen=True)
class LinearStart:
    """g(x) = x @ weight_x.T of x's first columns, h likewise, and what InfoNCE reads of them on the validation rows."""

    weight_x: Tensor
    weight_y: Tensor
    value: float
    way: tuple[str, float]
    temperature: float


@torch.no_grad()
def linear_start(data: FoldRows, features: int) -> LinearStart | None:
    """The best on the validation rows, of at most `features` rows; None where none is above 0."""
    best: LinearStart | None = None
    widths = {(data.base_x, data.base_y), (data.x_train.shape[1], data.y_train.shape[1])}
    for base_x, base_y in sorted(widths):
        whitened = _Whitened(data.x_train[:, :base_x], data.y_train[:, :base_y])
        held_x, held_y = data.x_validation[:, :base_x], data.y_validation[:, :base_y]
        for way in _WAYS:
            weight_x, weight_y = whitened.weights(way, features)
            for temperature in _TEMPERATURES if len(weight_x) else ():
                scale = math.sqrt(temperature)
                pair = scale * held_x @ weight_x.T, scale * held_y @ weight_y.T
                value = bounds.infonce(GaussianCritic()(*pair)).item()
                if value > (0.0 if best is None else best.value):
                    best = LinearStart(scale * weight_x, scale * weight_y, value, way, temperature)
    return best


@torch.no_grad()
def refitted(start: LinearStart, data: FoldRows, features: int) -> LinearStart:
    """Of the training and validation rows together, now that these have chosen how to shrink."""
    x, y = (
        torch.cat(rows)[:, : weight.shape[1]]
        for rows, weight in (
            ((data.x_train, data.x_validation), start.weight_x),
            ((data.y_train, data.y_validation), start.weight_y),
        )
    )
    weight_x, weight_y = _Whitened(x, y).weights(start.way, features)
    scale = math.sqrt(start.temperature)
    return replace(start, weight_x=scale * weight_x, weight_y=scale * weight_y) if len(weight_x) else start


class _Whitened:
    """The cross-covariance of whitened x (N, dx) and y (N, dy), whose columns have mean 0."""

    def __init__(self, x: Tensor, y: Tensor):
        self.rows = len(x)
        x, y = x.double(), y.double()
        self.whiten_x, self.whiten_y = _whitener(x), _whitener(y)
        self.cross = self.whiten_x @ (x.T @ y / self.rows) @ self.whiten_y
        self.decomposed = torch.linalg.svd(self.cross, full_matrices=False)
        self.noise = sum(map(math.sqrt, self.cross.shape)) / math.sqrt(self.rows)

    def weights(self, way: tuple[str, float], features: int) -> tuple[Tensor, Tensor]:
        """(k, dx) and (k, dy) of the k <= features correlations that are left."""
        kind, threshold = way
        u, r, vt = self.decomposed
        if kind == "soft":
            r = r - threshold * self.noise
        elif kind == "hard":
            r = r * (r > threshold * self.noise)
        else:
            kept = self.cross.abs() > threshold / math.sqrt(self.rows)
            u, r, vt = torch.linalg.svd(self.cross * kept, full_matrices=False)
        r = r.clamp_max(_MOST_CORRELATED)[:features]
        r = r[r > _LEAST_CORRELATED]
        scale = (1 - r**2).rsqrt()[:, None]
        weight_x = scale * (u[:, : len(r)].T @ self.whiten_x)
        weight_y = r[:, None] * scale * (vt[: len(r)] @ self.whiten_y)
        return weight_x.float(), weight_y.float()


def _whitener(x: Tensor) -> Tensor:
    """The inverse square root of the covariance (d, d), which stays nearest to the columns as they are."""
    covariance = x.T @ x / len(x)
    covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean().clamp_min(1e-12))
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(1e-12).rsqrt()) @ vectors.T
