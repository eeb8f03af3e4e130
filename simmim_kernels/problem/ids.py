"""Integer ids: dense ranks, and how many pairs they leave out, in memory linear in rows and columns.

No result's shape depends on the values, so that torch.compile and a GPU need not look at them.
"""

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from .problem import Problem

# Counting pairs looks at every subset of the exclusions, so that their number is limited.
_MOST_EXCLUSIONS = 6


def dense_ranks(ids: Tensor) -> Tensor:
    """(L,) int64 in [0, L): equal ids get equal ranks, and ranks are in the order of the ids."""
    values, order = ids.sort()
    steps = torch.cat([values.new_zeros(1), (values[1:] != values[:-1]).long()]).cumsum(0)
    return torch.empty_like(steps).scatter(0, order, steps)


def with_more_ids(problem: Problem, row_ids: Tensor, col_ids: Tensor, grouped: bool) -> dict[str, Any]:
    """The fields of a problem that has ids (1, N) and (1, M) more; those of groups, outside which no pair is in, are
    one with those that it has.
    """
    p, n = problem, problem.x.shape[0]
    if p.row_ids is not None and p.col_ids is not None:
        if not grouped and len(p.row_ids) - p.grouped == _MOST_EXCLUSIONS:
            raise ValueError(f"exclude can be applied {_MOST_EXCLUSIONS} times at most, got one more")
        ids, more = torch.cat([p.row_ids, p.col_ids], dim=1), torch.cat([row_ids, col_ids], dim=1)
        if grouped and p.grouped:
            ids, more = ids[1:], joint_ranks(ids[0], more[0])[None]
        # Those of groups are the first.
        ids = torch.cat([more, ids] if grouped else [ids, more])
        row_ids, col_ids = ids[:, :n], ids[:, n:]
    return {"row_ids": row_ids, "col_ids": col_ids, "grouped": p.grouped or grouped}


def excluded_counts(problem: Problem, by_column: bool) -> Tensor:
    """int64, the number of pairs that are left out in each row (N,), or in each column (M,)."""
    device = problem.x.device
    counts = torch.zeros(problem.shape[1 if by_column else 0], dtype=torch.int64, device=device)
    matched = torch.zeros(problem.shape[0], dtype=torch.bool, device=device)
    positives = problem.positives
    if positives is None:
        positives = torch.arange(problem.shape[0], device=device)
    if problem.row_ids is not None and problem.col_ids is not None:
        mine, others = (problem.col_ids, problem.row_ids) if by_column else (problem.row_ids, problem.col_ids)
        counts = counts + (others.shape[1] - _kept(mine, others, problem.grouped))
        if problem.joint in ("left_out", "kept"):
            matched = problem.left_out_by_ids(problem.row_ids == problem.col_ids[:, positives])
    if problem.joint not in ("left_out", "kept"):
        return counts
    # A joint pair that the ids left out is in again ("kept"); one that they did not is out now ("left_out").
    change = (~matched).long() if problem.joint == "left_out" else -matched.long()
    return counts.index_add(0, positives, change) if by_column else counts + change


def joint_ranks(first: Tensor, second: Tensor) -> Tensor:
    """(L,) int64 in [0, L): equal where both of two sets of ids (L,) are."""
    return dense_ranks(dense_ranks(first) * len(first) + dense_ranks(second))


def _kept(mine: Tensor, others: Tensor, grouped: bool) -> Tensor:
    """How many of `others` (K, B) the ids leave to each of `mine` (K, A): those of its group, or all, less those that
    agree with it in an exclusion, by inclusion and exclusion.
    """
    size = mine.shape[1]
    total = torch.zeros(size, dtype=torch.int64, device=mine.device)
    both = torch.cat([mine, others], dim=1)
    group, exclusions = (both[0], both[1:]) if grouped else (torch.zeros_like(both[0]), both)
    group = dense_ranks(group)
    for number in range(len(exclusions) + 1):
        for chosen in combinations(exclusions, number):
            ranks = group
            for ids in chosen:
                ranks = joint_ranks(ranks, ids)
            found = torch.zeros_like(ranks).index_add(0, ranks[size:], torch.ones_like(ranks[size:]))
            total = total + (-1) ** number * found[ranks[:size]]
    return total
