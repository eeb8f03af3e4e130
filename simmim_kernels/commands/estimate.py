"""The command `simmim-kernels estimate`: reads paired samples from files, estimates, and reports."""

import io
import json
import math
import platform
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import TaskProgressColumn, TimeElapsedColumn
from rich.table import Table

from .. import estimation
from ..backends import use_backend
from ..estimation import BOUNDS, ConditionalEstimate, MutualInformationEstimate, estimate, estimate_conditional
from ..estimation.report import rows_of, unit_of
from ..version import __version__
from .files import check_file, write
from .output import moves, open_console, say, show
from .progress import progress, text
from .tables import Samples, read_samples


@dataclass(frozen=True)
class Settings:
    """What the command line sets."""

    x: str
    y: str | None
    x_columns: str | None
    y_columns: str | None
    given: str | None
    groups: str | None
    blocks: int | None
    permutations: int
    delimiter: str | None
    drop_missing: bool
    folds: int
    seed: int
    critic: str
    transform: str
    batch_size: int | None
    max_steps: int
    device: torch.device
    backend: str | None
    bits: bool
    json: str | None
    pointwise: str | None


def run(settings: Settings) -> None:
    """Prints the report, or the JSON where that goes to standard output. Raises DataError for unfit files."""
    start = time.perf_counter()
    to_stdout = settings.json == "-"
    for file in (None if to_stdout else settings.json, settings.pointwise):
        if file is not None:
            check_file(Path(file))
    samples = read_samples(
        settings.x,
        settings.y,
        x_columns=settings.x_columns,
        y_columns=settings.y_columns,
        given=settings.given,
        groups=settings.groups,
        delimiter=settings.delimiter,
        drop_missing=settings.drop_missing,
    )
    console = open_console(stderr=to_stdout)
    console.quiet = to_stdout and not moves(console)
    with nullcontext() if settings.backend is None else use_backend(settings.backend):
        result = _estimate_with_progress(settings, samples, console)
    report = as_json(result, settings, samples.notes, time.perf_counter() - start)
    if settings.pointwise is not None:
        content = io.BytesIO()
        np.save(content, _pointwise(result))
        write(Path(settings.pointwise), content.getvalue())
    # What is no number in JSON, an overflowed bound or one without a value, is null.
    written = json.dumps(_finite(report), indent=2, allow_nan=False) + "\n"
    if to_stdout:
        sys.stdout.write(written)
        return
    if isinstance(result, ConditionalEstimate):
        say(console, result.text(settings.bits).partition("\nWarning")[0])
    else:
        show(console, table(result, settings.bits))
        say(console, result.of_the_shortfall(settings.bits))
        if result.p_value is not None:
            say(console, f"p-value of independence, by {settings.permutations} permutations: {result.p_value:.3g}")
    for warning in report["warnings"]:
        say(console, f"Warning: {warning}", style="yellow")
    if settings.json is not None:
        write(Path(settings.json), written.encode())


def _estimate_with_progress(
    settings: Settings, samples: Samples, console: Console
) -> MutualInformationEstimate | ConditionalEstimate:
    folds = _FoldLines(console)
    others = (TaskProgressColumn(), text("fields[reading]"), TimeElapsedColumn())
    with progress(console, [text("description")], *others) as shown:
        task = shown.add_task("fold 1", total=None, reading="")

        def show_progress(at: estimation.Progress) -> None:
            folds.look(at)
            # Early stopping ends most stages long before max_steps, so that the bar advances by folds.
            shown.update(
                task,
                description=f"fold {at.fold + 1} of {at.folds}, {at.stage}, step {at.step}",
                total=at.folds,
                completed=at.fold,
                reading=f"InfoNCE {at.validation_infonce:.2f} nats",
            )

        options: dict[str, Any] = {
            "folds": settings.folds,
            "seed": settings.seed,
            "critic": settings.critic,
            "transform": settings.transform,
            "batch_size": settings.batch_size,
            "max_steps": settings.max_steps,
            "device": settings.device,
            "groups": samples.groups,
            "blocks": settings.blocks,
            "permutations": settings.permutations,
            "progress": show_progress,
        }
        result: MutualInformationEstimate | ConditionalEstimate
        if samples.given is None:
            result = estimate(samples.x, samples.y, **options)
        else:
            result = estimate_conditional(samples.x, samples.y, samples.given, **options)
        folds.end()
    return result


