"""What an estimate says: every bound with its interval, how it came about, and what to beware of."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import bounds
from .rows import FoldRows, repeated_pairs
from .training import Trained

BOUNDS = {
    "infonce": "lower bound, at most the ceiling",
    "dv": "lower bound, biased upward by the log of a sample mean",
    "nwj": "lower bound, unbiased",
    "js": "lower bound; of a calibrated critic the same number as nwj",
    "smile": "neither a lower nor an upper bound",
}

_NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class BoundEstimate:
    """One bound over all held-out pairs, in nats."""

    value: float
    """Mean over the folds."""
    standard_error: float
    """Of the value, over the held-out pairs."""
    low: float
    """The lower end of the 95% interval; `estimate` says what it covers."""
    high: float
    """The upper end."""
    per_fold: tuple[float, ...]
    """The value of each fold."""


@dataclass(frozen=True)
class Fold:
    """One critic: what it was trained, stopped and tested on."""

    seed: int
    train_rows: int
    validation_rows: int
    test_rows: int
    steps: int
    best_stage: str
    """"untrained", "linear" or "full": the training stage whose critic did best on the validation rows."""
    best_step: int
    validation_infonce: float
    stopped_early: bool


@dataclass(frozen=True)
class MutualInformationEstimate:
    """What `estimate` returns: every bound, in nats, and how it came about."""

    bounds: dict[str, BoundEstimate]
    """By name, as in BOUNDS, which says what each is."""
    ceiling: float
    """log of a fold's test rows (mean over folds), which `infonce` cannot exceed."""
    rows: int
    """Pairs, N."""
    columns: tuple[int, int]
    """Of x and of y, as they were given."""
    folds: tuple[Fold, ...]
    """One a critic."""
    settings: dict[str, Any]
    """The arguments of `estimate`, defaults filled in."""
    warnings: tuple[str, ...]
    """What to beware of, a sentence each; empty where nothing is."""

    @property
    def nats(self) -> float:
        """The InfoNCE estimate, of the lower bounds the one of least variance."""
        return self.bounds["infonce"].value

    @property
    def saturated(self) -> bool:
        """Whether `infonce` is within 0.1 nat of the ceiling: the information is that, or any amount more."""
        return self.nats > self.ceiling - bounds.SATURATED_WITHIN


def describe_fold(seed: int, data: FoldRows, trained: Trained) -> Fold:
    return Fold(
        seed=seed,
        train_rows=len(data.x_train),
        validation_rows=len(data.x_validation),
        test_rows=len(data.x_test),
        steps=trained.steps,
        best_stage=trained.best.stage,
        best_step=trained.best.step,
        validation_infonce=trained.best.value,
        stopped_early=trained.stopped_early,
    )


def pooled(folds: list[tuple[float, Tensor]]) -> BoundEstimate:
    """The mean over folds, with the standard error of all held-out pairs together."""
    per_fold = tuple(value for value, _ in folds)
    pairs = torch.cat([value + influence for value, influence in folds])
    value, error = float(np.mean(per_fold)), pairs.std().item() / math.sqrt(len(pairs))
    return BoundEstimate(value, error, value - _NORMAL_QUANTILE * error, value + _NORMAL_QUANTILE * error, per_fold)


def warnings_of(result: MutualInformationEstimate, x: np.ndarray, y: np.ndarray) -> list[str]:
    found = []
    if result.saturated:
        found.append(
            f"InfoNCE is within {bounds.SATURATED_WITHIN} nats of its ceiling, log of {result.folds[0].test_rows} test "
            "rows: the information is that or any amount more; more rows or fewer folds raise the ceiling"
        )
    repeated = repeated_pairs(x, y)
    if repeated:
        found.append(
            f"{repeated} pairs are exact repeats of others, so that test rows may have been trained on: "
            "remove them unless they are separate observations"
        )
    blind = sum(fold.best_stage == "untrained" for fold in result.folds)
    if blind:
        found.append(
            f"{blind} of {len(result.folds)} critics found no information on their validation rows and read 0 exactly: "
            "there is none, or too little for so few rows"
        )
    unfinished = sum(not fold.stopped_early for fold in result.folds)
    if unfinished:
        found.append(
            f"{unfinished} of {len(result.folds)} critics were still training at max_steps, "
            f"{result.settings['max_steps']}: more steps may raise the bounds"
        )
    return found
