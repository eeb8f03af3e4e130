"""The schedule "ring": features of candidates go from neighbour to neighbour, and their gradients after them.

A guide's features of candidates, which have no gradients, go with them.

At step s rank r works on the columns of rank r - s, while those of the next step are on their way to it. In the
backward the sum of a block's gradients follows the block by a step, so that its way, too, is beside other work.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import BACKENDS, asked_for, select
from ..problem import Problem
from ..problem.softmax import merged_entropy
from .collectives import AllToAll
from .computation import Statistic, cast_gradients, values, without_autocast
from .global_batch import Shards
from .joint import joint_scores as local_joint_scores


@torch.compiler.disable(reason='schedule="ring" is not traced: its exchanges between neighbours are not functional')
def statistic(problem: Problem, backend: str | None, shards: Shards) -> Statistic:
    """Of own rows and all columns: rows (n,), columns (M,)."""
    joint = joint_scores(problem, shards) if problem.wants_joint else problem.x.new_empty(0)
    backend = asked_for(backend)[0]  # for the backward too, which may run where nothing asks for it any more
    rows, columns, entropies = RingStatistic.apply(problem, backend, shards, *problem.differentiable)
    return Statistic(rows, columns, joint, entropies)


class RingStatistic(torch.autograd.Function):
    """(problem, backend, shards, *problem.differentiable) -> (rows (n,), columns (M,), entropies (n,))."""

    @staticmethod
    def forward(ctx, problem, backend, shards, *differentiable):
        rows, columns, entropies = _forward(problem, backend, shards)
        ctx.mark_non_differentiable(entropies)
        ctx.problem, ctx.backend, ctx.shards = problem.without_tensors(), backend, shards
        ctx.save_for_backward(rows, columns, *problem.constants, *differentiable)
        return rows, columns, entropies

    @staticmethod
    def backward(ctx, grad_rows, grad_columns, _):
        _refuse_second_derivatives()
        rows, columns, *tensors = ctx.saved_tensors
        problem = ctx.problem.with_tensors(tensors)
        needs = list(ctx.needs_input_grad[3:])

        def of_block(block: Problem, where: slice) -> list[Tensor | None]:
            of_columns = [t[where] if block.wants_columns else t for t in (columns, grad_columns)]
            module = BACKENDS[select(block, ctx.backend)]
            return module.backward(block, rows, of_columns[0], grad_rows, of_columns[1], needs)

        return None, None, None, *cast_gradients(problem, _gradients(problem, ctx.shards, needs, of_block))


class RingTotal(torch.autograd.Function):
    """(problem, backend, shards, *problem.differentiable) -> () the sum of own rows' values, gradients made along."""

    @staticmethod
    def forward(ctx, problem, backend, shards, *differentiable):
        needs = list(ctx.needs_input_grad[3:])
        parts = [problem.x.new_zeros((), dtype=problem.compute_dtype)]

        def of_block(block: Problem, where: slice) -> list[Tensor | None]:
            value, found = BACKENDS[select(block, backend)].value_and_gradients(block, needs)
            parts.append(value)
            return found

        ctx.save_for_backward(*_gradients(problem, shards, needs, of_block))
        ctx.dtypes = [None if t is None else t.dtype for t in differentiable]
        return torch.stack(parts).sum()

    @staticmethod
    def backward(ctx, upstream):
        _refuse_second_derivatives()
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return None, None, None, *(None if made is None else (made * upstream).to(dtype) for made, dtype in found)


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            'second derivatives across a group need schedule="gather", got create_graph=True with "ring"'
        )


def _forward(problem: Problem, backend: str | None, shards: Shards) -> tuple[Tensor, Tensor, Tensor]:
    p, exponential = problem, problem.fn == "logsumexp"
    n, dtype = len(p.x), p.compute_dtype
    nothing = -torch.inf if exponential else 0.0
    rows = p.x.new_full((n if p.wants_rows else 0,), nothing, dtype=dtype)
    columns = p.x.new_full((shards.all_columns if p.wants_columns else 0,), nothing, dtype=dtype)
    entropies = p.x.new_zeros((n if p.wants_entropy else 0,), dtype=dtype)
    for block, where in _blocks(p, shards):
        if not (n and len(block.y)):
            continue
        of_rows, of_columns, _, of_row_entropies = values(block.replace(wants_joint=False), select(block, backend))
        if p.wants_entropy:
            entropies = merged_entropy(torch.stack([rows, of_rows]), torch.stack([entropies, of_row_entropies]))
        if p.wants_rows:
            rows = torch.logaddexp(rows, of_rows) if exponential else rows + of_rows
        if p.wants_columns:
            columns[where] = of_columns
    return rows, columns, entropies


