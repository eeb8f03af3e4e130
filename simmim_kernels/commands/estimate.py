"""The command `simmim-kernels estimate`: reads paired samples from files, estimates, and reports."""

import json
import platform
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
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
from ..estimation import BOUNDS, DataError, MutualInformationEstimate, estimate
from ..version import __version__
from .files import check_file, write
from .output import moves, open_console, say, show
from .progress import progress, text

_NATS_PER_BIT = float(np.log(2))
_LABELS = {"infonce": "InfoNCE", "dv": "Donsker-Varadhan", "nwj": "NWJ", "js": "JS", "smile": "SMILE"}


@dataclass(frozen=True)
class Settings:
    """What the command line sets."""

    x: str
    y: str
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


def run(settings: Settings) -> None:
    """Prints the report, or the JSON where that goes to standard output. Raises DataError for unfit files."""
    start = time.perf_counter()
    to_stdout = settings.json == "-"
    if settings.json is not None and not to_stdout:
        check_file(Path(settings.json))
    x, y = (estimation.samples(read(file), file) for file in (settings.x, settings.y))
    console = open_console(stderr=to_stdout)
    console.quiet = to_stdout and not moves(console)
    with nullcontext() if settings.backend is None else use_backend(settings.backend):
        result = _estimate_with_progress(settings, x, y, console)
    report = as_json(result, settings, time.perf_counter() - start)
    written = json.dumps(report, indent=2) + "\n"
    if to_stdout:
        sys.stdout.write(written)
        return
    show(console, table(result, settings.bits))
    for warning in result.warnings:
        say(console, f"Warning: {warning}", style="yellow")
    if settings.json is not None:
        write(Path(settings.json), written.encode())


def _estimate_with_progress(
    settings: Settings, x: np.ndarray, y: np.ndarray, console: Console
) -> MutualInformationEstimate:
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

        result = estimate(
            x,
            y,
            folds=settings.folds,
            seed=settings.seed,
            critic=settings.critic,
            transform=settings.transform,
            batch_size=settings.batch_size,
            max_steps=settings.max_steps,
            device=settings.device,
            progress=show_progress,
        )
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
    unit, scale = _unit(bits)
    dx, dy = result.columns
    shown = Table(
        title=f"I(X; Y) in {unit}: {result.rows:,} pairs, {dx} and {dy} columns",
        caption=f"held-out pairs, {len(result.folds)} folds; ceiling of InfoNCE {scale * result.ceiling:.2f} {unit}",
    )
    for name in ("bound", "estimate", "95% interval", "what it is"):
        shown.add_column(name, justify="left" if name in ("bound", "what it is") else "right")
    for name, found in result.bounds.items():
        # + 0.0: what rounds to -0.000 reads 0.000.
        value, low, high = (f"{round(scale * v, 3) + 0.0:.3f}" for v in (found.value, found.low, found.high))
        note = BOUNDS[name] + (" (saturated)" if name == "infonce" and result.saturated else "")
        shown.add_row(_LABELS[name], value, f"{low} to {high}", note)
    return shown


def as_json(result: MutualInformationEstimate, settings: Settings, seconds: float) -> dict[str, Any]:
    """All of the estimate in plain types; every amount of information in the unit that "unit" names."""
    unit, scale = _unit(settings.bits)
    return {
        "unit": unit,
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
        "ceiling": scale * result.ceiling,
        "saturated": result.saturated,
        "warnings": list(result.warnings),
        "rows": result.rows,
        "columns": list(result.columns),
        "folds": [{**asdict(fold), "validation_infonce": scale * fold.validation_infonce} for fold in result.folds],
        "settings": {"x": settings.x, "y": settings.y, "backend": settings.backend, **result.settings},
        "versions": {
            "simmim_kernels": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "seconds": seconds,
    }


def _unit(bits: bool) -> tuple[str, float]:
    return ("bits", 1 / _NATS_PER_BIT) if bits else ("nats", 1.0)


def read(file: str) -> np.ndarray:
    """The array in a .npy, .npz (FILE.npz:NAME where it holds several), .csv or .parquet file. Raises DataError."""
    path, name = Path(file), None
    if ".npz:" in file:
        head, _, name = file.rpartition(":")
        path = Path(head)
    readers: dict[str, Callable[[Path], np.ndarray]] = {
        ".npy": _read_npy,
        ".npz": lambda path: _read_npz(path, name),
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise DataError(f"{file} must end in {', '.join(readers)}, got {path.suffix or 'no ending'}")
    try:
        return readers[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:  # a few damaged bytes can ask for any amount
        raise DataError(f"{file} cannot be read: it does not fit in memory") from error


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as .npy: {error}") from error


def _read_npz(path: Path, name: str | None) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"{path} cannot be read as .npz: it is a single array")
            if name is None and len(arrays.files) != 1:
                raise DataError(f"{path} holds {', '.join(arrays.files) or 'nothing'}: name one as {path}:NAME")
            if name is not None and name not in arrays.files:
                raise DataError(f"{path} holds {', '.join(arrays.files) or 'nothing'}, not {name}")
            return arrays[name or arrays.files[0]]
    except DataError:
        raise
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error


def _read_csv(path: Path) -> np.ndarray:
    from pyarrow import ArrowException, csv

    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    # Names are text; a first line of numbers alone (or of empty cells) is data.
    options = csv.ReadOptions(autogenerate_column_names=all(_is_number(cell) for cell in first.split(",")))
    try:
        return _to_array(csv.read_csv(path, options), path)
    except ArrowException as error:
        raise DataError(f"{path} cannot be read as .csv: {_first_line(error)}") from error


def _read_parquet(path: Path) -> np.ndarray:
    from pyarrow import ArrowException, parquet

    try:
        return _to_array(parquet.read_table(path), path)
    except ArrowException as error:
        raise DataError(f"{path} cannot be read as .parquet: {_first_line(error)}") from error


def _to_array(table: Any, path: Path) -> np.ndarray:
    """(N, d) float64 from an arrow table, missing cells as NaN."""
    from pyarrow import float64, types

    fit = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    columns = zip(table.column_names, table.schema.types, strict=True)
    unfit = [f"{name} ({kind})" for name, kind in columns if not any(is_kind(kind) for is_kind in fit)]
    if unfit:
        raise DataError(f"{path} must hold numbers alone, got {', '.join(unfit[:8])}{', ...' if unfit[8:] else ''}")
    if table.num_columns == 0 or table.num_rows == 0:
        raise DataError(f"{path} must have at least one row and one column, got {table.num_rows} rows")
    return np.stack([column.cast(float64(), safe=False).to_numpy() for column in table.columns], axis=1)


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"') or "nan")
    except ValueError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
