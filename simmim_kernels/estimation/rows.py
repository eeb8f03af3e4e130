"""The rows of an estimate: checked, split into what trains, chooses and tests, and transformed alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..problem import validation

LEAST_ROWS_PER_FOLD = 20

# An eighth of the rows to validate on, but 100 where there are few, of which a choice among critics needs that many;
# and never more than a third.
_VALIDATION_SHARE, _FEW_VALIDATION_ROWS, _MOST_VALIDATION_ROWS = 1 / 8, 100, 4096
# Beyond this, time would grow with the square of the rows and the interval is already narrow.
_MOST_TEST_ROWS = 16384
_MOST_QUANTILES, _MOST_SYMBOLS, _MOST_INDICATORS = 65536, 16, 256


class DataError(ValueError):
    """Samples that no estimate can be made from: the message says which, and why."""


def samples(value: Any, name: str) -> np.ndarray:
    """(N, d) float64 from an array or tensor of real numbers, of shape (N, d) or (N,). Raises DataError."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            raise DataError(f"{name} must be an array or a dense tensor with values, got {validation.describe(value)}")
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    shape = f"{array.dtype} of shape {array.shape}"
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} must hold real numbers, got {shape}")
    if array.ndim not in (1, 2):
        raise DataError(f"{name} must have shape (N,) or (N, d), got {shape}")
    array = array.reshape(len(array), -1) if array.size else array
    if array.size == 0:
        raise DataError(f"{name} must have at least one row and one column, got {shape}")
    return array.astype(np.float64)


def check_pairs(x: np.ndarray, y: np.ndarray, folds: int) -> None:
    if len(x) != len(y):
        raise DataError(f"x and y must have as many rows as each other, got {len(x)} and {len(y)}")
    for values, name in ((x, "x"), (y, "y")):
        bad = ~np.isfinite(values)
        if bad.any():
            raise DataError(
                f"{name} must be finite, got {int(bad.sum())} NaN or infinite values in {_columns(bad.any(0))}"
            )
        constant = (values == values[0]).all(0)
        if constant.any():
            raise DataError(
                f"{name} must not have constant columns, which carry no information; got {_columns(constant)}"
            )
    least = LEAST_ROWS_PER_FOLD * folds
    if len(x) < least:
        raise DataError(
            f"x and y must have at least {LEAST_ROWS_PER_FOLD} rows a fold, {least} for {folds} folds; got {len(x)}"
        )


def _columns(chosen: np.ndarray, most: int = 8) -> str:
    """The columns where a mask is true, counted from 0: "column 3", "columns 0, 2, ... (12 in all)"."""
    found = [str(i) for i in np.flatnonzero(chosen)]
    if len(found) <= most:
        return f"column{'s' * (len(found) > 1)} {', '.join(found)}"
    return f"columns {', '.join(found[:most])}, ... ({len(found)} in all)"


def repeated_pairs(x: np.ndarray, y: np.ndarray) -> int:
    """How many pairs repeat another one, where x or y is otherwise (nearly) free of repeats.

    Repeats of discrete values are no sign of a leak: there a value of x comes with many of y, and conversely.
    """
    distinct = _distinct_rows(np.concatenate([x, y], axis=1))
    if distinct == len(x) or max(_distinct_rows(x), _distinct_rows(y)) < 0.9 * distinct:
        return 0
    return len(x) - distinct


def _distinct_rows(values: np.ndarray) -> int:
    return len(set(map(bytes, np.ascontiguousarray(values + 0.0))))  # + 0.0: -0.0 is 0.0


@dataclass(frozen=True)
class Split:
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(parts: list[np.ndarray], k: int, seed: int) -> Split:
    """Row numbers of fold k: its own part to test on, the others shuffled into validation and training."""
    rest = np.random.default_rng(seed).permutation(np.concatenate(parts[:k] + parts[k + 1 :]))
    held = min(max(round(_VALIDATION_SHARE * len(rest)), _FEW_VALIDATION_ROWS), len(rest) // 3, _MOST_VALIDATION_ROWS)
    return Split(rest[held:], rest[:held], parts[k][:_MOST_TEST_ROWS])


@dataclass(frozen=True)
class FoldRows:
    """Transformed rows of one fold, float32."""

    x_train: Tensor
    y_train: Tensor
    x_validation: Tensor
    y_validation: Tensor
    x_test: Tensor
    y_test: Tensor


def prepare(x: np.ndarray, y: np.ndarray, chosen: Split, transform: str, device: torch.device) -> FoldRows:
    fit = TRANSFORMS[transform]
    rows: dict[str, Tensor] = {}
    for name, values in (("x", x), ("y", y)):
        apply = fit(values[chosen.train])
        for part in ("train", "validation", "test"):
            made = apply(values[getattr(chosen, part)])
            rows[f"{name}_{part}"] = torch.from_numpy(made.astype(np.float32)).to(device)
    return FoldRows(**rows)


def standardiser(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    mean, deviation = train.mean(0), train.std(0)
    # A column can be constant in the training rows alone; it then counts for nothing.
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return lambda values: (values - mean) * scale


def ranker(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Normal quantiles of mid-ranks, linear between the values seen in training and constant beyond them.

    A column of 3 to 16 values also gives an indicator of each: they may be symbols, whose order says nothing. Not
    where that would make more than 256: many such columns are pixels or counts, whose order does, and cost as many.
    """
    knots, symbols = [], []
    for k, column in enumerate(train[:_MOST_QUANTILES].T):
        seen, counts = np.unique(column, return_counts=True)
        rank = (counts.cumsum() - counts / 2) / counts.sum()
        knots.append((seen, torch.special.ndtri(torch.from_numpy(rank)).numpy()))
        if 3 <= len(seen) <= _MOST_SYMBOLS:
            symbols.append((k, seen))
    if sum(len(seen) for _, seen in symbols) > _MOST_INDICATORS:
        symbols = []

    def apply(values: np.ndarray) -> np.ndarray:
        ranks = [np.interp(column, *knot)[:, None] for column, knot in zip(values.T, knots, strict=True)]
        return np.concatenate([*ranks, *(values[:, k, None] == seen for k, seen in symbols)], axis=1)

    return apply


TRANSFORMS: dict[str, Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "rank": ranker,
    "standardise": standardiser,
}
