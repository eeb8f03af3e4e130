"""How a problem is handed to a kernel: the two sides of the score matrix, and what all its pairs share."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...problem import Problem


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
    """(K, size) int64"""
    joint: Any = None
    """(size,) int64: where on the other side the joint pair is; None on both sides stands for the diagonal"""
    statistic: Any = None
    """(size,) log-sum-exps in nats, for the weights of a backward"""
    upstream: Any = None
    """(size,) gradients of the statistic"""


class Critic(NamedTuple):
    """What all pairs share."""

    d: Any
    scale: Any
    """() tensor"""
    lo: Any = None
    """Of the clamp, in nats; None where there is none"""
    hi: Any = None


def sides_of(problem: Problem) -> tuple[Side, Side]:
    x, y = problem.x, problem.y
    rows = Side(
        len(x),
        x,
        x.stride(0),
        x.stride(1),
        bias=_dense(problem.row_bias),
        ids=_dense(problem.row_ids),
        joint=None if problem.joint == "counted" else _dense(problem.positives),
    )
    columns = Side(len(y), y, y.stride(0), y.stride(1), bias=_dense(problem.col_bias), ids=_dense(problem.col_ids))
    return rows, columns


def critic_of(problem: Problem) -> Critic:
    limits = (problem.lo, problem.hi) if problem.clamped else (None, None)
    return Critic(problem.x.shape[1], problem.parameters[0], *limits)


def with_upstream(problem: Problem, side: Side, wanted: bool, statistic: Tensor, upstream: Tensor) -> Side:
    """A side whose statistic is differentiated."""
    if not wanted:
        return side
    return side._replace(
        statistic=_dense(statistic) if problem.fn == "logsumexp" else None,
        upstream=_dense(upstream),
    )


def exclusions(problem: Problem) -> dict[str, Any]:
    """The compile-time switches of which pairs are left out."""
    ids = 0 if problem.row_ids is None else len(problem.row_ids)
    return {"IDS": ids, "JOINT": problem.joint}


def input_precision(problem: Problem) -> str:
    """Of float32 products, as PyTorch's own setting has it; half precision has but one."""
    exact = problem.x.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact else "tf32"


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
