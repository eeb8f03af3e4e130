"""Columns as critics take them: ranks or standard scores, indicators of symbols, and what linear critics need besides.

Everything is fitted on training rows alone.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

Transform = Callable[[np.ndarray], np.ndarray]

_MOST_QUANTILES = 65536
# Columns of few values, or of values that come often, may be symbols, whose order says nothing.
_FEW_LEVELS, _MOST_LEVELS, _REPEATS, _MOST_INDICATORS = 16, 256, 20, 256
_MOST_COLUMNS_OF_PIECES, _PIECES, _MOST_PIECES = 16, 96, 32


def standardiser(train: np.ndarray, symbols: Sequence[int] = ()) -> Transform:
    """Mean 0 and standard deviation 1; of the columns named as symbols indicators besides."""
    mean, deviation = train.mean(0), train.std(0)
    # A column can be constant in the training rows alone; it then counts for nothing.
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    indicators = _indicators(train, symbols)
    return lambda values: np.concatenate([(values - mean) * scale, indicators(values)], axis=1)


def ranker(train: np.ndarray, symbols: Sequence[int] = ()) -> Transform:
    """Normal quantiles of mid-ranks, linear between the values seen in training and constant beyond them.

    The columns named as symbols give an indicator of each value besides. So do columns of 3 to 16 values, or of up to
    256 that come 20 times or more in the median: they may be symbols, whose order says nothing. Not where that would
    make more than 256: many such columns are pixels or counts, whose order does, and cost as many.
    """
    knots, likely, count = [], [], 0
    for k, column in enumerate(train[:_MOST_QUANTILES].T):
        seen, counts = np.unique(column, return_counts=True)
        rank = (counts.cumsum() - counts / 2) / counts.sum()
        knots.append((seen, torch.special.ndtri(torch.from_numpy(rank)).numpy()))
        few = len(seen) <= _FEW_LEVELS or (len(seen) <= _MOST_LEVELS and np.median(counts) >= _REPEATS)
        if few and len(seen) >= 3 and k not in symbols:
            likely.append(k)
            count += len(seen)
    indicators = _indicators(train, [*symbols, *(likely if count <= _MOST_INDICATORS else [])])

    def apply(values: np.ndarray) -> np.ndarray:
        ranks = [np.interp(column, *knot)[:, None] for column, knot in zip(values.T, knots, strict=True)]
        return np.concatenate([*ranks, indicators(values)], axis=1)

    return apply


def _indicators(train: np.ndarray, columns: Sequence[int]) -> Transform:
    seen = [(k, np.unique(train[:, k])) for k in sorted(columns)]

    def apply(values: np.ndarray) -> np.ndarray:
        made = [values[:, k, None] == levels for k, levels in seen]
        return np.concatenate([np.empty((len(values), 0)), *made], axis=1)

    return apply


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Every column's ranks as normal quantiles, without indicators."""
    return ranker(values)(values)[:, : values.shape[1]]


def extras(train: np.ndarray) -> Transform:
    """Of transformed columns (N, d), in float32: the log of their root mean square, and, where d <= 16, pieces of each.

    The pieces of a column are the weights of linear interpolation between quantiles of its training values, so that a
    linear function of them is any continuous function that is linear between those quantiles.
    """
    d = train.shape[1]
    grids = []
    if d <= _MOST_COLUMNS_OF_PIECES:
        levels = np.linspace(0, 1, min(_PIECES // d, _MOST_PIECES) + 1)
        grids = [np.unique(np.quantile(column, levels)) for column in train.T]

    def apply(values: np.ndarray) -> np.ndarray:
        radius = 0.5 * np.log((values**2).mean(1, keepdims=True, dtype=np.float32) + np.float32(1e-6))
        return np.concatenate([radius, *map(_interpolation_weights, values.T, grids)], axis=1)

    return apply


def _interpolation_weights(column: np.ndarray, grid: np.ndarray) -> np.ndarray:
    if len(grid) < 3:
        return np.empty((len(column), 0), dtype=np.float32)
    column = column.clip(grid[0], grid[-1])
    right = np.searchsorted(grid, column, side="left").clip(1, len(grid) - 1)
    share = (column - grid[right - 1]) / (grid[right] - grid[right - 1])
    made = np.zeros((len(column), len(grid)), dtype=np.float32)
    rows = np.arange(len(column))
    made[rows, right - 1], made[rows, right] = 1 - share, share
    return made


TRANSFORMS: dict[str, Callable[[np.ndarray, Sequence[int]], Transform]] = {"rank": ranker, "standardise": standardiser}
