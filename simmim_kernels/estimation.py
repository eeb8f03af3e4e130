"""Mutual information between two sets of paired samples: trained critics, read on pairs that they never saw."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import bounds, validation
from .critics import GaussianCritic, MLPCritic, SeparableCritic
from .held_out import calibrated_scores, influences

BOUNDS = {
    "infonce": "lower bound, at most the ceiling",
    "dv": "lower bound, biased upward by the log of a sample mean",
    "nwj": "lower bound, unbiased",
    "js": "lower bound; of a calibrated critic the same number as nwj",
    "smile": "neither a lower nor an upper bound",
}
CRITICS = ("separable", "mlp")
TRANSFORMS = ("rank", "standardise")
LEAST_ROWS_PER_FOLD = 20

_DEFAULT_BATCH = {"separable": 512, "mlp": 128}
_HIDDEN = {"separable": 256, "mlp": 64}
_FEATURES = 32
# An eighth of the rows to validate on, but 100 where there are few, of which a choice among critics needs that many;
# and never more than a third.
_VALIDATION_SHARE, _FEW_VALIDATION_ROWS, _MOST_VALIDATION_ROWS = 1 / 8, 100, 4096
# Beyond these, time would grow with the square of the rows and the interval is already narrow.
_MOST_TEST_ROWS, _MOST_REFERENCE_ROWS = 16384, 16384
_MOST_QUANTILES, _MOST_SYMBOLS, _MOST_INDICATORS = 65536, 16, 256
_CHECK_EVERY, _PATIENCE, _LEAST_GAIN = 20, 10, 1e-3
_DECAY_OF_AVERAGE, _WEIGHT_DECAY = 0.98, 1e-2
_LINEAR_RATE, _RATE = 5e-3, 1e-3
_NORMAL_QUANTILE = 1.959963984540054


class DataError(ValueError):
    """Samples that no estimate can be made from: the message says which, and why."""


@dataclass(frozen=True)
class BoundEstimate:
    """One bound over all held-out pairs, in nats."""

    value: float
    """Mean over the folds."""
    standard_error: float
    low: float
    high: float
    """The ends of the 95% interval; `estimate` says what it covers."""
    per_fold: tuple[float, ...]


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
    columns: tuple[int, int]
    folds: tuple[Fold, ...]
    settings: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def nats(self) -> float:
        """The InfoNCE estimate, of the lower bounds the one of least variance."""
        return self.bounds["infonce"].value

    @property
    def saturated(self) -> bool:
        """Whether `infonce` is within 0.1 nat of the ceiling: the information is that, or any amount more."""
        return self.nats > self.ceiling - bounds.SATURATED_WITHIN


@dataclass(frozen=True)
class Progress:
    """Where training stands, at each look at the validation rows."""

    fold: int
    folds: int
    stage: str
    step: int
    max_steps: int
    validation_infonce: float


def estimate(
    x: Any,
    y: Any,
    *,
    folds: int = 5,
    critic: str = "separable",
    transform: str = "rank",
    batch_size: int | None = None,
    max_steps: int = 2000,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[Progress], None] | None = None,
) -> MutualInformationEstimate:
    """I(X; Y) in nats from paired samples x (N, dx) and y (N, dy): numpy arrays or tensors, (N,) being (N, 1).

    Cross-fitting: the rows are shuffled into `folds` disjoint folds, and each is read by a critic of its own,
    trained on most of the other rows and stopped and chosen on the rest of those, the validation rows: an eighth of
    them, or 100 where that is more, but no more than a third. So every pair is read once, by a critic that it had
    no part in. Fold k has seed `seed` + k for its initial weights, batches and validation rows.

    Training maximises InfoNCE, in two stages: `linear` embeddings first, whose critic contains that of correlated
    Gaussians, then networks added to them ("full"). Of all checks the one with the highest InfoNCE on the validation
    rows is kept, or, where that is less than one standard error above 0, the untrained critic, which reads 0 by
    every bound and without error; a stage ends after 200 steps without a gain of 1e-3 nats there, or after
    `max_steps`. critic="mlp" is a network on concatenated pairs, in one stage and slower.

    The scores are calibrated by a function of x fitted on the rows that were not tested (held_out.calibrated_scores)
    and read by all BOUNDS from the same held-out pairs: at most 16,384 a fold.

    transform="rank" maps each column to normal quantiles of its rank among the training rows, which takes heavy
    tails away and, being monotone in each column, changes no information but beyond the training rows' range, where
    it is constant; a column of 3 to 16 values gives indicators of them besides, up to 256 in all. "standardise" takes
    the mean away and divides by the standard deviation. Both are fitted on training rows alone, so that the bounds
    hold for them.

    The 95% interval is the mean over folds +- 1.96 standard errors, by the influence of each held-out pair
    (held_out.influences). It covers the sampling of the held-out pairs, and by their spread the differences between
    the folds. It does not cover the distance from the bound to I, by which a critic that has learnt too little
    falls short, nor another draw of the training rows. Few pairs, or many nats, make it too narrow for `nwj`, `js`
    and `dv`, whose e^s are then skewed.

    The same arguments give the same numbers on one machine with one number of threads; the global generators
    of random numbers are neither used nor moved.

    Raises TypeError or ValueError for unfit arguments, and DataError, a ValueError, for unfit samples: not numeric,
    complex, NaN or infinite, constant columns, unequal lengths, or fewer than 20 rows a fold.
    """
    _check_settings(folds, critic, transform, batch_size, max_steps, seed)
    x, y = samples(x, "x"), samples(y, "y")
    _check_pairs(x, y, folds)
    batch_size = _DEFAULT_BATCH[critic] if batch_size is None else batch_size
    settings = {
        "folds": folds,
        "critic": critic,
        "transform": transform,
        "batch_size": batch_size,
        "max_steps": max_steps,
        "seed": seed,
        "device": str(device),
    }
    parts = np.array_split(np.random.default_rng(seed).permutation(len(x)), folds)
    reports, values = [], []
    for k in range(folds):

        def report(stage: str, step: int, value: float, k: int = k) -> None:
            if progress is not None:
                progress(Progress(k, folds, stage, step, max_steps, value))

        data = _prepare(x, y, _split(parts, k, seed + k), transform, torch.device(device))
        trained = _train(data, critic, batch_size, max_steps, seed + k, report)
        reference = torch.cat([data.y_train, data.y_validation])[:_MOST_REFERENCE_ROWS]
        values.append(influences(calibrated_scores(trained.critic, data.x_test, data.y_test, reference)))
        reports.append(_report(seed + k, data, trained))
    found = {name: _pooled([fold[name] for fold in values]) for name in BOUNDS}
    ceiling = float(np.mean([math.log(fold.test_rows) for fold in reports]))
    result = MutualInformationEstimate(
        found, ceiling, len(x), (x.shape[1], y.shape[1]), tuple(reports), settings, warnings=()
    )
    return replace(result, warnings=tuple(_warnings(result, x, y)))


def samples(value: Any, name: str) -> np.ndarray:
    """(N, d) float64 from an array or tensor of real numbers, of shape (N, d) or (N,). Raises DataError."""
    if isinstance(value, Tensor):
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


def _check_settings(folds: int, critic: str, transform: str, batch_size: int | None, max_steps: int, seed: int) -> None:
    validation.choice(critic, "critic", CRITICS)
    validation.choice(transform, "transform", TRANSFORMS)
    numbers = [(folds, "folds", 2), (max_steps, "max_steps", 0), (seed, "seed", 0)]
    if batch_size is not None:
        numbers.append((batch_size, "batch_size", 2))
    for value, name, least in numbers:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _check_pairs(x: np.ndarray, y: np.ndarray, folds: int) -> None:
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


@dataclass(frozen=True)
class _Split:
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def _split(parts: list[np.ndarray], k: int, seed: int) -> _Split:
    """Row numbers of fold k: its own part to test on, the others shuffled into validation and training."""
    rest = np.random.default_rng(seed).permutation(np.concatenate(parts[:k] + parts[k + 1 :]))
    held = min(max(round(_VALIDATION_SHARE * len(rest)), _FEW_VALIDATION_ROWS), len(rest) // 3, _MOST_VALIDATION_ROWS)
    return _Split(rest[held:], rest[:held], parts[k][:_MOST_TEST_ROWS])


@dataclass(frozen=True)
class _Data:
    """Transformed rows of one fold, float32."""

    x_train: Tensor
    y_train: Tensor
    x_validation: Tensor
    y_validation: Tensor
    x_test: Tensor
    y_test: Tensor


def _prepare(x: np.ndarray, y: np.ndarray, split: _Split, transform: str, device: torch.device) -> _Data:
    fit = {"rank": _ranker, "standardise": _standardiser}[transform]
    rows: dict[str, Tensor] = {}
    for name, values in (("x", x), ("y", y)):
        apply = fit(values[split.train])
        for part in ("train", "validation", "test"):
            made = apply(values[getattr(split, part)])
            rows[f"{name}_{part}"] = torch.from_numpy(made.astype(np.float32)).to(device)
    return _Data(**rows)


def _standardiser(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    mean, deviation = train.mean(0), train.std(0)
    # A column can be constant in the training rows alone; it then counts for nothing.
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return lambda values: (values - mean) * scale


def _ranker(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
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


class _Tower(nn.Module):
    """W x, plus a ReLU network of x where `full`; the network starts as zero, and W too where `zero`."""

    def __init__(self, width: int, features: int, zero: bool):
        super().__init__()
        hidden = _HIDDEN["separable"]
        self.linear = nn.Linear(width, features, bias=False)
        self.network = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, features)
        )
        _zero(self.network[-1])
        if zero:
            _zero(self.linear)
        self.full = True

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.network(x) if self.full else self.linear(x)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def _build(critic: str, width_x: int, width_y: int) -> nn.Module:
    """A critic that scores no y above another, so that untrained and calibrated it reads 0 by every bound."""
    if critic == "mlp":
        mlp = MLPCritic(width_x, width_y, hidden=_HIDDEN["mlp"])
        _zero(mlp.output)
        return mlp
    features = max(_FEATURES, min(width_x, width_y))
    return SeparableCritic(
        _Tower(width_x, features, zero=False), _Tower(width_y, features, zero=True), GaussianCritic()
    )


def _stages(critic: nn.Module) -> Iterator[tuple[str, list[Tensor], float]]:
    """Name, parameters and learning rate of each stage, the critic being set up for it meanwhile."""
    towers = [module for module in critic.modules() if isinstance(module, _Tower)]
    if towers:
        for tower in towers:
            tower.full = False
        yield "linear", [tower.linear.weight for tower in towers], _LINEAR_RATE
        for tower in towers:
            tower.full = True
    yield "full", list(critic.parameters()), _RATE


@dataclass(frozen=True)
class _Best:
    value: float
    stage: str
    step: int
    state: dict[str, Tensor]


@dataclass(frozen=True)
class _Trained:
    critic: nn.Module
    best: _Best
    steps: int
    stopped_early: bool


def _train(
    data: _Data,
    kind: str,
    batch_size: int,
    max_steps: int,
    seed: int,
    report: Callable[[str, int, float], None],
) -> _Trained:
    """A critic from the training rows, the best of all checks on the validation rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = _build(kind, data.x_train.shape[1], data.y_train.shape[1]).to(data.x_train.device)
    batches = _batches(len(data.x_train), batch_size, torch.Generator().manual_seed(seed), data.x_train.device)
    best = untrained = _Best(0.0, "untrained", 0, copy.deepcopy(critic.state_dict()))
    steps, stopped_early = 0, True
    for stage, parameters, rate in _stages(critic):
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=_WEIGHT_DECAY)
        # Checks look at an average of the last weights, which is better than any of them and steadier to choose by.
        average = AveragedModel(critic, multi_avg_fn=get_ema_multi_avg_fn(_DECAY_OF_AVERAGE))
        bar, since = best.value, 0
        for step in range(1, max_steps + 1):
            rows = next(batches)
            loss = -bounds.infonce(critic(data.x_train[rows], data.y_train[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(critic)
            steps += 1
            if step % _CHECK_EVERY and step != max_steps:
                continue
            value = _infonce(average.module, data.x_validation, data.y_validation)
            report(stage, step, value)
            if value > best.value:
                best = _Best(value, stage, step, copy.deepcopy(average.module.state_dict()))
            bar, since = (value, 0) if value > bar + _LEAST_GAIN else (bar, since + 1)
            if since == _PATIENCE:
                break
        else:
            stopped_early = False
        critic.load_state_dict(best.state)
    if best.value < _standard_error(critic, data.x_validation, data.y_validation):
        best = untrained
        critic.load_state_dict(best.state)
    return _Trained(critic, best, steps, stopped_early)


def _standard_error(critic: nn.Module, x: Tensor, y: Tensor) -> float:
    """Of InfoNCE on these pairs, without which the best of many checks on noise would pass for information."""
    _, influence = influences(calibrated_scores(critic, x, y, y))["infonce"]
    return influence.std().item() / math.sqrt(len(influence))


@torch.no_grad()
def _infonce(critic: nn.Module, x: Tensor, y: Tensor) -> float:
    return bounds.infonce(critic(x, y)).item()


def _batches(rows: int, size: int, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """Row numbers of full batches, epoch after epoch without end, each epoch in an order of its own."""
    size = min(size, rows)
    while True:
        order = torch.randperm(rows, generator=generator).to(device)
        yield from order[: rows - rows % size].split(size)


def _report(seed: int, data: _Data, trained: _Trained) -> Fold:
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


def _pooled(folds: list[tuple[float, Tensor]]) -> BoundEstimate:
    """The mean over folds, with the standard error of all held-out pairs together."""
    per_fold = tuple(value for value, _ in folds)
    pairs = torch.cat([value + influence for value, influence in folds])
    value, error = float(np.mean(per_fold)), pairs.std().item() / math.sqrt(len(pairs))
    return BoundEstimate(value, error, value - _NORMAL_QUANTILE * error, value + _NORMAL_QUANTILE * error, per_fold)


def _warnings(result: MutualInformationEstimate, x: np.ndarray, y: np.ndarray) -> list[str]:
    found = []
    if result.saturated:
        found.append(
            f"InfoNCE is within {bounds.SATURATED_WITHIN} nats of its ceiling, log of {result.folds[0].test_rows} test "
            "rows: the information is that or any amount more; more rows or fewer folds raise the ceiling"
        )
    repeated = _repeated_pairs(x, y)
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


def _repeated_pairs(x: np.ndarray, y: np.ndarray) -> int:
    """How many pairs repeat another one, where x or y is otherwise (nearly) free of repeats.

    Repeats of discrete values are no sign of a leak: there a value of x comes with many of y, and conversely.
    """
    distinct = _distinct_rows(np.concatenate([x, y], axis=1))
    if distinct == len(x) or max(_distinct_rows(x), _distinct_rows(y)) < 0.9 * distinct:
        return 0
    return len(x) - distinct


def _distinct_rows(values: np.ndarray) -> int:
    return len(set(map(bytes, np.ascontiguousarray(values + 0.0))))  # + 0.0: -0.0 is 0.0
