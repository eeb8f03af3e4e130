"""What the bounds read with critics that they trained, on fresh samples at every step.

The protocol of Poole et al. 2019 and of Song and Ermon 2020, shortened: batches of 64, Adam at 5e-4, ReLU networks of
two hidden layers, a separable critic of 32 features. One critic climbs a family's tasks in the order of their
information; each task is read over batches drawn after its steps.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from simmim_kernels import MLPCritic, MutualInformation, SeparableCritic

from .tasks import FAMILIES, Task

BATCH, LEARNING_RATE, EVALUATED_BATCHES = 64, 5e-4, 256
FEATURES = 32
# The concatenated critic runs on every pair: a narrower network and fewer steps keep it to its share of the time.
HIDDEN = {"separable": 256, "mlp": 128}
STEPS = {"separable": 1500, "mlp": 300}
# Families of one task have no lower ones to learn from first.
STEPS_ALONE = 2500


def perceptron(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    layers = (nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    return nn.Sequential(*layers)


class JointPerceptron(nn.Module):
    """u(x, y) of FLO: one number for each row-wise pair."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.network = perceptron(inputs, 1, hidden)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(torch.cat([x, y], dim=1))


# The parameters of each bound, from the widths of x, y and the networks. Baselines and u are trained along; alpha is
# the one that Poole et al. show.
PARAMETERS: dict[str, Callable[[int, int, int], dict]] = {
    "infonce": lambda x, y, hidden: {},
    "smile": lambda x, y, hidden: {"tau": 5.0},
    "js": lambda x, y, hidden: {},
    "nwj": lambda x, y, hidden: {},
    "dv": lambda x, y, hidden: {},
    "mine": lambda x, y, hidden: {},
    "tuba": lambda x, y, hidden: {"log_baseline": perceptron(x, 1, hidden)},
    "interpolated": lambda x, y, hidden: {"alpha": 0.01, "log_baseline": perceptron(x, 1, hidden)},
    "flo": lambda x, y, hidden: {"u": JointPerceptron(x + y, hidden)},
}
CLIMBING = ("gaussian", "cubic")
FEW = ("infonce", "smile", "js", "nwj")


def plan() -> Iterator[dict]:
    """Every bound with every critic on the families that climb, a few with the separable critic on the others."""
    for bound in PARAMETERS:
        for family in FAMILIES:
            for critic in STEPS:
                if family in CLIMBING or (critic == "separable" and bound in FEW):
                    steps = STEPS[critic] if family in CLIMBING else STEPS_ALONE
                    yield {"family": family, "critic": critic, "bound": bound, "steps": steps, "seed": 0}


def measure(family: str, critic: str, bound: str, steps: int, seed: int) -> dict:
    start = time.perf_counter()
    readings = list(climb(FAMILIES[family], critic, bound, steps, seed))
    return {"batch": BATCH, "hidden": HIDDEN[critic], "seconds": time.perf_counter() - start, "readings": readings}


def climb(tasks: list[Task], critic: str, bound: str, steps: int, seed: int) -> Iterator[dict]:
    """One estimator trained through the tasks, `steps` steps each, and read after each."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    dim_x, dim_y = (rows.shape[1] for rows in tasks[0].sample(1, g))
    model = estimator(critic, bound, dim_x, dim_y)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for task in tasks:
        for _ in range(steps):
            loss = -model(*task.sample(BATCH, g))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield read(model, task, g)


def estimator(critic: str, bound: str, dim_x: int, dim_y: int) -> MutualInformation:
    hidden = HIDDEN[critic]
    scorer: nn.Module
    if critic == "mlp":
        scorer = MLPCritic(dim_x, dim_y, hidden=hidden, layers=2)
    else:
        scorer = SeparableCritic(*(perceptron(inputs, FEATURES, hidden) for inputs in (dim_x, dim_y)))
    return MutualInformation(scorer, bound, **PARAMETERS[bound](dim_x, dim_y, hidden))


@torch.no_grad()
def read(model: MutualInformation, task: Task, g: torch.Generator) -> dict:
    """The mean of the bound over fresh batches, its bias, and the variance of one batch's reading, in nats.

    None in their place where the reading of any batch is not finite.
    """
    model.eval()
    values = [model(*task.sample(BATCH, g)).item() for _ in range(EVALUATED_BATCHES)]
    model.train()
    truth = {"information": task.information}
    if not all(map(math.isfinite, values)):
        return {**truth, "estimate": None, "bias": None, "variance": None}
    mean = statistics.fmean(values)
    return {**truth, "estimate": mean, "bias": mean - task.information, "variance": statistics.variance(values)}
