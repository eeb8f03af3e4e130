"""Tasks that share the first layers of a network: a source, and targets with a few labels each."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..mnist import SIDE

FEATURES = 64  # of either network's dense layer


@dataclass(frozen=True)
class Task:
    """A classification task: inputs (N, ...), labels (N,) int64 from 0 to classes - 1, and those held out."""

    name: str
    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1

    def few(self, per_class: int, seed: int) -> "Task":
        """The task with only `per_class` labels of each class; those of a smaller number are among them.

        Raises ValueError where a class has fewer.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.y), generator=generator).to(self.y.device)
        chosen = torch.cat([order[self.y[order] == label][:per_class] for label in range(self.classes)])
        if len(chosen) < per_class * self.classes:
            raise ValueError(f"per_class must be at most what each class of {self.name} has, got {per_class}")
        return replace(self, x=self.x[chosen], y=self.y[chosen])

    def to(self, device: torch.device) -> "Task":
        tensors = {name: getattr(self, name).to(device) for name in ("x", "y", "held_out_x", "held_out_y")}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Transfer:
    """A source task, the target tasks that start from its network, and that network's layers before its last."""

    source: Task
    targets: tuple[Task, ...]
    backbone: Callable[[], nn.Sequential]
    layers: int  # of the backbone, all of which are copied

    def to(self, device: torch.device) -> "Transfer":
        return replace(self, source=self.source.to(device), targets=tuple(task.to(device) for task in self.targets))


def image_backbone() -> nn.Sequential:
    """The source text's network without its last layer: 32 convolutions of 3 x 3 and a dense layer of 64."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * (SIDE - 2) ** 2, FEATURES), nn.ReLU()
    )


def text_backbone() -> nn.Sequential:
    """A text head without its last layer: a dense layer of 64 on sentence embeddings."""
    return nn.Sequential(nn.Linear(384, FEATURES), nn.ReLU())
