"""What an estimate says: every bound with its interval, the baselines beside it, and how it all came about."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import bounds
from .baselines import Baseline
from .rows import FoldRows
from .training import Trained

BOUNDS = {
    "infonce": "lower bound, at most the ceiling",
    "dv": "lower bound, biased upward by the log of a sample mean",
    "nwj": "lower bound, unbiased; js of a calibrated critic is the same number",
    "smile": "neither a lower nor an upper bound",
}
LABELS = {
    "infonce": "InfoNCE",
    "dv": "Donsker-Varadhan",
    "nwj": "NWJ",
    "smile": "SMILE",
    "gaussian_copula": "Gaussian copula",
    "ksg": "KSG",
    "ksg_pairs": "KSG by pairs",
}

# InfoNCE nearer than this to its ceiling reads low even with the best of critics: by 0.15 nats (of 2) to 0.5 (of 6)
# here, and by 0.6 to 0.9 at 1.5 (docs/known-truth.md, the optimal critic).
LOW_WITHIN = 2.5
# In nats: less than this is no sign that the linear start is wrong.
_TRAINING_ADDS = 0.02

NATS_PER_BIT = math.log(2)
_NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class BoundEstimate:
    """One bound over all held-out pairs, in nats."""

    value: float
    """Mean over the folds."""
    standard_error: float
    """Of the value: over the held-out pairs or over the folds, whichever is larger."""
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
    """What did best on the validation rows: "untrained", "cca" (the linear start as it is), "pairs" (tables of
    pairs of columns), a training stage, "linear" or "full", or "mixed", the weighted sum of all of these."""
    best_step: int
    validation_infonce: float
    stopped_early: bool
    cca_infonce: float = 0.0
    """What the linear start read of the validation rows; 0 where there was none."""
    train_infonce: float = 0.0
    """What InfoNCE reads of as many training rows as test rows: too high, as test rows read too low."""


@dataclass(frozen=True, repr=False)
class MutualInformationEstimate:
    """What `estimate` returns: every bound, in nats, and how it came about. Its repr is the table."""

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
    baselines: dict[str, Baseline] = field(default_factory=dict)
    """"gaussian_copula", "ksg" and "ksg_pairs": estimates that are no bounds."""
    pointwise: np.ndarray = field(default_factory=lambda: np.empty(0), compare=False)
    """(N,) nats of each pair, whose mean is about `nats`: log p(x, y) / p(x) p(y) by the critic that did not see it.
    NaN where a fold has more than 16,384 test rows and the pair was not read."""
    p_value: float | None = None
    """Of independence, by permutations of the held-out pairs; None without."""

    @property
    def nats(self) -> float:
        """The InfoNCE estimate, of the lower bounds the one of least variance."""
        return self.bounds["infonce"].value

    @property
    def bits(self) -> float:
        """`nats` in bits."""
        return self.nats / NATS_PER_BIT

    @property
    def quote(self) -> str:
        """The bound to quote: "infonce", or "dv" where that is within 2.5 nats of its ceiling and this reads more.

        A DV that reads less is of a critic whose largest scores are wrong, and the worse of two lower bounds.
        """
        low = self.nats > self.ceiling - LOW_WITHIN
        return "dv" if low and self.bounds["dv"].value > self.nats else "infonce"

    @property
    def saturated(self) -> bool:
        """Whether `infonce` is within 0.1 nat of the ceiling: the information is that, or any amount more."""
        return self.nats > self.ceiling - bounds.SATURATED_WITHIN

    @property
    def nearly_gaussian(self) -> bool:
        """Whether the Gaussian copula is a model to quote beside the bound.

        It then reads no less, by two standard errors, and training adds less than 0.02 nats to the linear start on the
        validation rows.
        """
        copula, quoted = self.baselines.get("gaussian_copula"), self.bounds[self.quote]
        if copula is None or copula.value is None or copula.value < quoted.value - 2 * quoted.standard_error:
            return False
        gains = [fold.validation_infonce - fold.cca_infonce for fold in self.folds]
        return min(fold.cca_infonce for fold in self.folds) > 0 and float(np.mean(gains)) < _TRAINING_ADDS

    @property
    def shortfall(self) -> float:
        """Nats that the bound to quote may miss, by the largest of the signs that there are; 0 where there is none.

        One is what InfoNCE reads more of rows that were trained on, with what it loses to its ceiling even at the best
        of critics (of each pair, log of (n - 1) / (n - e^pointwise) at n test rows); the others are the baselines that
        read more. It is no bound: what neither critics nor baselines see is in none of them.
        """
        quoted = self.bounds[self.quote].value
        seen = float(np.mean([fold.train_infonce for fold in self.folds])) - self.nats
        signs = [max(seen, 0.0) + self.lost_to_the_ceiling - (quoted - self.nats)]
        signs += [found.value - quoted for found in self.baselines.values() if found.value is not None]
        return max(0.0, *signs)

    @property
    def lost_to_the_ceiling(self) -> float:
        """Nats by which InfoNCE would read higher if the pair itself were left out of its denominator."""
        n = self.folds[0].test_rows
        read = np.exp(self.pointwise[np.isfinite(self.pointwise)])
        return float(np.log((n - 1) / np.maximum(n - read, 0.5)).mean()) if len(read) else 0.0

    def __repr__(self) -> str:
        return self.text()

    def text(self, bits: bool = False) -> str:
        """The table as text, in nats or in bits, and the warnings."""
        unit, scale = unit_of(bits)
        body = rows_of(self, bits)
        widths = [max(map(len, column)) for column in zip(*body, strict=True)]
        lines = [
            f"{name:<{widths[0]}}  {value:>{widths[1]}}  {interval:>{widths[2]}}  {kind}"
            for name, value, interval, kind in body
        ]
        head = f"I(X; Y) in {unit}: {self.rows:,} pairs, {self.columns[0]} and {self.columns[1]} columns, "
        head += f"{len(self.folds)} folds; ceiling of InfoNCE {scale * self.ceiling:.2f}"
        notes = ["The interval covers sampling and the spread of folds, not what the critics did not learn."]
        notes.append(self.of_the_shortfall(bits))
        if self.p_value is not None:
            notes.append(f"p-value of independence: {self.p_value:.3g}")
        notes += [f"Warning: {said}" for said in self.warnings]
        return "\n".join([head, *(line.rstrip() for line in lines), *notes])

    def of_the_shortfall(self, bits: bool = False) -> str:
        """A sentence."""
        unit, scale = unit_of(bits)
        high = scale * (self.bounds[self.quote].high + self.shortfall)
        return (
            f"Shortfall: {scale * self.shortfall:.2f} {unit} or more may be missing (what training rows, the ceiling "
            f"and the baselines read more), so that the information may be {high:.2f}."
        )


def unit_of(bits: bool) -> tuple[str, float]:
    """Its name, and how many of it are a nat."""
    return ("bits", 1 / NATS_PER_BIT) if bits else ("nats", 1.0)


def rows_of(result: MutualInformationEstimate, bits: bool) -> list[tuple[str, str, str, str]]:
    """Name, value, 95% interval and kind of every bound and baseline, to three digits."""
    _, scale = unit_of(bits)

    def number(value: float) -> str:
        return f"{round(scale * value, 3) + 0.0:.3f}"  # + 0.0: what rounds to -0.000 reads 0.000

    found = []
    for name, bound in result.bounds.items():
        note = BOUNDS[name] + (" (saturated)" if name == "infonce" and result.saturated else "")
        if name == result.quote:
            note = f"{note}; quote this"
        found.append((LABELS[name], number(bound.value), f"{number(bound.low)} to {number(bound.high)}", note))
    for name, baseline in result.baselines.items():
        if baseline.value is None:
            found.append((LABELS[name], "", "", f"not made: {baseline.missing}"))
        else:
            of = "" if baseline.rows == result.rows else f"; of {baseline.rows:,} pairs"
            fits = "; training adds nothing to it" if name == "gaussian_copula" and result.nearly_gaussian else ""
            found.append((LABELS[name], number(baseline.value), "", baseline.kind + of + fits))
    return found


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
        cca_infonce=trained.cca,
        train_infonce=trained.train_infonce,
    )


def pooled(folds: list[tuple[float, Tensor]], clusters: Tensor | None = None) -> BoundEstimate:
    """The mean over folds, with the standard error of all held-out pairs together, or of the folds, where that is more.

    `clusters`, in the order of all folds' pairs, has the number of each pair's group: pairs of one group do not count
    as so many.
    """
    per_fold = tuple(value for value, _ in folds)
    pairs = torch.cat([value + influence for value, influence in folds])
    value = float(np.mean(per_fold))
    if clusters is None:
        error = pairs.std().item() / math.sqrt(len(pairs))
    else:
        count = int(clusters.max()) + 1
        sums = torch.zeros(count, dtype=pairs.dtype).index_add_(0, clusters, (pairs - pairs.mean()).cpu())
        error = math.sqrt(sums.square().sum().item() * count / (count - 1)) / len(pairs)
    # An average of e^s may overflow in a fold.
    spread = float(np.std(per_fold, ddof=1)) if np.isfinite(per_fold).all() else math.inf
    error = max(error, spread / math.sqrt(len(per_fold)))
    return BoundEstimate(value, error, *interval(value, error), per_fold)


def interval(value: float, error: float) -> tuple[float, float]:
    """The 95% interval of a value with that standard error."""
    return value - _NORMAL_QUANTILE * error, value + _NORMAL_QUANTILE * error
