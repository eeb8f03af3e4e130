"""Rows of figures in a JSON file, saved as they come, with what they were taken on; a run that was cut off goes on."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import cpuinfo
import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def machine(*packages: str) -> dict:
    """The processor, the versions of Python, torch, numpy and the packages named, and the commit."""
    cpu = cpuinfo.get_cpu_info()
    # The figures themselves are left out: the first row would otherwise be a change.
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "cpu": f"{cpu['brand_raw']}, {cpu['arch']}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", *packages)},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
    }


def _git(*arguments: str) -> str | None:
    """What git says, or None outside a clone or without git."""
    if not (ROOT / ".git").exists():
        return None
    try:
        found = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def load(path: Path) -> dict:
    """{"runs": machines, "rows": figures}; every row has the index of its run."""
    return json.loads(path.read_text()) if path.exists() else {"runs": [], "rows": []}


def complete(path: Path, plan: Iterable[dict], measure: Callable[..., dict], *packages: str) -> list[dict]:
    """The rows of a plan: those in the file, and the missing ones, each measured as measure(**entry) and then saved."""
    found, run = load(path), machine(*packages)
    if run not in found["runs"]:
        found["runs"].append(run)
    for entry in plan:
        if any(entry.items() <= row.items() for row in found["rows"]):
            continue
        row = {**entry, **measure(**entry), "run": found["runs"].index(run)}
        found["rows"].append(row)
        _save(path, found)
        print(json.dumps(row), flush=True)
    return found["rows"]


def _save(path: Path, found: dict) -> None:
    """All or nothing: what was saved before stays until the new file is whole."""
    lines = ",\n".join("  " + json.dumps(row) for row in found["rows"])
    text = f'{{\n "runs": {json.dumps(found["runs"])},\n "rows": [\n{lines}\n ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