def _gradients(
    problem: Problem, shards: Shards, needs: list[bool], of_block: Callable[[Problem, slice], list[Tensor | None]]
) -> list[Tensor | None]:
    """Of `problem.differentiable`, out of each block's; those of y are of this rank's own, by the rows of all ranks."""
    p, batch = problem, shards.batch
    totals = [
        torch.zeros(t.shape, dtype=p.compute_dtype, device=t.device) if need and t is not None else None
        for t, need in zip(p.differentiable, needs, strict=True)
    ]
    dx, dy, drow, dcol, *dparameters = totals
    following: _Way | None = None  # the sum so far of the gradients of the block at hand
    for step, (block, where) in enumerate(_blocks(p, shards)):
        found: list[Tensor | None] = []
        if len(p.x) and len(block.y):
            with without_autocast(p.x.device):
                found = of_block(block, where)
            for total, part in zip((dx, drow, *dparameters), (found[0], found[2], *found[4:]), strict=True):
                if total is not None and part is not None:
                    total += part
            if dcol is not None and found[3] is not None:
                dcol[where] = found[3].to(dcol.dtype)
        if dy is not None:
            dy = dy if following is None else following.arrived()
            if found and found[1] is not None:
                dy += found[1]
            following = _pass_on(dy, shards.columns[(batch.rank - step - 1) % batch.size], shards)
        del block, found  # before the next ones are there
    return [dx, None if following is None else following.arrived(), drow, dcol, *dparameters]


def _blocks(problem: Problem, shards: Shards) -> Iterator[tuple[Problem, slice]]:
    """Own rows with each rank's columns in turn, own ones first; and where these are among all columns."""
    batch = shards.batch
    block = [t.detach().contiguous() for t in (problem.y, problem.guide_y) if t is not None]
    following: list[_Way] = []
    for step in range(batch.size):
        owner = (batch.rank - step) % batch.size
        if following:
            block = [way.arrived() for way in following]
        if step + 1 < batch.size:
            coming = shards.columns[(owner - 1) % batch.size]
            following = [_pass_on(features, coming, shards) for features in block]
        first = sum(shards.columns[:owner])
        yield _block(problem, block, slice(first, first + len(block[0])), owner, shards)
        del block


def _block(problem: Problem, block: list[Tensor], where: slice, owner: int, shards: Shards) -> tuple[Problem, slice]:
    p, joint, positives = problem, problem.joint, None
    y, *guide_y = block
    if joint != "counted" and shards.diagonal:
        joint = joint if owner == shards.batch.rank else "counted"
    elif joint != "counted" and p.positives is not None:
        positives = p.positives - where.start
    col_bias = None if p.col_bias is None else p.col_bias[where]
    col_ids = None if p.col_ids is None else p.col_ids[:, where]
    p = p.replace(y=y, col_bias=col_bias, col_ids=col_ids, positives=positives, joint=joint)
    return p.replace(guide_y=guide_y[0]) if guide_y else p, where


class _Way:
    """Rows on their way here, and those that left for the next rank, which must stay as they are meanwhile."""

    def __init__(self, coming: Tensor, left: Tensor, works: Sequence[Any] = ()):
        self._coming, self._left, self._works = coming, left, works

    def arrived(self) -> Tensor:
        """The rows that came; those that left are held no longer."""
        for work in self._works:
            work.wait()
        self._left, self._works = self._coming, ()
        return self._coming


def _pass_on(leaving: Tensor, coming: int, shards: Shards) -> _Way:
    """Starts the way of some rows to the next rank, and of `coming` rows from the one before."""
    batch = shards.batch
    if batch.size == 1:
        return _Way(leaving, leaving)
    found = leaving.new_empty(coming, *leaving.shape[1:])
    ways = []
    if leaving.numel():
        ways.append(dist.P2POp(dist.isend, leaving, group=batch.group, group_peer=(batch.rank + 1) % batch.size))
    if found.numel():
        ways.append(dist.P2POp(dist.irecv, found, group=batch.group, group_peer=(batch.rank - 1) % batch.size))
    return _Way(found, leaving, dist.batch_isend_irecv(ways) if ways else ())


@torch.compiler.disable(reason='schedule="ring" is not traced')
def total(problem: Problem, backend: str | None, shards: Shards) -> Tensor:
    """() the sum of a pointwise function over own rows and all columns."""
    return RingTotal.apply(problem, backend, shards, *problem.differentiable)


@torch.compiler.disable(reason='schedule="ring" is not traced')
def joint_scores(problem: Problem, shards: Shards) -> Tensor:
    """(n,) scores of own rows' joint pairs."""
    p = problem
    if shards.diagonal:
        col_bias = None if p.col_bias is None else p.col_bias[shards.own_columns]
        return local_joint_scores(p.replace(col_bias=col_bias, positives=None))
    assert p.positives is not None
    col_bias = None if p.col_bias is None else p.col_bias[p.positives]
    y = rows_of_all(p.y, p.positives, shards)
    return local_joint_scores(p.replace(y=y, col_bias=col_bias, positives=None))


def rows_of_all(y: Tensor, wanted: Tensor, shards: Shards) -> Tensor:
    """(n, ...) rows of every rank's y by their numbers `wanted` (n,) among those of all: asked for of their owners."""
    name, size = shards.batch.name, shards.batch.size
    ends = torch.tensor(shards.columns, device=wanted.device).cumsum(0)
    owner = torch.bucketize(wanted, ends, right=True)
    order = owner.argsort(stable=True)
    asked = torch.bincount(owner, minlength=size)
    given = AllToAll.apply(asked, [1] * size, [1] * size, name)
    asked_of, given_to = asked.tolist(), given.tolist()
    numbers = AllToAll.apply(wanted[order], given_to, asked_of, name)
    found = AllToAll.apply(y[numbers - shards.first_column], asked_of, given_to, name)
    return found[order.argsort()]
