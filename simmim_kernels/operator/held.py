"""Statistics of matrices so small that PyTorch's autograd may hold them: that takes less than making them twice.

Their backward is PyTorch's own, as of dense scores: called inside autocast, its products are autocast's.
"""

import torch

from ..backends import asked_for, reference
from ..problem import Problem
from ..problem.softmax import entropy_of_rows
from .computation import Statistic

# A matrix of up to this many scores, 256 KB of them, is held where no backend was asked for by name.
HELD_SCORES = 2**16


def is_held(problem: Problem, backend: str | None = None) -> bool:
    """Whether autograd holds the scores. Not where a backend was asked for, nor with exclusions.

    Of an empty row PyTorch's log-sum-exp has NaN for a gradient. Joint pairs that are left out but wanted beside the
    rest, as a cross entropy has them, are no such exclusion: see `held_statistic`.
    """
    n, m = problem.shape
    all_pairs = problem.row_ids is None and not problem.guided and (problem.joint == "counted" or problem.wants_joint)
    return n * m <= HELD_SCORES and all_pairs and problem.form == "inner_product" and asked_for(backend)[0] is None


def held_statistic(problem: Problem) -> Statistic:
    """The joint scores are out of the same products as the others."""
    # Cast once for all, so that gradients are summed before they are rounded.
    p = reference.cast(problem)
    if not (p.wants_joint or p.wants_entropy):
        return Statistic(*reference.forward(p), p.x.new_empty(0), p.x.new_empty(0))
    s = reference.dense(p.replace(joint="counted"))
    joint = s.diagonal() if p.positives is None else s.gather(1, p.positives[:, None]).squeeze(1)
    if p.joint == "left_out":
        # The lowest number, and not -inf: its share of any sum is 0, and alone it has a gradient that is 0 and not NaN.
        lowest = torch.finfo(s.dtype).min
        if p.positives is None:
            s = s.diagonal_scatter(torch.full_like(joint, lowest))
        else:
            s = s.scatter(1, p.positives[:, None], lowest)
    nothing = s.new_empty(0)
    entropies = entropy_of_rows(s.detach()) if p.wants_entropy else nothing
    rows, columns = s.logsumexp(1) if p.wants_rows else nothing, s.logsumexp(0) if p.wants_columns else nothing
    return Statistic(rows, columns, joint if p.wants_joint else nothing, entropies)
