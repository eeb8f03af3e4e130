"""Mutual information between two sets of paired samples: trained critics, read on pairs that they never saw."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..problem import validation
from .baselines import baselines
from .cautions import warnings_of
from .critics import CRITICS, DEFAULT_BATCH
from .dependence import blocks_of, fold_parts, null_infonce
from .features import TRANSFORMS
from .held_out import calibrated_scores, influences, pointwise
from .report import BOUNDS, MutualInformationEstimate, describe_fold, pooled
from .rows import prepare, split
from .samples import check_pairs, group_codes, table
from .training import train

# Beyond this, time would grow with the square of the rows.
_MOST_REFERENCE_ROWS = 16384


@dataclass(frozen=True)
class Progress:
    """Where training stands, at each look at the validation rows."""

    fold: int
    """From 0."""
    folds: int
    stage: str
    """"cca", the linear start; "pairs", tables of pairs of columns; "linear", then "full", the stages from there and
    then from a random start; "mixed", all of these together. critic="mlp" has "full" alone."""
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
    groups: Any = None,
    blocks: int | None = None,
    permutations: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> MutualInformationEstimate:
    """I(X; Y) in nats from paired samples x (N, dx) and y (N, dy): numpy arrays or tensors, (N,) being (N, 1), data
    frames, or Tables.

    Cross-fitting: the rows are shuffled into `folds` disjoint folds, and each is read by a critic of its own,
    trained on most of the other rows and stopped and chosen on the rest of those, the validation rows: an eighth of
    them, or 100 where that is more, but no more than a third. So every pair is read once, by a critic that it had
    no part in. Fold k has seed `seed` + k for its initial weights, batches and validation rows.

    A critic begins as the linear answer, ridge CCA shrunk as far as the validation rows want it
    (linear_start.linear_start), whose family contains correlated Gaussians. Where up to 16 columns of x pair off with
    columns of y, and at least one pair is no Gaussian copula, tables of the pairs' log density ratios are added
    (pairs.paired_columns). Training maximises InfoNCE in two stages: `linear` embeddings first, then networks added to
    them ("full"). A second critic begins at random and is trained alike where that improved, and the sum of all with
    weights of the highest InfoNCE on the validation rows ("mixed", mixing.fitted) is the last; where training does not
    improve on the linear answer, that is fitted anew with the validation rows, and is all. Of all checks the one with
    the highest InfoNCE on the validation rows is kept, or, where that is less than one standard error above 0, the
    untrained critic, which reads 0 by every bound and without error; a stage ends after 160 steps without a gain of
    1e-3 nats there, or after `max_steps`. critic="mlp" is a network on concatenated pairs, in one stage, from random
    weights, and slower.

    The scores are calibrated by a function of x fitted on the rows that were not tested (held_out.calibrated_scores)
    and read by all BOUNDS from the same held-out pairs: at most 16,384 a fold. Beside them stand estimates that are
    no bounds (baselines.baselines), a warning where one of them exceeds the bounds, and `shortfall`, the nats that may
    be missing by the largest of these signs.

    transform="rank" maps each column to normal quantiles of its rank among the training rows, which takes heavy
    tails away and, being monotone in each column, changes no information but beyond the training rows' range, where
    it is constant; a column of 3 to 16 values, or of up to 256 that come 20 times each, gives indicators of them
    besides, up to 256 in all. "standardise" takes the mean away and divides by the standard deviation. Linear critics
    are given the log of a row's root mean square too, and of up to 16 columns piecewise-linear functions. All is fitted
    on rows that are not tested, so that the bounds hold for it.

    The 95% interval is the mean over folds +- 1.96 standard errors: by the influence of each held-out pair
    (held_out.influences), or by the spread of the folds where that is larger. It does not cover the distance from the
    bound to I, by which a critic that has learnt too little falls short, nor another draw of the training rows. Few
    pairs, or many nats, make it too narrow for `nwj` and `dv`, whose e^s are then skewed.

    Rows that depend on each other leak from training to test when they are shuffled. `groups` (N,), numbers or texts,
    keeps the rows of a group in one fold and makes the errors those of groups; `blocks` makes that many groups of
    consecutive rows. `permutations` > 0 gives a p-value of independence: how often InfoNCE of held-out pairs with y in
    another order reads as much, critics staying as they are; where there are groups or blocks, the orders are the rows'
    own, turned as a circle.

    `batch_size` pairs make a training step, by default 512, or 128 for critic="mlp"; `device` is where critics are
    trained and read; `progress` is called with a Progress at each look at the validation rows.

    The same arguments give the same numbers on one machine with one number of threads; the global generators
    of random numbers are neither used nor moved.

    Raises TypeError or ValueError for unfit arguments, and DataError, a ValueError, for unfit samples: not numeric,
    complex, NaN or infinite, texts that do not repeat, constant columns, unequal lengths, fewer than 20 rows a fold, or
    groups that leave a fold fewer.
    """
    _check_settings(folds, critic, transform, batch_size, max_steps, seed, blocks, permutations)
    if groups is not None and blocks is not None:
        raise ValueError("groups and blocks must not both be given: blocks are groups of consecutive rows")
    x, y = table(x, "x"), table(y, "y")
    codes = group_codes(groups) if blocks is None else blocks_of(len(x), blocks)
    check_pairs(x, y, folds, codes)
    batch_size = DEFAULT_BATCH[critic] if batch_size is None else batch_size
    settings = {
        "folds": folds,
        "critic": critic,
        "transform": transform,
        "batch_size": batch_size,
        "max_steps": max_steps,
        "seed": seed,
        "device": str(device),
        "groups": None if codes is None or blocks is not None else int(codes.max()) + 1,
        "blocks": blocks,
        "permutations": permutations,
    }
    parts = fold_parts(len(x), folds, seed, codes)
    reports, values, nulls, tested = [], [], [], []
    of_pairs = np.full(len(x), np.nan)
    for k in range(folds):

        def report(stage: str, step: int, value: float, k: int = k) -> None:
            if progress is not None:
                progress(Progress(k, folds, stage, step, max_steps, value))

        rows = split(parts, k, seed + k, codes)
        data = prepare(x, y, rows, transform, torch.device(device))
        trained = train(data, critic, batch_size, max_steps, seed + k, report)
        reference = torch.cat([data.y_train, data.y_validation])[:_MOST_REFERENCE_ROWS]
        scores = calibrated_scores(trained.critic, data.x_test, data.y_test, reference)
        values.append(influences(scores))
        of_pairs[rows.test] = pointwise(scores)
        tested.append(rows.test)
        nulls.append(null_infonce(scores, values[-1]["infonce"][0], permutations, seed + k, codes is not None))
        reports.append(describe_fold(seed + k, data, trained))
    clusters = None if codes is None else torch.from_numpy(codes[np.concatenate(tested)])
    found = {name: pooled([fold[name] for fold in values], clusters) for name in BOUNDS}
    result = MutualInformationEstimate(
        bounds=found,
        ceiling=float(np.mean([math.log(fold.test_rows) for fold in reports])),
        rows=len(x),
        columns=(x.values.shape[1], y.values.shape[1]),
        folds=tuple(reports),
        settings=settings,
        warnings=(),
        baselines=baselines(x.values, y.values, seed),
        pointwise=of_pairs,
        p_value=_p_value(found["infonce"].value, np.mean(nulls, axis=0)) if permutations else None,
    )
    return replace(result, warnings=tuple(warnings_of(result, x, y)))


def _p_value(value: float, null: np.ndarray) -> float:
    """By (1 + how many are as large) / (1 + how many there are), to rounding errors of the values."""
    return float((1 + (null >= value - 1e-6).sum()) / (1 + len(null)))


def _check_settings(
    folds: int,
    critic: str,
    transform: str,
    batch_size: int | None,
    max_steps: int,
    seed: int,
    blocks: int | None,
    permutations: int,
) -> None:
    validation.choice(critic, "critic", CRITICS)
    validation.choice(transform, "transform", list(TRANSFORMS))
    numbers = [(folds, "folds", 2), (max_steps, "max_steps", 0), (seed, "seed", 0), (permutations, "permutations", 0)]
    if batch_size is not None:
        numbers.append((batch_size, "batch_size", 2))
    if blocks is not None:
        numbers.append((blocks, "blocks", 3))
    for value, name, least in numbers:
        validation.integer(value, name, least)
