"""The demo of transfer: from one source task to targets with a few labels each, one at a time or simultaneously."""

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ... import use_backend
from ..files import check_folder, write
from ..output import open_console, say, show
from ..progress import stage, track
from .few_labels import report, training
from .few_labels.data import load_transfers


@dataclass(frozen=True)
class Settings:
    """What the command line sets."""

    seeds: int
    steps: int
    device: torch.device
    backend: str | None
    output: Path


def run(settings: Settings) -> None:
    """Loads, trains, compares and reports; writes transfer.png and metrics.json."""
    check_folder(settings.output)
    start = time.perf_counter()
    console = open_console()
    with stage(console, "reading digits and brain, embedding news"):
        transfers = [transfer.to(settings.device) for transfer in load_transfers()]
    with nullcontext() if settings.backend is None else use_backend(settings.backend):
        fits = list(
            track(
                training.run_fits(transfers, settings.seeds, settings.steps),
                training.count_fits(transfers, settings.seeds),
                console,
                name="training",
                unit="fits",
                describe=describe,
            )
        )
    pairs = [(transfer.source, target) for transfer in transfers for target in transfer.targets]
    conclusions = {target.name: report.conclusions(fits, source, target) for source, target in pairs}
    image = report.plot(fits, pairs, settings.seeds)
    metrics = {
        "seeds": settings.seeds,
        "steps": settings.steps,
        "source_steps": training.SOURCE_STEPS,
        "batch_size": training.BATCH_SIZE,
        "conclusions": conclusions,
        "fits": [asdict(fit) for fit in fits],
        "seconds": time.perf_counter() - start,
    }
    write(settings.output / "transfer.png", image)
    write(settings.output / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    for source, target in pairs:
        show(console, report.target_table(fits, source, target, settings.seeds))
        for conclusion in conclusions[target.name]:
            say(console, f"- {conclusion}", indent="  ")
    say(console, f"{metrics['seconds']:.0f} s; wrote transfer.png and metrics.json to {settings.output}")


def describe(fit: training.Fit) -> str:
    return f"{fit.task}, {fit.way or 'source network'}, {fit.labels} labels, seed {fit.seed}"
