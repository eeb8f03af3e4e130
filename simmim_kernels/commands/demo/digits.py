"""The demo: a manifold of handwritten digits learned without labels, and the price of its loss."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ... import CosineCritic, SimMIM, clip_loss, use_backend
from ...bounds import SATURATED_WITHIN
from ...comparison import dense
from ...comparison.measure import extra_megabytes, forward_backward, interleaved_seconds
from ..files import check_folder, write
from ..launched import process_group
from ..output import open_console, say, show
from ..progress import stage, track
from .mnist import HELD_OUT, SIDE, Digits, load_digits

# Largest rotation (radians), log of the scale of either axis, shear, and translation (in half image widths).
ROTATION, LOG_SCALE, SHEAR, TRANSLATION = math.radians(25), 0.3, 0.4, 0.2
TEMPERATURE, LEARNING_RATE = 0.2, 2e-3
COMPARED_PAIRS, COMPARED_WIDTH, COMPARED_REPEATS = 8192, 512, 3


@dataclass(frozen=True)
class Settings:
    """What the command line sets."""

    steps: int
    batch_size: int
    device: torch.device
    backend: str | None
    seed: int
    output: Path
    distributed: bool = False


@dataclass(frozen=True)
class Probes:
    """Held-out accuracies of classifiers fitted on a representation."""

    linear: float
    knn: float


@dataclass(frozen=True)
class Cost:
    """What one forward and backward pass takes."""

    seconds: float
    extra_mb: float


def run(settings: Settings) -> None:
    """Trains, evaluates, compares and reports; writes manifold.png and metrics.json.

    Of several processes each trains on its rows of every batch, and the first alone does the rest.
    """
    check_folder(settings.output)
    start = time.perf_counter()
    torch.manual_seed(settings.seed)
    with nullcontext() if settings.backend is None else use_backend(settings.backend):
        if settings.distributed:
            with process_group(settings.device, "demo --distributed") as group:
                console = open_console(quiet=group.rank() != 0)
                digits, model, curve = learn(settings, console, group)
                if group.rank() != 0:
                    return
        else:
            console = open_console()
            digits, model, curve = learn(settings, console)
        with stage(console, "probing what was learned"):
            readouts = read_information(model, digits.held_out_images)
            probes = probe_representations(model, digits)
        show(console, manifold_table(readouts, probes))
        with stage(console, "timing CLIP's loss beside dense PyTorch's"):
            costs = compare_loss(settings.device)
        show(console, cost_table(costs, settings.device))
    with stage(console, "laying out and drawing the manifold"):
        points = embed(model, digits)
        image = plot(curve, math.log(settings.batch_size), points, digits.held_out_labels)
    metrics = {
        **headline(readouts, probes, costs),
        "readouts_nats": readouts,
        "steps": len(curve),
        "batch_size": settings.batch_size,
        "curve_nats": curve,
        "seed": settings.seed,
        "seconds": time.perf_counter() - start,
    }
    write(settings.output / "manifold.png", image)
    write(settings.output / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    say(console, f"{metrics['seconds']:.0f} s; wrote manifold.png and metrics.json to {settings.output}")


def learn(
    settings: Settings, console: Console, group: ProcessGroup | None = None
) -> tuple[Digits, SimMIM, list[float]]:
    """The digits, a model trained on them, and the bound of every step; with a group, by all its processes."""
    device = settings.device
    if group is not None and device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    with stage(console, "reading digits"):
        digits = load_digits(settings.seed, device)
    model = build_model(group).to(device)
    curve = train_with_progress(model, digits.images, settings, console, group)
    model.information.group = None  # what is made of the model now, one process makes
    return digits, model, curve


def build_model(group: ProcessGroup | None = None) -> SimMIM:
    encoder = nn.Sequential(nn.Linear(SIDE * SIDE, 500), nn.ReLU(), nn.Linear(500, 10))
    return SimMIM(encoder, critic=CosineCritic(TEMPERATURE), bound="infonce", symmetric=True, group=group)


def random_views(images: Tensor) -> Tensor:
    """Every image (N, 784) under an affine map of its own: rotated, scaled, sheared and translated."""
    n = len(images)

    def uniform(limit: float) -> Tensor:
        return torch.empty(n, device=images.device).uniform_(-limit, limit)

    angle, shear = uniform(ROTATION), uniform(SHEAR)
    width, height = uniform(LOG_SCALE).exp(), uniform(LOG_SCALE).exp()
    cos, sin = angle.cos(), angle.sin()
    maps = torch.stack(
        [
            width * cos,
            width * (shear * cos - sin),
            uniform(TRANSLATION),
            height * sin,
            height * (shear * sin + cos),
            uniform(TRANSLATION),
        ],
        dim=1,
    )
    grid = F.affine_grid(maps.view(n, 2, 3), [n, 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images.view(n, 1, SIDE, SIDE), grid, align_corners=False).flatten(1)


def train(
    model: SimMIM, images: Tensor, steps: int, batch_size: int, group: ProcessGroup | None = None
) -> Iterator[float]:
    """Yields the bound, in nats, of every step. Every process of a group makes the same batches, and takes its rows."""
    step: nn.Module = model if group is None else nn.parallel.DistributedDataParallel(model, process_group=group)
    ranks, rank = (1, 0) if group is None else (group.size(), group.rank())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, max(steps, 1), pct_start=0.1)
    for _ in range(steps):
        batch = images[torch.randperm(len(images), device=images.device)[:batch_size]]
        output = step(*(random_views(batch).tensor_split(ranks)[rank] for _ in range(2)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        schedule.step()
        yield output.mi.item()


def train_with_progress(
    model: SimMIM, images: Tensor, settings: Settings, console: Console, group: ProcessGroup | None = None
) -> list[float]:
    """The bound of every step, shown on the way."""
    ceiling = math.log(settings.batch_size)
    at_least = ">=" if console.options.ascii_only else "≥"

    def describe(mi: float) -> str:
        return f"I {at_least} {mi:.2f} of {ceiling:.2f} nats"

    steps = train(model, images, settings.steps, settings.batch_size, group)
    return list(track(steps, settings.steps, console, "training", "steps", describe, describe))


@torch.no_grad()
def encode(model: SimMIM, images: Tensor) -> np.ndarray:
    """Points on the unit sphere, where the cosine critic compares them."""
    return F.normalize(model.encode(images), dim=1).cpu().numpy()


@torch.no_grad()
def read_information(model: SimMIM, images: Tensor) -> dict[str, float]:
    view1, view2 = (model.encode(random_views(images)) for _ in range(2))
    return {name: value.item() for name, value in model.information.readouts(view1, view2).items()}


def probe_representations(model: SimMIM, digits: Digits) -> dict[str, Probes]:
    pixels, held_out_pixels = digits.images.cpu().numpy(), digits.held_out_images.cpu().numpy()
    pca = PCA(10).fit(pixels)
    representations = {
        "learned": (encode(model, digits.images), encode(model, digits.held_out_images)),
        "PCA": (pca.transform(pixels), pca.transform(held_out_pixels)),
        "pixels": (pixels, held_out_pixels),
    }
    return {name: probe(*points, digits) for name, points in representations.items()}


def probe(points: np.ndarray, held_out_points: np.ndarray, digits: Digits) -> Probes:
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(points, digits.labels)
    knn = KNeighborsClassifier(5, metric="cosine").fit(points, digits.labels)
    return Probes(*(classifier.score(held_out_points, digits.held_out_labels) for classifier in (linear, knn)))


def compare_loss(device: torch.device) -> dict[str, Cost]:
    """What this package's clip_loss and the dense one take, forward and backward, on the same features."""
    image, text = (F.normalize(torch.randn(COMPARED_PAIRS, COMPARED_WIDTH, device=device), dim=1) for _ in range(2))
    inputs = [tensor.requires_grad_() for tensor in (image, text, torch.tensor(1 / 0.07, device=device))]
    losses: dict[str, Callable[..., Tensor]] = {"simmim_kernels": clip_loss, "dense PyTorch": dense.clip_loss}
    passes = {name: partial(forward_backward, loss, inputs) for name, loss in losses.items()}
    seconds = interleaved_seconds(passes, COMPARED_REPEATS)
    return {name: Cost(statistics.median(seconds[name]), extra_megabytes(losses[name], inputs)) for name in losses}


