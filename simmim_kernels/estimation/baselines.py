"""Estimates that train nothing, to hold against the bounds: a Gaussian copula, in closed form, and neighbours.

None is a bound. All read normal quantiles of each column's ranks, as features.ranker makes them, in nats.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .features import normal_scores
from .pairs import MOST_COLUMNS, are_independent, matched

NEIGHBOURS = 3

# Comparisons of two numbers that the nearest neighbours may take, about ten seconds of a core; and their chunks' size.
_MOST_COMPARISONS, _CHUNK = 1e9, 2**22
_MOST_COLUMNS, _MOST_ROWS_OF_PAIRS = 64, 4000
_DISCRETE = f"of discrete values it needs most pairs {NEIGHBOURS + 1} times"


@dataclass(frozen=True)
class Baseline:
    """An estimate in nats of some or all of the rows, or why there is none."""

    value: float | None
    rows: int
    """How many it was made from: all, or as many as time allows."""
    kind: str
    """What it is."""
    missing: str | None = None
    """Where `value` is None, why."""


def baselines(x: np.ndarray, y: np.ndarray, seed: int = 0) -> dict[str, Baseline]:
    """By name, "gaussian_copula", "ksg" and "ksg_pairs" of x (N, dx) and y (N, dy), float64."""
    scores = normal_scores(x), normal_scores(y)
    return {
        "gaussian_copula": _copula(*scores),
        "ksg": _neighbours(*scores, seed),
        "ksg_pairs": _neighbours_of_pairs(*scores, seed),
    }


def _copula(x: np.ndarray, y: np.ndarray) -> Baseline:
    kind = "model: exact where ranks have a Gaussian copula; not a bound"
    rows, columns = len(x), x.shape[1] + y.shape[1]
    if rows < columns + 2:
        return Baseline(None, rows, kind, f"it needs more rows than the {columns} columns")
    value = gaussian_information(x, y)
    if value is None:
        return Baseline(None, rows, kind, "columns are linear functions of others")
    return Baseline(value, rows, kind)


def gaussian_information(x: np.ndarray, y: np.ndarray) -> float | None:
    """(log det R_x + log det R_y - log det R) / 2, R the correlations of (x, y), less its bias for Gaussian samples.

    The expected log det of a Wishart matrix of d columns is that of its scale plus sum_k digamma((n - k) / 2), k < d,
    and a constant, with n degrees of freedom. None where R is singular.
    """
    dx, dy, n = x.shape[1], y.shape[1], len(x) - 1
    correlations = np.atleast_2d(np.corrcoef(x, y, rowvar=False))
    if np.linalg.eigvalsh(correlations)[0] < 1e-9:
        return None
    blocks = (correlations, correlations[:dx, :dx], correlations[dx:, dx:])
    both, alone_x, alone_y = (float(np.linalg.slogdet(block)[1]) for block in blocks)
    digamma = torch.special.digamma((n - torch.arange(dx + dy, dtype=torch.float64)) / 2)
    bias = -0.5 * (digamma.sum() - digamma[:dx].sum() - digamma[:dy].sum()).item()
    return -0.5 * (both - alone_x - alone_y) - bias


def _neighbours(x: np.ndarray, y: np.ndarray, seed: int) -> Baseline:
    kind = f"{NEIGHBOURS} nearest neighbours (KSG), not a bound; low in many columns and at many nats"
    columns = x.shape[1] + y.shape[1]
    if columns > _MOST_COLUMNS:
        return Baseline(None, 0, kind, f"of more than {_MOST_COLUMNS} columns it says nothing")
    rows = min(len(x), int(math.sqrt(_MOST_COMPARISONS / columns)))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(x))[:rows])
    near_x, near_y = (torch.from_numpy(values[chosen]).float() for values in (x, y))
    value = _unless_discrete(near_x, near_y)
    return Baseline(value, rows, kind, _DISCRETE if value is None else None)


def _unless_discrete(x: Tensor, y: Tensor) -> float | None:
    value, coinciding = nearest_neighbours(x, y)
    discrete = all(len(t.unique(dim=0)) < len(x) / 2 for t in (x, y))
    return None if discrete and coinciding < 0.5 else value


def _neighbours_of_pairs(x: np.ndarray, y: np.ndarray, seed: int) -> Baseline:
    """The sum over pairs (j, k), no column twice, of I(x_j; y_k).

    It is no more than I(X; Y) where the columns of x, or those of y, are independent of each other.
    """
    kind = "KSG of single columns, summed over pairs of them; too low where columns do not pair off; not a bound"
    least, most = sorted((x.shape[1], y.shape[1]))
    if least < 2 or most > MOST_COLUMNS:
        return Baseline(None, 0, kind, f"it is for 2 to {MOST_COLUMNS} columns")
    both = torch.from_numpy(x), torch.from_numpy(y)
    if not any(map(are_independent, both)):
        return Baseline(None, 0, kind, "columns depend on each other, in x and in y")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(x))[:_MOST_ROWS_OF_PAIRS])
    near_x, near_y = (side[chosen].float() for side in both)
    pairs = matched(*both)
    values = [_unless_discrete(near_x[:, [j]], near_y[:, [k]]) for j, k in pairs]
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return Baseline(None, len(chosen), kind, _DISCRETE)
    return Baseline(float(sum(found)), len(chosen), kind)


def nearest_neighbours(x: Tensor, y: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Estimator 1 of Kraskov, Stoegbauer and Grassberger 2004 (Phys. Rev. E 69:066138), with maximum norms.

    Rows that coincide with k others or more are counted as Gao et al. 2017 (arXiv:1709.06212) do, so that discrete
    columns and mixtures of both kinds are read too; the second number is how large a share of the rows that is.
    """
    n = len(x)
    terms, coinciding = [], 0
    for rows in torch.arange(n).split(max(_CHUNK // n, 1)):
        from_x, from_y = (torch.cdist(t[rows], t, p=math.inf) for t in (x, y))
        both = torch.maximum(from_x, from_y)
        radius = both.topk(k + 1, largest=False).values[:, k:]  # the first is the row itself
        tied = radius == 0
        among = torch.where(tied, (both == 0).sum(1, keepdim=True) - 1, k)
        near = [((t < radius) | (tied & (t == 0))).sum(1, keepdim=True) for t in (from_x, from_y)]  # and the row itself
        terms.append(_digamma(among) - sum(map(_digamma, near)))
        coinciding += int(tied.sum())
    return (_digamma(torch.tensor(n)) + torch.cat(terms).mean()).item(), coinciding / n


def _digamma(counts: Tensor) -> Tensor:
    return torch.special.digamma(counts.double())
