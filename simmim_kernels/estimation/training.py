"""How critics are trained on some rows, stopped by others and chosen among."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import bounds
from .critics import Tower, concatenated, features_of, separable
from .held_out import calibrated_scores, influences
from .linear_start import LinearStart, linear_start, refitted
from .mixing import Mixed, fitted
from .pairs import paired_columns
from .rows import FoldRows

_CHECK_EVERY, _PATIENCE, _LEAST_GAIN = 20, 8, 1e-3
_LEAST_FOR_THREADS = 384  # pairs a step
_DECAY_OF_AVERAGE, _WEIGHT_DECAY = 0.98, 1e-2
_LINEAR_RATE, _RATE = 5e-3, 1e-3
# Of InfoNCE on the validation rows: where training adds no more to the linear start, no other start is tried, and the
# linear one is fitted anew with the validation rows.
_LITTLE = 2e-3
_LITTLE_WEIGHT = 0.05  # of the linear start beside tables of pairs: less is no beginning

Report = Callable[[str, int, float], None]


@dataclass(frozen=True)
class Best:
    """A critic and what InfoNCE reads of it on the validation rows."""

    value: float
    stage: str
    step: int
    critic: nn.Module


@dataclass(frozen=True)
class Trained:
    critic: nn.Module
    best: Best
    steps: int
    stopped_early: bool
    cca: float
    """InfoNCE of the CCA start on the validation rows; 0 where there is none."""
    train_infonce: float
    """InfoNCE of as many training rows as test rows, or of all where they are fewer."""


def train(data: FoldRows, kind: str, batch_size: int, max_steps: int, seed: int, report: Report) -> Trained:
    """A critic from the training rows, the best of all checks on the validation rows."""
    with _threads_for(kind, min(batch_size, len(data.x_train))):
        return _train(data, kind, batch_size, max_steps, seed, report)


@contextmanager
def _threads_for(kind: str, batch_size: int) -> Iterator[None]:
    """One thread for steps so small that others would gain little, and on a busy machine cost much by waiting."""
    before = torch.get_num_threads()
    if kind == "separable" and batch_size < _LEAST_FOR_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(data: FoldRows, kind: str, batch_size: int, max_steps: int, seed: int, report: Report) -> Trained:
    run = _Run(data, batch_size, max_steps, report, torch.Generator().manual_seed(seed))
    device = data.x_train.device
    start: LinearStart | None = None
    if kind == "mlp":
        untrained = Best(0.0, "untrained", 0, _seeded(seed, partial(concatenated, data)).to(device))
        found = [run.stages(untrained)]
    else:
        untrained = Best(0.0, "untrained", 0, _seeded(seed, partial(separable, data, None)).to(device))
        start = linear_start(data, features_of(data)) if max_steps else None
        found = run.from_what_is_fitted(start, seed) if max_steps else []
        if not found or found[-1].value > max(best.value for best in found[:-1]) + _LITTLE:
            found.append(run.stages(untrained))
        if len(found) > 1:
            found.append(run.mixture([best for best in found if best.value > 0]))
    best = max([untrained, *found], key=lambda best: best.value)
    if best.value < _standard_error(best.critic, data):
        best = untrained
    elif start is not None and best.value < start.value + _LITTLE:
        again = refitted(start, data, features_of(data))
        best = Best(start.value, "cca", 0, _seeded(seed, partial(separable, data, again)).to(device))
    seen = slice(len(data.x_test))
    train_infonce = _infonce(best.critic, data.x_train[seen], data.y_train[seen])
    return Trained(
        best.critic, best, run.steps, run.stopped_early, 0.0 if start is None else start.value, train_infonce
    )


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


class _Run:
    """Training on one fold's rows, with the batches and the count of all steps."""

    def __init__(self, data: FoldRows, batch_size: int, max_steps: int, report: Report, generator: torch.Generator):
        self.data, self.max_steps, self.report = data, max_steps, report
        self.batches = _batches(len(data.x_train), batch_size, generator, data.x_train.device)
        self.steps, self.stopped_early = 0, True

    def from_what_is_fitted(self, start: LinearStart | None, seed: int) -> list[Best]:
        """The linear start, the tables of pairs of columns, both, and what training made of it; as far as they go."""
        data, device = self.data, self.data.x_train.device
        first = _seeded(seed, partial(separable, data, start)).to(device)
        pairs = paired_columns(data, self.max_steps, seed)
        found = []
        if start is not None:
            found.append(Best(start.value, "cca", 0, first))
            self.report("cca", 0, start.value)
        if pairs is not None:
            value = _infonce(pairs, data.x_validation, data.y_validation)
            self.report("pairs", 0, value)
            found.append(Best(value, "pairs", 0, pairs))
        if not found:
            return []
        if pairs is None:
            return [*found, self.stages(found[0])]
        mixed, _ = fitted([best.critic for best in found], data.x_validation, data.y_validation)
        # Trained on are the embeddings, from their weighted beginning, while the tables stay.
        *of_start, of_pairs = mixed.weights.tolist()
        if start is not None and of_start[0] > _LITTLE_WEIGHT:
            scale = math.sqrt(of_start[0])
            scaled = replace(start, weight_x=scale * start.weight_x, weight_y=scale * start.weight_y)
            first = _seeded(seed, partial(separable, data, scaled)).to(device)
        else:
            first = _seeded(seed, partial(separable, data, None)).to(device)
        beside = Mixed([first, pairs], torch.tensor([1.0, of_pairs], device=device))
        begun = Best(_infonce(beside, data.x_validation, data.y_validation), "mixed", 0, beside)
        return [*found, begun, self.stages(begun)]

    def mixture(self, found: list[Best]) -> Best:
        critic, value = fitted([best.critic for best in found], self.data.x_validation, self.data.y_validation)
        self.report("mixed", self.steps, value)
        return Best(value, "mixed", self.steps, critic)

    def stages(self, best: Best) -> Best:
        """The best check of all stages, or what they began from; each stage begins from the best before it."""
        critic = copy.deepcopy(best.critic)
        for stage, parameters, rate in _stages(critic):
            best = self._stage(critic, stage, parameters, rate, best)
            critic.load_state_dict(best.critic.state_dict())
        return best

    def _stage(self, critic: nn.Module, stage: str, parameters: list[Tensor], rate: float, best: Best) -> Best:
        data = self.data
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=_WEIGHT_DECAY, fused=True)
        # Checks look at an average of the last weights, which is better than any of them and steadier to choose by.
        average = AveragedModel(critic, multi_avg_fn=get_ema_multi_avg_fn(_DECAY_OF_AVERAGE))
        bar, since = best.value, 0
        for step in range(1, self.max_steps + 1):
            rows = next(self.batches)
            loss = -bounds.infonce(critic(data.x_train[rows], data.y_train[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(critic)
            self.steps += 1
            if step % _CHECK_EVERY and step != self.max_steps:
                continue
            value = _infonce(average.module, data.x_validation, data.y_validation)
            self.report(stage, step, value)
            if value > best.value:
                best = Best(value, stage, step, copy.deepcopy(average.module))
            bar, since = (value, 0) if value > bar + _LEAST_GAIN else (bar, since + 1)
            if since == _PATIENCE:
                return best
        self.stopped_early = False
        return best


def _stages(critic: nn.Module) -> Iterator[tuple[str, list[Tensor], float]]:
    """Name, parameters and learning rate of each stage, the critic being set up for it meanwhile."""
    towers = [module for module in critic.modules() if isinstance(module, Tower)]
    if towers:
        for tower in towers:
            tower.full = False
        yield "linear", [tower.linear.weight for tower in towers], _LINEAR_RATE
        for tower in towers:
            tower.full = True
    yield "full", list(critic.parameters()), _RATE


def _standard_error(critic: nn.Module, data: FoldRows) -> float:
    """Of InfoNCE on the validation rows, without which the best of many checks on noise would pass for information."""
    scores = calibrated_scores(critic, data.x_validation, data.y_validation, data.y_validation)
    _, influence = influences(scores)["infonce"]
    return influence.std().item() / math.sqrt(len(influence))


@torch.no_grad()
def _infonce(critic: nn.Module, x: Tensor, y: Tensor) -> float:
    return bounds.infonce(critic(x, y)).item()


def _batches(rows: int, size: int, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """Row numbers of full batches, epoch after epoch without end, each epoch in an order of its own."""
    size = min(size, rows)
    while True:
        order = torch.randperm(rows, generator=generator).to(device)
        yield from order[: rows - rows % size].split(size)
