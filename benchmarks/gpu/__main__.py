"""Everything that needs a GPU, in one command: correctness, then times, written to one JSON file.

python -m benchmarks.gpu                              on a machine with a CUDA device, installed or from a clone
python -m benchmarks.gpu --dry-run --backend tiled    the same steps at tiny sizes, on a CPU

The exit status is 1 where a check failed.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from simmim_kernels.version import __version__

from . import checks, timings
from .peers import PEERS, find
from .run import Deadline, Run, attempt

# Of the time given: for the test suite, which comes first, since it compiles on many cores what all else then finds in
# Triton's cache; by when checks must have begun; and for the memory checker, which comes last.
TESTS_SHARE, CHECKS_SHARE, LAST_SHARE = 0.35, 0.6, 0.15


def main() -> None:
    arguments = _parse()
    # cuBLAS reads this once, and PyTorch's deterministic mode refuses products without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if arguments.dry_run:
        # The threads of problems this small mostly wait for each other.
        torch.set_num_threads(1)
    run = Run(
        device=torch.device("cpu" if arguments.dry_run else "cuda:0"),
        backend=arguments.backend,
        only=arguments.only,
        skip=arguments.skip,
        deadline=Deadline(60 * arguments.minutes),
    )
    if arguments.sanitizer_target:
        checks.sanitizer_target(run)
        return
    results = machine(run, arguments.commit)
    output = arguments.output or checks.ROOT / "benchmarks" / "results" / f"gpu-{_slug(results['device'])}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    measure(run, results, save=lambda: output.write_text(json.dumps(results, indent=1) + "\n"))
    print("\n" + table(results), f"\nwritten to {output}", sep="\n")
    failed = {name: check["figure"] for name, check in results["checks"].items() if check["passed"] is False}
    print("\n".join(f"FAILED {name}: {figure}" for name, figure in failed.items()) or "no check failed")
    sys.exit(1 if failed else 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="triton", help="the backend that is checked and timed (default triton)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default benchmarks/results/gpu-<device>.json")
    parser.add_argument("--only", default="", metavar="TEXT", help="only checks and cases with this in their name")
    parser.add_argument(
        "--skip", nargs="*", default=[], metavar="TEXT", help="no contender with one of these in its name"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="how long all of it may take (default 8)")
    parser.add_argument("--commit", help="what to record as the commit where git cannot be asked")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, to try the command itself")
    parser.add_argument("--sanitizer-target", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("needs a CUDA device, and PyTorch sees none; --dry-run goes through the steps on a CPU")
    return arguments


def machine(run: Run, commit: str | None) -> dict:
    """What the figures were taken on and with."""
    # Without a .git of its own the folder may lie in the work tree of some other repository.
    is_clone = (checks.ROOT / ".git").exists()
    changes = _ask("git", "status", "--porcelain") if is_clone else None
    return {
        "device": "dry run" if run.dry else torch.cuda.get_device_name(run.device),
        "driver": "none" if run.dry else _driver(),
        "versions": {
            "simmim_kernels": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _triton(),
            "cuda": torch.version.cuda,
        },
        "commit": (_ask("git", "rev-parse", "HEAD") if is_clone else None) or commit,
        "uncommitted_changes": "unknown" if changes is None else bool(changes),
        "backend": run.backend,
        "peers": {},
        "checks": {},
        "gemm_tflops": {},
        "copy_tbps": None,
        "cases": [],
        "not_run": [],
        "seconds": None,
    }


def _driver() -> str | None:
    found = _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def _ask(*command: str) -> str | None:
    """A command's output; None where it is missing or fails."""
    try:
        return subprocess.run(
            command, cwd=checks.ROOT, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _triton() -> str:
    # Asked of the module: PyTorch's own builds of it go by other distribution names.
    module, failure = attempt(lambda: import_module("triton"))
    return failure if module is None else module.__version__


def _slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def measure(run: Run, results: dict, save: Callable[[], object]) -> None:
    """Fills in the results in the order of the file, and saves them as they come: a run that is cut off leaves some."""
    start = run.deadline.left()
    torch.set_float32_matmul_precision("highest")
    _run_suite("tests/test_gpu.py", run, results, TESTS_SHARE * start)
    _run_checks(run, results, run.deadline.earlier((1 - CHECKS_SHARE) * start), save)
    peers = [find(peer) for peer in PEERS]
    results["peers"] = {found.peer.name: found.version for found in peers}
    results["gemm_tflops"] = timings.measure_gemm(run)
    results["copy_tbps"] = timings.measure_copy(run)
    for case in timings.CASES:
        if run.wants(case.id):
            _run_case(case, run, results, run.deadline.earlier(LAST_SHARE * start), peers)
            save()
    if not run.dry:
        torch.cuda.empty_cache()
    _run_suite("compute-sanitizer memcheck", run, results, run.deadline.left() - 2)
    results["seconds"] = start - run.deadline.left()
    save()


def _run_checks(run: Run, results: dict, deadline: Deadline, save: Callable[[], object]) -> None:
    for name, check in checks.CHECKS.items():
        if not run.wants(name):
            continue
        if deadline.left() < 0:
            results["not_run"].append({"name": name, "reason": "no time left"})
            continue
        _record(results, name, checks.attempted(partial(check, run)))
        save()


def _run_suite(name: str, run: Run, results: dict, seconds: float) -> None:
    """A check in a process of its own, which may take so long."""
    if not run.wants(name):
        return
    if seconds < 5:
        results["not_run"].append({"name": name, "reason": "no time left"})
        return
    _record(results, name, checks.attempted(partial(checks.SUITES[name], run, seconds)))


def _record(results: dict, name: str, outcome: checks.Outcome) -> None:
    results["checks"][name] = asdict(outcome)
    word = {True: "passed", False: "FAILED", None: "not made"}[outcome.passed]
    print(f"{word}  {name}: {outcome.figure}", flush=True)


def _run_case(case: timings.TimedCase, run: Run, results: dict, deadline: Deadline, peers: list) -> None:
    found, failure = attempt(
        partial(timings.time_case, case, run, deadline, results["gemm_tflops"], peers),
    )
    rows, not_run = found if failure is None else ([], [{"name": case.id, "reason": failure}])
    if case.huge and rows:
        _record(results, "memory of a million rows", _huge_memory(rows[0]))
    results["cases"] += rows
    results["not_run"] += not_run
    print(f"timed  {case.id}: {len(rows)} contenders" if rows else f"not timed  {case.id}", flush=True)


def _huge_memory(row: dict) -> checks.Outcome:
    if row["peak_mb"] is None:
        return checks.Outcome(False, row["failure"])
    passed = row["peak_mb"] < timings.HUGE_EXTRA_MB
    return checks.Outcome(passed, f"{row['peak_mb']:.0f} MB beyond inputs and gradients")


def table(results: dict) -> str:
    """One line a case: our time, its share of the product's rate, our memory, and our time over each other one's."""
    ours = {_key(row): row for row in results["cases"] if row.get("backend") == results["backend"]}
    others = {(_key(row), _who(row)): row["ms"] for row in results["cases"]}
    names = [who for who in dict.fromkeys(_who(row) for row in results["cases"]) if who != results["backend"]]
    lines = [["case", "pass", "ms", "of product", "extra MB", *(f"/ {name}" for name in names)]]
    for key, row in ours.items():
        ratios = [_ratio(row["ms"], others.get((key, name))) for name in names]
        lines.append(
            [
                f"{row['name']} {row['n']:,} x {row['d']} {row['dtype']}",
                row["pass"],
                _number(row["ms"], ".3g"),
                _number(row["gemm_fraction"], ".0%"),
                _number(row["peak_mb"], ",.0f"),
                *ratios,
            ]
        )
    return _aligned(lines) + "".join(f"\nnot run: {item['name']}: {item['reason']}" for item in results["not_run"])


def _key(row: dict) -> tuple:
    return tuple(row[k] for k in ("name", "n", "d", "dtype", "pass"))


def _who(row: dict) -> str:
    return row.get("backend") or row["peer"]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _ratio(ours: float | None, other: float | None) -> str:
    return "-" if ours is None or other is None else f"{ours / other:.2f}"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


if __name__ == "__main__":
    main()
