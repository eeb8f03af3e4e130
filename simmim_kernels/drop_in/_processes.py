"""What the drop-ins say of several processes."""

import torch.distributed as dist


def only_one(option: str, count: int | None = None) -> None:
    """Raises NotImplementedError naming the option where there are several processes, `count` of them if given."""
    if count is None:
        count = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if count > 1:
        raise NotImplementedError(f"{option} works in one process alone with this drop-in, got {count} processes")
