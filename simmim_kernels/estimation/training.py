"""Critics, and how they are trained on some rows, stopped by others and chosen among."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import bounds
from ..critics import GaussianCritic, MLPCritic, SeparableCritic
from .held_out import calibrated_scores, influences
from .rows import FoldRows

CRITICS = ("separable", "mlp")
DEFAULT_BATCH = {"separable": 512, "mlp": 128}

_HIDDEN = {"separable": 256, "mlp": 64}
_FEATURES = 32
_CHECK_EVERY, _PATIENCE, _LEAST_GAIN = 20, 10, 1e-3
_DECAY_OF_AVERAGE, _WEIGHT_DECAY = 0.98, 1e-2
_LINEAR_RATE, _RATE = 5e-3, 1e-3


class _Tower(nn.Module):
    """W x, plus a ReLU network of x where `full`; the network starts as zero, and W too where `zero`."""

    def __init__(self, width: int, features: int, zero: bool):
        super().__init__()
        hidden = _HIDDEN["separable"]
        self.linear = nn.Linear(width, features, bias=False)
        self.network = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, features)
        )
        _zero(self.network[-1])
        if zero:
            _zero(self.linear)
        self.full = True

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.network(x) if self.full else self.linear(x)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def _build(critic: str, width_x: int, width_y: int) -> nn.Module:
    """A critic that scores no y above another, so that untrained and calibrated it reads 0 by every bound."""
    if critic == "mlp":
        mlp = MLPCritic(width_x, width_y, hidden=_HIDDEN["mlp"])
        _zero(mlp.output)
        return mlp
    features = max(_FEATURES, min(width_x, width_y))
    return SeparableCritic(
        _Tower(width_x, features, zero=False), _Tower(width_y, features, zero=True), GaussianCritic()
    )


def _stages(critic: nn.Module) -> Iterator[tuple[str, list[Tensor], float]]:
    """Name, parameters and learning rate of each stage, the critic being set up for it meanwhile."""
    towers = [module for module in critic.modules() if isinstance(module, _Tower)]
    if towers:
        for tower in towers:
            tower.full = False
        yield "linear", [tower.linear.weight for tower in towers], _LINEAR_RATE
        for tower in towers:
            tower.full = True
    yield "full", list(critic.parameters()), _RATE


@dataclass(frozen=True)
class Best:
    value: float
    stage: str
    step: int
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    critic: nn.Module
    best: Best
    steps: int
    stopped_early: bool


def train(
    data: FoldRows,
    kind: str,
    batch_size: int,
    max_steps: int,
    seed: int,
    report: Callable[[str, int, float], None],
) -> Trained:
    """A critic from the training rows, the best of all checks on the validation rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = _build(kind, data.x_train.shape[1], data.y_train.shape[1]).to(data.x_train.device)
    batches = _batches(len(data.x_train), batch_size, torch.Generator().manual_seed(seed), data.x_train.device)
    best = untrained = Best(0.0, "untrained", 0, copy.deepcopy(critic.state_dict()))
    steps, stopped_early = 0, True
    for stage, parameters, rate in _stages(critic):
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=_WEIGHT_DECAY)
        # Checks look at an average of the last weights, which is better than any of them and steadier to choose by.
        average = AveragedModel(critic, multi_avg_fn=get_ema_multi_avg_fn(_DECAY_OF_AVERAGE))
        bar, since = best.value, 0
        for step in range(1, max_steps + 1):
            rows = next(batches)
            loss = -bounds.infonce(critic(data.x_train[rows], data.y_train[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(critic)
            steps += 1
            if step % _CHECK_EVERY and step != max_steps:
                continue
            value = _infonce(average.module, data.x_validation, data.y_validation)
            report(stage, step, value)
            if value > best.value:
                best = Best(value, stage, step, copy.deepcopy(average.module.state_dict()))
            bar, since = (value, 0) if value > bar + _LEAST_GAIN else (bar, since + 1)
            if since == _PATIENCE:
                break
        else:
            stopped_early = False
        critic.load_state_dict(best.state)
    if best.value < _standard_error(critic, data.x_validation, data.y_validation):
        best = untrained
        critic.load_state_dict(best.state)
    return Trained(critic, best, steps, stopped_early)


def _standard_error(critic: nn.Module, x: Tensor, y: Tensor) -> float:
    """Of InfoNCE on these pairs, without which the best of many checks on noise would pass for information."""
    _, influence = influences(calibrated_scores(critic, x, y, y))["infonce"]
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