def manifold_table(readouts: dict[str, float], probes: dict[str, Probes]) -> Table:
    ceiling = readouts["ceiling"]
    table = Table(title="Held-out digits", caption=f"information between two views of {HELD_OUT} digits, in nats")
    for name in ("", "learned, 10-d", "PCA, 10-d", "pixels, 784-d"):
        table.add_column(name, justify="right" if name else "left")
    compared = [probes[name] for name in ("learned", "PCA", "pixels")]
    table.add_row("linear probe", *(f"{p.linear:.1%}" for p in compared))
    table.add_row("5 nearest neighbours", *(f"{p.knn:.1%}" for p in compared), end_section=True)
    for name, label in (("infonce", "InfoNCE"), ("nwj", "NWJ"), ("dv", "DV"), ("smile", "SMILE")):
        saturated = name == "infonce" and readouts[name] > ceiling - SATURATED_WITHIN
        table.add_row(label, f"{readouts[name]:.2f}" + (" (saturated)" if saturated else ""))
    table.add_row("ceiling of InfoNCE", f"{ceiling:.2f}")
    return table


def cost_table(costs: dict[str, Cost], device: torch.device) -> Table:
    table = Table(
        title=f"CLIP's loss, {COMPARED_PAIRS:,} pairs of {COMPARED_WIDTH} features, forward and backward",
        caption=f"float32 on {device}, median of {COMPARED_REPEATS}, in turn; memory beyond inputs and gradients",
    )
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_column("extra MB", justify="right")
    for name, cost in costs.items():
        table.add_row(name, f"{cost.seconds:.2f}", f"{cost.extra_mb:,.1f}")
    ours, dense = costs.values()
    table.add_row("ratio", f"{ours.seconds / dense.seconds:.2f}", f"{ours.extra_mb / dense.extra_mb:.3f}")
    return table


