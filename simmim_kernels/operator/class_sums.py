"""Sums over the rows of a class on all ranks, for every row that of its own class.

A class is summed on the rank that its number falls to: each rank sends what its own rows come to, one row for each
class that it has, and gets the sums of those classes back. That is O(n d) of memory and of traffic, whatever the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .collectives import AllToAll
from .global_batch import Shards


@torch.compiler.disable(reason="how many classes go from rank to rank is seen in their values")
def class_sums(classes: Tensor, shards: Shards) -> Callable[[Tensor], Tensor]:
    """For classes (n,) int64: a function from values (n, ...) to the sums of their classes (n, ...), differentiable."""
    name, size = shards.batch.name, shards.batch.size
    own, place = classes.unique(return_inverse=True)
    owner = own % size
    order = owner.argsort(stable=True)
    given = torch.bincount(owner, minlength=size)
    taken = AllToAll.apply(given, [1] * size, [1] * size, name)
    to_give, to_take = given.tolist(), taken.tolist()
    kept, where = AllToAll.apply(own[order], to_take, to_give, name).unique(return_inverse=True)
    back = order.argsort()[place]

    @torch.compiler.disable(reason="see above")
    def of_class(values: Tensor) -> Tensor:
        parts = _summed(values, place, len(own)).index_select(0, order)
        sums = _summed(AllToAll.apply(parts, to_take, to_give, name), where, len(kept))
        return AllToAll.apply(sums.index_select(0, where), to_give, to_take, name).index_select(0, back)

    return of_class


def _summed(values: Tensor, place: Tensor, count: int) -> Tensor:
    """(count, ...) sums of the values (n, ...) with each place."""
    return values.new_zeros(count, *values.shape[1:]).index_add(0, place, values)
