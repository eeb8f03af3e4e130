"""Who shares a batch: a process group, how its ranks work together, and how many rows each of them has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from ..problem import Problem, validation
from ..problem.forms import FORMS
from .collectives import OPS

SCHEDULES = ("gather", "ring")


class GlobalBatch:
    """What `group` may be beside a process group: the group, and how its ranks make one batch.

    group: a ProcessGroup, or a DeviceMesh of one dimension. schedule="gather" brings the candidates of all ranks,
    (N, d), together; "ring" passes them on from neighbour to neighbour while the last ones are worked on, in
    O(N d / W) memory for W ranks. averaging=True is for gradients that are then averaged over ranks, as DDP and FSDP
    do; averaging=False for those that are summed.

    Before any features travel, ranks tell each other their shapes, in one all-gather of some 100 bytes. It cannot be
    left out on account of one's own shape, which says nothing of the others'. fixed_shapes=True promises that the
    shapes of all ranks only change together, as with a loader that drops the last batch: each is then told once.

    Raises TypeError or ValueError for what is no such group, ValueError for a rank that is not in it, and for an
    unknown schedule.
    """

    def __init__(self, group: Any, schedule: str = "gather", averaging: bool = True, fixed_shapes: bool = False):
        validation.choice(schedule, "schedule", SCHEDULES)
        self.group = _process_group(group)
        self.schedule = schedule
        self.averaging = validation.flag(averaging, "averaging")
        self.fixed_shapes = validation.flag(fixed_shapes, "fixed_shapes")
        self.size, self.rank = self.group.size(), self.group.rank()
        self.name = self.group.group_name
        self._told: dict[tuple[int, ...], tuple[tuple[int, ...], ...]] = {}

    def __deepcopy__(self, memo: dict) -> "GlobalBatch":
        return self  # a process group has no copies; modules that hold one do

    def __repr__(self) -> str:
        return f"GlobalBatch(ranks={self.size}, schedule={self.schedule!r}, averaging={self.averaging})"


def _process_group(group: Any) -> "dist.ProcessGroup":  # quoted: not every build of PyTorch has it
    if not dist.is_available():
        raise ValueError("group cannot be given: this PyTorch was built without torch.distributed")
    if hasattr(group, "get_group") and hasattr(group, "ndim"):  # a DeviceMesh, whose import would cost every user
        if group.ndim != 1:
            raise ValueError(f"group must be a DeviceMesh of one dimension, got one of {group.ndim}: slice it by name")
        group = group.get_group()
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group must be one that this rank is in, got one that it is not")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"group must be a ProcessGroup, a DeviceMesh or a GlobalBatch, got {validation.describe(group)}"
        )
    return group


@dataclass(frozen=True)
class Shards:
    """The rows of every rank, of one call."""

    batch: GlobalBatch
    rows: tuple[int, ...]
    """Anchors of each rank."""
    columns: tuple[int, ...]
    """Candidates of each rank."""
    diagonal: bool = False
    """Whether each row's joint pair is the column of its own place among this rank's."""

    @property
    def all_rows(self) -> int:
        return sum(self.rows)

    @property
    def all_columns(self) -> int:
        return sum(self.columns)

    @property
    def first_row(self) -> int:
        """The number of this rank's first row among those of all ranks."""
        return sum(self.rows[: self.batch.rank])

    @property
    def first_column(self) -> int:
        return sum(self.columns[: self.batch.rank])

    @property
    def own_columns(self) -> slice:
        """This rank's columns among those of all ranks."""
        return slice(self.first_column, self.first_column + self.columns[self.batch.rank])

    @property
    def have_a_diagonal(self) -> bool:
        """Whether every rank has a column for each of its rows."""
        return all(n <= m for n, m in zip(self.rows, self.columns, strict=True))

    def with_diagonal(self, diagonal: bool) -> "Shards":
        return replace(self, diagonal=diagonal)


def global_batch(group: Any) -> GlobalBatch:
    """A GlobalBatch as it is, and a group with the defaults."""
    return group if isinstance(group, GlobalBatch) else GlobalBatch(group)


_DEVICES = ("cpu", "cuda")
_DTYPES = validation.FLOATING
_FORMS = tuple(FORMS)


