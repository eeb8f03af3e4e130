"""What the drop-ins do with several processes: one batch of all their rows, with the gradients of one process.

The originals' flags choose between gradients some of which are 1/W of those, for W processes (open_clip#616, #894,
lightly#1920). Here they choose whether processes share a batch at all; the value is that of the whole batch on each.
"""

import torch.distributed as dist


def world(option: str, count: int | None = None) -> dist.ProcessGroup | None:
    """The group of all processes, `count` of them if given; None where there is but one.

    Raises ValueError naming the option where torch.distributed has another number of them.
    """
    found = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if count is not None and count > 1 and count != found:
        raise ValueError(f"{option} must be the number of torch.distributed's processes, got {count} and {found}")
    return dist.group.WORLD if found > 1 and count != 1 else None


def only_one(option: str, count: int | None = None) -> None:
    """Raises NotImplementedError naming the option where there are several processes, `count` of them if given."""
    if (count or 1) > 1 or world(option) is not None:
        raise NotImplementedError(f"{option} works in one process alone with this drop-in, got several")
