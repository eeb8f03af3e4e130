"""torch-mist and benchmark-mi beside ours, on the same samples; neither is a dependency.

For each task one pool of pairs, from which every estimator trains on batches of 64, from scratch, and one held-out
batch, which it reads once. Both packages want numpy < 2 and so an environment of their own:

python3 -m venv .venv-peers
.venv-peers/bin/pip install torch "numpy<2" torch-mist benchmark-mi "jax==0.4.33" "jaxlib==0.4.33" py-cpuinfo
.venv-peers/bin/python -m benchmarks.known_mi peers
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn

from .tasks import Task, gaussian
from .trained import BATCH, FEATURES, HIDDEN, LEARNING_RATE, estimator

INFORMATION = (2, 6)
POOL, HELD_OUT = 20_000, 1024
STEPS = 500
PACKAGES = {"torch-mist": "torch_mist.estimators", "benchmark-mi": "bmi.estimators"}

# By package and critic: what it calls the bounds that more than one of the three has.
ESTIMATORS: dict[str, dict[str, dict[str, str]]] = {
    "simmim_kernels": {
        "separable": {name: name for name in ("infonce", "mine", "nwj", "js", "smile")},
        "mlp": {name: name for name in ("infonce", "dv", "nwj")},
    },
    "torch-mist": {"separable": {name: name for name in ("infonce", "mine", "nwj", "js", "smile")}},
    "benchmark-mi": {
        "mlp": {"infonce": "InfoNCEEstimator", "dv": "DonskerVaradhanEstimator", "nwj": "NWJEstimator"},
    },
}


@dataclass(frozen=True)
class Samples:
    """Pairs to train on, (POOL, d) each, and pairs to read, (HELD_OUT, d)."""

    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor


def samples(task: Task, seed: int) -> Samples:
    x, y = task.sample(POOL + HELD_OUT, torch.Generator().manual_seed(seed))
    return Samples(x[:POOL], y[:POOL], x[POOL:], y[POOL:])


def plan() -> Iterator[dict]:
    for information in INFORMATION:
        for package, critics in ESTIMATORS.items():
            for critic, estimators in critics.items():
                for bound in estimators:
                    yield {
                        "information": information,
                        "critic": critic,
                        "bound": bound,
                        "package": package,
                        "steps": STEPS,
                        "seed": 0,
                    }


def measure(information: float, critic: str, bound: str, package: str, steps: int, seed: int) -> dict:
    """One estimate, in nats. Raises ModuleNotFoundError where the package is not installed."""
    data = samples(gaussian(information), seed)
    run = {"simmim_kernels": ours, "torch-mist": torch_mist, "benchmark-mi": benchmark_mi}[package]
    start = time.perf_counter()
    estimate = run(data, critic, ESTIMATORS[package][critic][bound], steps, seed)
    return {"estimate": estimate, "seconds": time.perf_counter() - start}


def module(package: str) -> ModuleType:
    try:
        return import_module(PACKAGES[package])
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{package} is not installed here; {__name__}'s docstring says how", name=error.name
        ) from error


def ours(data: Samples, critic: str, bound: str, steps: int, seed: int) -> float:
    torch.manual_seed(seed)
    model = estimator(critic, bound, data.x.shape[1], data.y.shape[1])
    train(model, lambda x, y: -model(x, y), data, steps, seed)
    with torch.no_grad():
        return model.eval()(data.held_out_x, data.held_out_y).item()


def torch_mist(data: Samples, critic: str, bound: str, steps: int, seed: int) -> float:
    """With the same networks, and all other rows of a batch as negatives (for infonce, all rows)."""
    estimators = module("torch-mist")
    torch.manual_seed(seed)
    model = estimators.instantiate_estimator(
        bound,
        data.x.shape[1],
        data.y.shape[1],
        hidden_dims=[HIDDEN[critic]] * 2,
        critic_type=critic,
        k_dim=FEATURES,
        neg_samples=0 if bound == "infonce" else -1,
    )
    train(model, model.loss, data, steps, seed)
    with torch.no_grad():
        return model.eval().mutual_information(data.held_out_x, data.held_out_y).item()


def train(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], data: Samples, steps: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        batch = torch.randint(POOL, (BATCH,), generator=g)
        optimizer.zero_grad()
        loss(data.x[batch], data.y[batch]).backward()
        optimizer.step()


def benchmark_mi(data: Samples, critic: str, bound: str, steps: int, seed: int) -> float:
    """Its own training, which standardises, holds out as many pairs of its own choice, and keeps its best reading."""
    model = getattr(module("benchmark-mi"), bound)(
        batch_size=BATCH,
        max_n_steps=steps,
        train_test_split=POOL / (POOL + HELD_OUT),
        learning_rate=LEARNING_RATE,
        hidden_layers=(HIDDEN[critic],) * 2,
        verbose=False,
        seed=seed,
    )
    x, y = (torch.cat(parts).numpy() for parts in ((data.x, data.held_out_x), (data.y, data.held_out_y)))
    return float(model.estimate(x, y))