def _named(names: Sequence[Any]) -> Callable[[int], str]:
    return lambda code: str(names[code]) if 0 <= code < len(names) else "another"


# What ranks tell each other beside their numbers of rows and columns, all of which must be alike: its name, what it is
# of a problem, and how a message shows it.
_ALIKE: tuple[tuple[str, Callable[[GlobalBatch, Problem], int], Callable[[int], str]], ...] = (
    ("number of features d", lambda b, p: p.y.shape[1], str),
    ("dtype", lambda b, p: _DTYPES.index(p.x.dtype), _named(_DTYPES)),
    ("device", lambda b, p: _place(p.x.device.type, _DEVICES), _named(_DEVICES)),
    ("kind of scores", lambda b, p: _place(p.form, _FORMS), _named(_FORMS)),
    ("schedule", lambda b, p: SCHEDULES.index(b.schedule), _named(SCHEDULES)),
    ("averaging", lambda b, p: int(b.averaging), _named((False, True))),
    ("fixed_shapes", lambda b, p: int(b.fixed_shapes), _named((False, True))),
    ("col_bias", lambda b, p: int(p.col_bias is not None), _named(("none", "one"))),
    ("positives", lambda b, p: int(p.positives is not None), _named(("none", "some"))),
    ("requires_grad of (x, y, col_bias, any other)", lambda b, p: _grads(p), lambda c: str(_bits(c))),
)


def _place(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else -1


def _grads(problem: Problem) -> int:
    """Who wants a gradient, in bits: where one rank did and another did not, one would wait for the other."""
    x, y, row_bias, col_bias, *parameters = (
        torch.is_grad_enabled() and t is not None and t.requires_grad for t in problem.differentiable
    )
    return 8 * x + 4 * y + 2 * col_bias + (row_bias or any(parameters))


def _bits(code: int) -> tuple[bool, ...]:
    return tuple(bool(code & bit) for bit in (8, 4, 2, 1))


def shards_of(group: Any, problem: Problem, whose: str = "") -> Shards | None:
    """The rows of every rank, by one small all-gather; None without a group.

    `group` may also be the Shards of another problem with as many rows and columns, which need no telling. `whose`
    features a message is to speak of: " of the guide", or those of the scores.
    Raises ValueError on every rank, naming the ranks, where their problems do not go together.
    """
    if group is None or isinstance(group, Shards):
        return group
    batch = global_batch(group)
    own = (*problem.shape, *(code(batch, problem) for _, code, _ in _ALIKE))
    told = batch._told.get(own) if batch.fixed_shapes else None
    if told is None:
        told = _tell(batch, own, problem.x.device)
        _check_alike(told, whose)
        if batch.fixed_shapes:
            batch._told[own] = told
    rows, columns, *_ = zip(*told, strict=True)
    return Shards(batch, rows, columns)


@torch.compiler.disable(reason="what other ranks' shapes are is known when they have told them")
def _tell(batch: GlobalBatch, own: tuple[int, ...], device: torch.device) -> tuple[tuple[int, ...], ...]:
    """Every rank's numbers."""
    numbers = torch.tensor(own, dtype=torch.int64, device=device)
    found = OPS.all_gather_into_tensor(numbers, batch.size, batch.name)
    told = OPS.wait_tensor(found).view(batch.size, -1).tolist()
    return tuple(map(tuple, told))


def _check_alike(told: Sequence[tuple[int, ...]], whose: str) -> None:
    rows, columns, *others = zip(*told, strict=True)
    for (name, _, shown), codes in zip(_ALIKE, others, strict=True):
        if len(set(codes)) > 1:
            ranks = {code: [r for r, c in enumerate(codes) if c == code] for code in sorted(set(codes))}
            got = ", ".join(f"{shown(code)} on {_ranks(where)}" for code, where in ranks.items())
            raise ValueError(f"{name}{whose} must be the same on every rank of the group, got {got}")
    for name, counts in (("x", rows), ("y", columns)):
        if not sum(counts):
            raise ValueError(f"{name} must have at least one row on some rank of the group, got none on any")


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) > 8:
        return f"ranks {', '.join(map(str, ranks[:8]))} and {len(ranks) - 8} more"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
