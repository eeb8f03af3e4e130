"""Samples as they are given, by array, tensor, data frame or table, and what may be wrong with them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..problem import validation

LEAST_ROWS_PER_FOLD = 20
MOST_SYMBOLS = 512


class DataError(ValueError):
    """Samples that no estimate can be made from: the message says which, and why."""


@dataclass(frozen=True)
class Table:
    """Columns of numbers, with the names that messages give them."""

    values: np.ndarray
    """(N, d) float64; a column of symbols holds their numbers, from 0, in any order."""
    name: str
    """Of the whole: "x", or the file that it comes from."""
    labels: tuple[str, ...] = ()
    """Of the columns; without any they are counted from 0."""
    symbols: tuple[int, ...] = ()
    """Which columns hold symbols, texts or categories, whose order says nothing."""

    def __len__(self) -> int:
        return len(self.values)

    def describe(self, columns: Sequence[int] | np.ndarray, most: int = 8) -> str:
        """The columns as a message has them: "column 3", "columns 0, 2, ... (12 in all)", "column price"."""
        found = [self.labels[k] if self.labels else str(k) for k in columns]
        if len(found) <= most:
            return f"column{'s' * (len(found) > 1)} {', '.join(found)}"
        return f"columns {', '.join(found[:most])}, ... ({len(found)} in all)"

    def take(self, rows: np.ndarray) -> "Table":
        """Some of the rows, by a mask or by their numbers."""
        return Table(self.values[rows], self.name, self.labels, self.symbols)


def table(value: Any, name: str) -> Table:
    """From an array or tensor of real numbers, of shape (N, d) or (N,), a data frame, or a Table. Raises DataError.

    A data frame, of pandas or alike, gives its columns' names; its texts and categories become symbols.
    """
    if isinstance(value, Table):
        return value
    if hasattr(value, "columns") and hasattr(value, "dtypes") and hasattr(value, "__getitem__"):
        labels = list(value.columns)
        return stacked({str(label): np.asarray(value[label]) for label in labels}, name)
    return Table(samples(value, name), name)


def stacked(columns: dict[str, np.ndarray], name: str) -> Table:
    """Of columns (N,) by name: numbers and times as numbers, all others numbered as symbols; what is missing is NaN."""
    made, symbols = [], []
    for k, (label, column) in enumerate(columns.items()):
        if column.dtype.kind not in "fiubmMOSUT":
            raise DataError(f"{name} must hold numbers, texts or categories, got {column.dtype} in column {label}")
        if column.dtype.kind in "fiub":
            made.append(column.astype(np.float64))
            continue
        missing = np.array([_is_missing(value) for value in column], dtype=bool)
        present = column[~missing]
        codes = np.full(len(column), np.nan)
        if column.dtype.kind in "mM":
            codes[~missing] = present.astype(np.int64)
        elif all(isinstance(value, Real) for value in present):  # as nullable columns of numbers are
            codes[~missing] = present.astype(np.float64)
        else:
            codes[~missing] = np.unique(present.astype(str), return_inverse=True)[1]
            symbols.append(k)
        made.append(codes)
    if not made or not len(made[0]):
        raise DataError(f"{name} must have at least one row and one column, got {len(made[0]) if made else 0} rows")
    return Table(np.stack(made, axis=1), name, tuple(columns), tuple(symbols))


def _is_missing(value: Any) -> bool:
    """None, NaN, and what data frames have for them."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value) in ("<NA>", "NaT")


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


def check_pairs(x: Table, y: Table, folds: int, groups: np.ndarray | None = None) -> None:
    """Raises DataError."""
    if len(x) != len(y):
        raise DataError(f"{x.name} and {y.name} must have as many rows as each other, got {len(x)} and {len(y)}")
    for side in (x, y):
        bad = ~np.isfinite(side.values)
        if bad.any():
            raise DataError(
                f"{side.name} must be finite, got {int(bad.sum())} missing (NaN) or infinite values in "
                f"{side.describe(np.flatnonzero(bad.any(0)))}"
            )
        for k in side.symbols:
            if (count := len(np.unique(side.values[:, k]))) > MOST_SYMBOLS:
                raise DataError(
                    f"{side.name} must hold numbers, or texts that repeat: {side.describe([k])} has {count} different "
                    f"texts, more than {MOST_SYMBOLS}, as a name or an identifier has"
                )
        constant = (side.values == side.values[0]).all(0)
        if constant.any():
            raise DataError(
                f"{side.name} must not have constant columns, which carry no information; got "
                f"{side.describe(np.flatnonzero(constant))}"
            )
    least = LEAST_ROWS_PER_FOLD * folds
    if len(x) < least:
        raise DataError(
            f"{x.name} and {y.name} must have at least {LEAST_ROWS_PER_FOLD} rows a fold, {least} for {folds} folds; "
            f"got {len(x)}"
        )
    if groups is not None:
        _check_groups(groups, len(x), folds)


def _check_groups(groups: np.ndarray, rows: int, folds: int) -> None:
    if groups.shape != (rows,):
        raise DataError(f"groups must have shape ({rows},), an entry a row, got {groups.shape}")
    sizes = np.unique(groups, return_counts=True)[1]
    if len(sizes) < max(folds, 3):
        raise DataError(
            f"groups must be at least 3 and at least as many as folds, {folds}, which they stay together in; "
            f"got {len(sizes)}"
        )
    if sizes.max() > rows - LEAST_ROWS_PER_FOLD * (folds - 1):
        raise DataError(f"groups must leave {LEAST_ROWS_PER_FOLD} rows to every fold, got one of {sizes.max()} rows")


def group_codes(groups: Any) -> np.ndarray | None:
    """(N,) the number of each row's group, from 0. Raises DataError."""
    if groups is None:
        return None
    array = groups.detach().cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if array.ndim != 1 or not len(array):
        raise DataError(f"groups must have shape (N,), got {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError("groups must be finite, got NaN or infinite values")
    if array.dtype.kind not in "fiubSUMOT":
        raise DataError(f"groups must be numbers or texts, got {array.dtype}")
    return np.unique(array.astype(str) if array.dtype.kind in "OT" else array, return_inverse=True)[1]


def shared_columns(x: Table, y: Table) -> list[tuple[int, int]]:
    """Columns of x and of y that are the same."""
    of_y = {column.tobytes(): k for k, column in enumerate(np.ascontiguousarray(y.values.T + 0.0))}
    columns = enumerate(np.ascontiguousarray(x.values.T + 0.0))
    return [(k, of_y[column.tobytes()]) for k, column in columns if column.tobytes() in of_y]


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
