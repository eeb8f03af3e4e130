"""What the drop-ins do with several processes: one batch of all their rows, with the gradients of one process.

The originals' flags choose between gradients some of which are 1/W of those, for W processes, or lack a part of them
(open_clip#616, #894, lightly#1920). Here they choose whether processes share a batch at all; the value is that of the
whole batch on each. Of a loss with `original_gradients` they choose what they choose there.
"""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..operator.collectives import AllGather
from ..operator.global_batch import GlobalBatch, shards_of
from ..operator.sharded import all_columns
from ..problem import Problem


class SeveralProcesses:
    """Comes before a class of an original that knows of several processes."""

    original_gradients: bool = False
    """Whether value and gradients on each process are the original's, for scripts whose learning rate was tuned to
    them. Of a loss or, set on the class, of all: an attribute, since constructors have the originals' signatures.
    """

    def _as_original(self, group: Any) -> bool:
        return group is not None and self.original_gradients

    def _of_group(self, loss: Callable[..., Tensor], *operands: Any, group: Any, **options: Any) -> Tensor:
        """A loss of the whole batch or, as most originals have it, of this process's own anchors.

        Candidates that are gathered with their gradients get them from every process: the gradients are those of the
        sum over processes of such losses, and so are ours of values of each process's own anchors.
        """
        if not self._as_original(group):
            return loss(*operands, group=group, **options)
        return loss(*operands, group=group, reduction="none", **options).mean()


def world(option: str, count: int | None = None) -> dist.ProcessGroup | None:
    """The group of all processes, `count` of them if given; None where there is but one.

    Raises ValueError naming the option where torch.distributed has another number of them.
    """
    found = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if count is not None and count > 1 and count != found:
        raise ValueError(f"{option} must be the number of torch.distributed's processes, got {count} and {found}")
    return dist.group.WORLD if found > 1 and count != 1 else None


def on_whole_batch(function: Callable[[Tensor, Tensor], Tensor], group: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of the rows of all processes (N, d), as one of a process's own (n, d), to its own values (n,)."""

    def on_own(x: Tensor, y: Tensor) -> Tensor:
        shards = shards_of(group, Problem(x, y, []))
        assert shards is not None
        return function(all_columns(x, shards), all_columns(y, shards))[shards.own_columns]

    return on_own


def with_whole_gradient(value: float | Tensor, batch: GlobalBatch) -> float | Tensor:
    """A scalar that all processes have, whose gradient by a loss of the whole batch is then whole on each."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return value
    mean = AllGather.apply(value.reshape(1), batch.size, batch.name, 1 if batch.averaging else batch.size).mean()
    return value.detach() + (mean - mean.detach())
