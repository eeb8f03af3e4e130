"""Rows that depend on each other: signs of it, folds that keep them together, and a test of independence."""

import numpy as np
import torch

from ..scores import PairwiseScores
from .samples import Table

# A rank correlation of neighbouring rows, or of a column with the row number.
_AUTOCORRELATED, _IN_ORDER, _STANDARD_ERRORS = 0.1, 0.99, 5


def fold_parts(rows: int, folds: int, seed: int, groups: np.ndarray | None) -> list[np.ndarray]:
    """Row numbers of each fold, at random; rows of one group (N,) stay together, folds being as even as that allows."""
    rng = np.random.default_rng(seed)
    if groups is None:
        return np.array_split(rng.permutation(rows), folds)
    members = members_of(groups)
    parts: list[list[np.ndarray]] = [[] for _ in range(folds)]
    sizes = np.zeros(folds, dtype=int)
    for k in sorted(rng.permutation(len(members)), key=lambda k: -len(members[k])):
        smallest = int(sizes.argmin())
        parts[smallest].append(members[k])
        sizes[smallest] += len(members[k])
    return [np.concatenate(part) for part in parts]


def members_of(groups: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each group."""
    _, codes = np.unique(groups, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def blocks_of(rows: int, blocks: int) -> np.ndarray:
    """(N,) the number of each row's block of consecutive rows."""
    return np.arange(rows) * blocks // rows


def null_infonce(scores: PairwiseScores, value: float, permutations: int, seed: int, shift: bool) -> np.ndarray:
    """(permutations,) what InfoNCE, which reads `value` of square scores, reads with y in another order.

    A permutation moves the joint scores and leaves each row's log-sum-exp as it is. With `shift` it turns the rows,
    which stand in their order, as a circle, so that most neighbours stay neighbours.
    """
    n, rng = scores.shape[0], np.random.default_rng(seed)
    joint = scores.joint.double().mean().item()
    found = []
    for _ in range(permutations):
        order = np.roll(np.arange(n), rng.integers(1, n)) if shift else rng.permutation(n)
        positives = torch.from_numpy(order).to(scores.positives.device)
        found.append(value - joint + scores._with(positives=positives).joint.double().mean().item())
    return np.array(found)


def signs_of_dependence(x: Table, y: Table) -> list[str]:
    """A sentence for columns that count the rows, and one where x and y both follow the order of the rows."""
    found, strongest = [], []
    for side in (x, y):
        ranks = _ranks(side.values)
        columns = [k for k in range(ranks.shape[1]) if _counts_rows(side.values[:, k], ranks[:, k])]
        if columns:
            found.append(
                f"{side.describe(columns)} of {side.name} goes like the number or the time of the rows: where x and y "
                "both have one, that is what they share; leave it out unless it is a measurement"
            )
        strongest.append(float((ranks[1:] * ranks[:-1]).mean(0).max()))
    if min(strongest) > max(_AUTOCORRELATED, _STANDARD_ERRORS / np.sqrt(len(x))):
        found.append(
            f"x and y both follow the order of the rows (rank correlation of neighbours up to {strongest[0]:.2f} and "
            f"{strongest[1]:.2f}): unless the rows were sorted they depend on each other, and two series that have "
            "nothing to do with one another can read as much as this; see groups, blocks and permutations"
        )
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of each column, ties having their mean, less the mean, over the standard deviation."""
    made = np.empty(values.shape)
    for k, column in enumerate(values.T):
        _, codes, counts = np.unique(column, return_inverse=True, return_counts=True)
        made[:, k] = (counts.cumsum() - counts / 2)[codes]
    made -= made.mean(0)
    return made / np.maximum(made.std(0), 1e-12)


def _counts_rows(column: np.ndarray, ranks: np.ndarray) -> bool:
    rows = len(column)
    number = np.arange(rows) - (rows - 1) / 2
    if abs(ranks @ number) / rows / number.std() > _IN_ORDER and len(np.unique(column)) > 0.9 * rows:
        return True
    # Whole numbers without a gap and without repeats: an index of rows that were shuffled since.
    return bool(np.array_equal(np.sort(column) - column.min(), np.arange(rows)))
