"""The rows of an estimate, split into what trains, chooses and tests, and transformed alike."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .dependence import members_of
from .features import TRANSFORMS, extras
from .samples import Table

# An eighth of the rows to validate on, but 100 where there are few, of which a choice among critics needs that many;
# and never more than a third.
_VALIDATION_SHARE, _FEW_VALIDATION_ROWS, _MOST_VALIDATION_ROWS = 1 / 8, 100, 4096
# Beyond this, time would grow with the square of the rows and the interval is already narrow.
_MOST_TEST_ROWS = 16384


@dataclass(frozen=True)
class Split:
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(parts: list[np.ndarray], k: int, seed: int, groups: np.ndarray | None = None) -> Split:
    """Row numbers of fold k: its own part to test on, the others shuffled into validation and training.

    Rows of one group (N,) stay together, which may make validation a little larger. Rows to test on keep their order
    where there are groups.
    """
    rng = np.random.default_rng(seed)
    rest = np.concatenate(parts[:k] + parts[k + 1 :])
    held = min(max(round(_VALIDATION_SHARE * len(rest)), _FEW_VALIDATION_ROWS), len(rest) // 3, _MOST_VALIDATION_ROWS)
    if groups is None:
        rest = rng.permutation(rest)
        return Split(rest[held:], rest[:held], parts[k][:_MOST_TEST_ROWS])
    members = members_of(groups[rest])
    order = rng.permutation(len(members))
    ends = np.cumsum([len(members[j]) for j in order])
    count = min(int(np.searchsorted(ends, held)) + 1, len(members) - 1)
    validation, train = (np.concatenate([members[j] for j in part]) for part in (order[:count], order[count:]))
    return Split(rest[rng.permutation(train)], rest[rng.permutation(validation)], np.sort(parts[k])[:_MOST_TEST_ROWS])


@dataclass(frozen=True)
class FoldRows:
    """Transformed rows of one fold, float32, every column with mean 0 in training."""

    x_train: Tensor
    y_train: Tensor
    x_validation: Tensor
    y_validation: Tensor
    x_test: Tensor
    y_test: Tensor
    base_x: int
    """How many columns of x are the transformed ones; those after them are functions of these, for linear critics."""
    base_y: int
    columns_x: int
    """How many of x's columns are those that were given, in their order: the first ones."""
    columns_y: int


def prepare(x: Table, y: Table, chosen: Split, transform: str, device: torch.device) -> FoldRows:
    fit = TRANSFORMS[transform]
    rows: dict[str, Tensor] = {}
    base: dict[str, int] = {}
    for name, side in (("x", x), ("y", y)):
        values = side.values
        apply = fit(values[chosen.train], side.symbols)
        plain = {part: apply(values[getattr(chosen, part)]) for part in ("train", "validation", "test")}
        base[name] = plain["train"].shape[1]
        add = extras(plain["train"][:, : values.shape[1]])
        mean: np.ndarray | None = None
        for part, made in plain.items():
            made = np.concatenate([made.astype(np.float32), add(made[:, : values.shape[1]])], axis=1)
            mean = made.mean(0, dtype=np.float64).astype(np.float32) if mean is None else mean
            rows[f"{name}_{part}"] = torch.from_numpy(made - mean).to(device)
    return FoldRows(
        **rows,
        base_x=base["x"],
        base_y=base["y"],
        columns_x=x.values.shape[1],
        columns_y=y.values.shape[1],
    )
