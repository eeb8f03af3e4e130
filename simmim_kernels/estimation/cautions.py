"""What to beware of in an estimate, a sentence each."""

import numpy as np

from .. import bounds
from .dependence import signs_of_dependence
from .report import LABELS, LOW_WITHIN, MutualInformationEstimate
from .samples import Table, repeated_pairs, shared_columns

# In nats: what a baseline must exceed the bounds by, and training rows test rows, to be told.
_EXCESS, _GAP = 0.1, 0.3


def warnings_of(result: MutualInformationEstimate, x: Table, y: Table) -> list[str]:
    """Of the result from x and y."""
    return [
        *_of_the_ceiling(result),
        *_of_the_baselines(result),
        *_of_the_training(result),
        *_of_the_rows(x, y),
    ]


def _of_the_ceiling(result: MutualInformationEstimate) -> list[str]:
    rows = result.folds[0].test_rows
    if result.saturated:
        return [
            f"InfoNCE is within {bounds.SATURATED_WITHIN} nats of its ceiling, log of {rows} test "
            "rows: the information is that or any amount more; more rows or fewer folds raise the ceiling"
        ]
    if result.nats > result.ceiling - LOW_WITHIN:
        return [
            f"InfoNCE is within {LOW_WITHIN} nats of its ceiling, log of {rows} test rows, where it reads low by "
            f"0.15 nats and more: quote {LABELS[result.quote]}; more rows or fewer folds raise the ceiling"
        ]
    return []


def _of_the_baselines(result: MutualInformationEstimate) -> list[str]:
    found = []
    quoted = result.bounds[result.quote]
    for name, baseline in result.baselines.items():
        excess = -np.inf if baseline.value is None else baseline.value - quoted.value
        if excess > max(_EXCESS, 2 * quoted.standard_error):
            found.append(
                f"{LABELS[name]} reads {baseline.value:.2f} nats, {excess:.2f} more than {LABELS[result.quote]}: "
                "the critics may have learnt too little"
                + ("" if name != "gaussian_copula" or result.nearly_gaussian else ", or ranks have no Gaussian copula")
            )
    return found


def _of_the_training(result: MutualInformationEstimate) -> list[str]:
    found, folds = [], result.folds
    gap = float(np.mean([fold.train_infonce for fold in folds])) - result.nats
    if gap > _GAP:
        found.append(
            f"the critics read {result.nats + gap:.2f} nats of the rows that they were trained on and "
            f"{result.nats:.2f} of others: too few rows for what there is to learn, and the information is likely more"
        )
    blind = sum(fold.best_stage == "untrained" for fold in folds)
    if blind:
        found.append(
            f"{blind} of {len(folds)} critics found no information on their validation rows and read 0 exactly: "
            "there is none, or too little for so few rows"
        )
    unfinished = sum(not fold.stopped_early for fold in folds)
    if unfinished:
        found.append(
            f"{unfinished} of {len(folds)} critics were still training at max_steps, "
            f"{result.settings['max_steps']}: more steps may raise the bounds"
        )
    return found


def _of_the_rows(x: Table, y: Table) -> list[str]:
    found = []
    if np.array_equal(x.values, y.values):
        found.append(
            f"{x.name} and {y.name} are identical: what they share is their entropy, which has no bound where values "
            "are continuous"
        )
    else:
        found += [
            f"{x.describe([k])} of {x.name} is {y.describe([j])} of {y.name}: what x and y share is that, which has no "
            "bound where its values are continuous"
            for k, j in shared_columns(x, y)[:3]
        ]
    repeated = repeated_pairs(x.values, y.values)
    if repeated:
        found.append(
            f"{repeated} pairs are exact repeats of others, so that test rows may have been trained on: "
            "remove them unless they are separate observations"
        )
    return found + signs_of_dependence(x, y)
