"""How a problem is handed to a kernel: the two sides of the score matrix, and what all its pairs share."""

from typing import Any, NamedTuple

from torch import Tensor

from ...problem import Problem


class Guide(NamedTuple):
    """A side's features by which a guide leaves pairs out: those whose product is above the limit of their row."""

    size: Any = None
    operand: Any = None
    """(size, d) float32, of any strides; None where there is no guide"""
    stride: Any = None
    stride_d: Any = None
    d: Any = None
    limit: Any = None
    """(size,) float32, of the side that has the rows"""


class Side(NamedTuple):
    """The rows or the columns of the score matrix. What is None is left out of the compiled kernel."""

    size: Any
    operand: Any
    """(size, d), of any strides"""
    stride: Any
    stride_d: Any
    bias: Any = None
    """(size,)"""
    ids: Any = None
    """(K, size) int64, those of exclusions"""
    group: Any = None
    """(size,) int64, outside which no pair is in"""
    guide: Any = Guide()
    joint: Any = None
    """(size,) int64: where on the other side the joint pair is; None on both sides stands for the diagonal"""
    reference: Any = None
    """(size,) log-sum-exps in base 2, for the weights of a backward; +inf for an empty line, which weighs nothing"""
    factor: Any = None
    """(size,) that the weights of a line are multiplied by (factors.py), or the gradients of sums of a pointwise
    function"""


class Critic(NamedTuple):
    """What all pairs share."""

    d: Any
    scale: Any
    """() tensor"""
    lo: Any = None
    """Of the clamp, in nats; None where there is none"""
    hi: Any = None
    shared: Any = None
    """(2,) float32: one reference for rows and columns alike, and whether it serves (factors.py)"""


class JointPairs(NamedTuple):
    """The joint pairs of the lines of one side, whose gradients are added to those of the other pairs."""

    size: Any
    """How many lines have one: the first"""
    gradient: Any
    """(size,) float32, of the joint scores"""
    operand: Any
    """Of the other side, any strides"""
    stride: Any
    stride_d: Any
    index: Any = None
    """(size,) int64, the line on the other side; None for the same one"""


# A kernel cannot ask whether a tuple is None, but whether what is in it is.
NO_PAIRS = JointPairs(None, None, None, None, None)


def sides_of(problem: Problem) -> tuple[Side, Side]:
    x, y = problem.x, problem.y
    (row_group, row_ids), (col_group, col_ids) = (
        _group_and_exclusions(problem, ids) for ids in (problem.row_ids, problem.col_ids)
    )
    rows = Side(
        len(x),
        x,
        x.stride(0),
        x.stride(1),
        bias=dense(problem.row_bias),
        ids=row_ids,
        group=row_group,
        guide=_guide_of(problem.guide_x, dense(problem.guide_limit)),
        joint=None if problem.joint == "counted" else dense(problem.positives),
    )
    columns = Side(
        len(y),
        y,
        y.stride(0),
        y.stride(1),
        bias=dense(problem.col_bias),
        ids=col_ids,
        group=col_group,
        guide=_guide_of(problem.guide_y),
    )
    return rows, columns


def _guide_of(features: Tensor | None, limit: Tensor | None = None) -> Guide:
    if features is None:
        return Guide()
    return Guide(len(features), features, features.stride(0), features.stride(1), features.shape[1], limit)


def _group_and_exclusions(problem: Problem, ids: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """A side's ids (K, size) as those of groups (size,) and those of exclusions (K or K - 1, size); None for none."""
    if ids is None or not problem.grouped:
        return None, dense(ids)
    return dense(ids[0]), dense(ids[1:]) if len(ids) > 1 else None


def critic_of(problem: Problem) -> Critic:
    limits = (problem.lo, problem.hi) if problem.clamped else (None, None)
    return Critic(problem.x.shape[1], problem.parameters[0], *limits)


def width_of_guide(side: Side) -> int:
    """How many multiplications a pair takes of which a guide decides; 0 where there is none."""
    return side.guide.d or 0


def joint_pairs_of(problem: Problem, gradient: Tensor | None) -> tuple[JointPairs, JointPairs]:
    """Of the rows, and of the columns: none where `positives` may have one column in several pairs."""
    if gradient is None:
        return NO_PAIRS, NO_PAIRS
    x, y = problem.x, problem.y
    rows = JointPairs(len(x), gradient, y, y.stride(0), y.stride(1), dense(problem.positives))
    if problem.positives is not None:
        return rows, NO_PAIRS
    return rows, JointPairs(len(x), gradient, x, x.stride(0), x.stride(1))


def exclusions(problem: Problem) -> dict[str, Any]:
    """The compile-time switches of which pairs are left out."""
    ids = 0 if problem.row_ids is None else len(problem.row_ids) - problem.grouped
    return {"IDS": ids, "JOINT": problem.joint}


def dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