class _FoldLines:
    """Says a line of each fold when it is over."""

    def __init__(self, console: Console):
        self.console, self.start = console, time.perf_counter()
        self.checks: list[estimation.Progress] = []

    def look(self, at: estimation.Progress) -> None:
        if self.checks and self.checks[0].fold != at.fold:
            self.end()
        self.checks.append(at)

    def end(self) -> None:
        if not self.checks:
            return  # without steps there is nothing to look at
        best, seconds = max(at.validation_infonce for at in self.checks), time.perf_counter() - self.start
        name = f"fold {self.checks[0].fold + 1} of {self.checks[0].folds}"
        say(self.console, f"{name}: InfoNCE {best:.2f} nats on validation rows, {seconds:.0f} s")
        self.start, self.checks = time.perf_counter(), []


def table(result: MutualInformationEstimate, bits: bool) -> Table:
    unit, scale = unit_of(bits)
    dx, dy = result.columns
    shown = Table(
        title=f"I(X; Y) in {unit}: {result.rows:,} pairs, {dx} and {dy} columns",
        caption=f"held-out pairs, {len(result.folds)} folds; ceiling of InfoNCE {scale * result.ceiling:.2f} {unit}; "
        "the interval covers sampling, not what the critics did not learn",
    )
    for name in ("bound", "estimate", "95% interval", "what it is"):
        shown.add_column(name, justify="left" if name in ("bound", "what it is") else "right")
    for row in rows_of(result, bits):
        shown.add_row(*row)
    return shown


def as_json(
    result: MutualInformationEstimate | ConditionalEstimate, settings: Settings, notes: tuple[str, ...], seconds: float
) -> dict[str, Any]:
    """All of the estimate in plain types; every amount of information in the unit that "unit" names."""
    unit, scale = unit_of(settings.bits)
    if isinstance(result, ConditionalEstimate):
        parts = {"joint": result.joint, "given": result.given}
        found = {
            "conditional": {
                "value": scale * result.value,
                "interval": [scale * result.low, scale * result.high],
                "standard_error": scale * result.standard_error,
                "kind": "a difference of two lower bounds, neither a lower nor an upper bound",
            },
            **{name: _parts(part, scale) for name, part in parts.items()},
            "warnings": [*notes, *(f"{name}: {said}" for name, part in parts.items() for said in part.warnings)],
        }
        own = result.joint.settings
    else:
        found = _parts(result, scale)
        found["warnings"] = [*notes, *result.warnings]
        own = result.settings
    files = {
        "x": settings.x,
        "y": settings.y,
        "x_columns": settings.x_columns,
        "y_columns": settings.y_columns,
        "given": settings.given,
        "backend": settings.backend,
    }
    return {
        "unit": unit,
        **found,
        "settings": {**files, **own},
        "versions": {
            "simmim_kernels": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "seconds": seconds,
    }


def _parts(result: MutualInformationEstimate, scale: float) -> dict[str, Any]:
    information = ("validation_infonce", "cca_infonce", "train_infonce")
    return {
        "bounds": {
            name: {
                "value": scale * found.value,
                "interval": [scale * found.low, scale * found.high],
                "standard_error": scale * found.standard_error,
                "per_fold": [scale * value for value in found.per_fold],
                "kind": BOUNDS[name],
            }
            for name, found in result.bounds.items()
        },
        "quote": result.quote,
        "baselines": {
            name: {**asdict(found), "value": None if found.value is None else scale * found.value}
            for name, found in result.baselines.items()
        },
        "ceiling": scale * result.ceiling,
        "saturated": result.saturated,
        "shortfall": scale * result.shortfall,
        "p_value": result.p_value,
        "warnings": list(result.warnings),
        "rows": result.rows,
        "columns": list(result.columns),
        "folds": [
            {name: scale * value if name in information else value for name, value in asdict(fold).items()}
            for fold in result.folds
        ],
    }


def _pointwise(result: MutualInformationEstimate | ConditionalEstimate) -> np.ndarray:
    if isinstance(result, ConditionalEstimate):
        return result.joint.pointwise - result.given.pointwise
    return result.pointwise


def _finite(value: Any) -> Any:
    """With None for every number that is NaN or infinite."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