def headline(readouts: dict[str, float], probes: dict[str, Probes], costs: dict[str, Cost]) -> dict[str, float]:
    """The numbers of both tables under the names that metrics.json gives them."""
    learned, pca, raw = (probes[name] for name in ("learned", "PCA", "pixels"))
    ours, dense = costs["simmim_kernels"], costs["dense PyTorch"]
    return {
        "linear_probe": learned.linear,
        "knn": learned.knn,
        "pca_linear_probe": pca.linear,
        "pca_knn": pca.knn,
        "raw_linear_probe": raw.linear,
        "raw_knn": raw.knn,
        "mi_nats": readouts["infonce"],
        "ceiling_nats": readouts["ceiling"],
        "loss_seconds": ours.seconds,
        "dense_seconds": dense.seconds,
        "loss_time_ratio": ours.seconds / dense.seconds,
        "loss_extra_mb": ours.extra_mb,
        "dense_extra_mb": dense.extra_mb,
    }


def embed(model: SimMIM, digits: Digits) -> np.ndarray:
    """(N, 2) held-out points of the manifold, laid out by t-SNE."""
    return TSNE(random_state=0).fit_transform(encode(model, digits.held_out_images))


def plot(curve: list[float], ceiling: float, points: np.ndarray, labels: np.ndarray) -> bytes:
    """A PNG: the bound while training, and the held-out digits on the manifold."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    bound, manifold = figure.subplots(1, 2)
    bound.plot(range(1, len(curve) + 1), curve, label="InfoNCE between two views")
    bound.axhline(ceiling, color="black", linestyle="--", linewidth=1, label="ceiling, log N")
    bound.set(title="Information between two views of a digit", xlabel="step", ylabel="nats", ylim=(0, None))
    bound.legend(loc="center right", frameon=False)
    for digit in range(10):
        manifold.scatter(*points[labels == digit].T, s=12, color=f"C{digit}", label=str(digit))
    manifold.set(title="Held-out digits on the learned manifold (t-SNE)", xticks=[], yticks=[])
    manifold.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()
