"""A source network for each seed, and three ways from it, or without it, to a target task with a few labels."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from .... import MultiTaskSimMIM, transfer
from .tasks import FEATURES, Task, Transfer

SOURCE, TARGET = "source", "target"
SCRATCH, COPY, SIMULTANEOUS = WAYS = ("from scratch", "copy and fine-tune", "simultaneous")
LABELS_PER_CLASS = (1, 3, 10, 30)
# One setting for every fit, with AdamW's defaults as PyTorch has them: nothing is tuned for a task or a way.
BATCH_SIZE, SOURCE_STEPS = 64, 300


@dataclass(frozen=True)
class Reading:
    """What the held-out part of a task says of a model."""

    accuracy: float
    nats: float


@dataclass(frozen=True)
class Fit:
    """One trained model. Without a way it is a source network, which has no target; from scratch has no source."""

    task: str
    way: str | None
    labels: int
    seed: int
    source: Reading | None
    target: Reading | None


def count_fits(transfers: Sequence[Transfer], seeds: int) -> int:
    return seeds * sum(1 + len(pair.targets) * len(LABELS_PER_CLASS) * len(WAYS) for pair in transfers)


def run_fits(transfers: Sequence[Transfer], seeds: int, steps: int) -> Iterator[Fit]:
    for pair, seed in product(transfers, range(seeds)):
        original = train_source(pair, seed)
        yield Fit(pair.source.name, None, len(pair.source.y), seed, read(original, SOURCE, pair.source), None)
        for target, per_class in product(pair.targets, LABELS_PER_CLASS):
            few = target.few(per_class, seed)
            for way in WAYS:
                model = train_target(pair, few, way, original, seed, steps)
                source = None if way == SCRATCH else read(model, SOURCE, pair.source)
                yield Fit(few.name, way, len(few.y), seed, source, read(model, TARGET, few))


def train_source(pair: Transfer, seed: int) -> MultiTaskSimMIM:
    torch.manual_seed(seed)
    model = MultiTaskSimMIM(pair.backbone(), {SOURCE: nn.Linear(FEATURES, pair.source.classes)})
    model.to(pair.source.x.device)
    fit(model, {SOURCE: pair.source}, SOURCE_STEPS, seed)
    return model


def train_target(
    pair: Transfer, few: Task, way: str, original: MultiTaskSimMIM, seed: int, steps: int
) -> MultiTaskSimMIM:
    """Either fine-tuning starts from the original's backbone and takes its head along.

    One task at a time, that head stays as it was, and tells what the source task is left with; simultaneously it is
    trained too. All ways see the same batches of the target, and start from the same new head.
    """
    torch.manual_seed(seed)
    backbone = pair.backbone()
    heads: dict[str, nn.Module] = {TARGET: nn.Linear(FEATURES, few.classes)}
    if way != SCRATCH:
        transfer(original.backbone, backbone, pair.layers)
        heads[SOURCE] = deepcopy(original.heads[SOURCE])
    model = MultiTaskSimMIM(backbone, heads).to(few.x.device)
    tasks = {SOURCE: pair.source, TARGET: few} if way == SIMULTANEOUS else {TARGET: few}
    fit(model, tasks, steps, seed)
    return model


def fit(model: MultiTaskSimMIM, tasks: Mapping[str, Task], steps: int, seed: int) -> None:
    """Maximises the sum of the tasks' information, over a random batch of each in every step."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    # One for each task, so that a second task leaves the first one's batches as they are.
    generators = {name: torch.Generator().manual_seed(seed) for name in tasks}
    for _ in range(steps):
        batch = {}
        for name, task in tasks.items():
            rows = torch.randperm(len(task.y), generator=generators[name])[:BATCH_SIZE].to(task.y.device)
            batch[name] = task.x[rows], task.y[rows]
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()


@torch.no_grad()
def read(model: MultiTaskSimMIM, name: str, task: Task) -> Reading:
    # The backbone's run over all that is held out costs as much as several steps: one is enough for both.
    features = model.backbone(task.held_out_x)
    accuracy = (model.heads[name](features).argmax(1) == task.held_out_y).float().mean()
    after_backbone = MultiTaskSimMIM(nn.Identity(), {name: model.heads[name]})
    return Reading(accuracy.item(), after_backbone({name: (features, task.held_out_y)}).information[name].item())
