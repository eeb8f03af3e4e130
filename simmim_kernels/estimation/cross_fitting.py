"""Mutual information between two sets of paired samples: trained critics, read on pairs that they never saw."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..problem import validation
from .held_out import calibrated_scores, influences
from .report import BOUNDS, MutualInformationEstimate, describe_fold, pooled, warnings_of
from .rows import TRANSFORMS, check_pairs, prepare, samples, split
from .training import CRITICS, DEFAULT_BATCH, train

# Beyond this, time would grow with the square of the rows.
_MOST_REFERENCE_ROWS = 16384


@dataclass(frozen=True)
class Progress:
    """Where training stands, at each look at the validation rows."""

    fold: int
    """From 0."""
    folds: int
    stage: str
    """"linear", then "full"; critic="mlp" has the second alone."""
    step: int
    max_steps: int
    validation_infonce: float
    """In nats, on the validation rows."""


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

    `batch_size` pairs make a training step, by default 512, or 128 for critic="mlp"; `device` is where critics are
    trained and read; `progress` is called with a Progress at each look at the validation rows.

    The same arguments give the same numbers on one machine with one number of threads; the global generators
    of random numbers are neither used nor moved.

    Raises TypeError or ValueError for unfit arguments, and DataError, a ValueError, for unfit samples: not numeric,
    complex, NaN or infinite, constant columns, unequal lengths, or fewer than 20 rows a fold.
    """
    _check_settings(folds, critic, transform, batch_size, max_steps, seed)
    x, y = samples(x, "x"), samples(y, "y")
    check_pairs(x, y, folds)
    batch_size = DEFAULT_BATCH[critic] if batch_size is None else batch_size
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

        data = prepare(x, y, split(parts, k, seed + k), transform, torch.device(device))
        trained = train(data, critic, batch_size, max_steps, seed + k, report)
        reference = torch.cat([data.y_train, data.y_validation])[:_MOST_REFERENCE_ROWS]
        values.append(influences(calibrated_scores(trained.critic, data.x_test, data.y_test, reference)))
        reports.append(describe_fold(seed + k, data, trained))
    found = {name: pooled([fold[name] for fold in values]) for name in BOUNDS}
    ceiling = float(np.mean([math.log(fold.test_rows) for fold in reports]))
    result = MutualInformationEstimate(
        found, ceiling, len(x), (x.shape[1], y.shape[1]), tuple(reports), settings, warnings=()
    )
    return replace(result, warnings=tuple(warnings_of(result, x, y)))


def _check_settings(folds: int, critic: str, transform: str, batch_size: int | None, max_steps: int, seed: int) -> None:
    validation.choice(critic, "critic", CRITICS)
    validation.choice(transform, "transform", list(TRANSFORMS))
    numbers = [(folds, "folds", 2), (max_steps, "max_steps", 0), (seed, "seed", 0)]
    if batch_size is not None:
        numbers.append((batch_size, "batch_size", 2))
    for value, name, least in numbers:
        validation.integer(value, name, least)
