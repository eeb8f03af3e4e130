"""The side-by-side suite, and its tables and plots; or those of a recorded run of the benchmarks of pytest.

python -m benchmarks.report --quick
python -m benchmarks.report --save benchmarks/results/peers_cpu.json --plot benchmarks/results/peers_cpu.png

python -m pytest benchmarks --benchmark-json=run.json
python -m benchmarks.report run.json --save benchmarks/results/cpu.json --plot benchmarks/results/cpu.png
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import suite


def compact(run: dict) -> dict:
    """What is worth keeping of a pytest-benchmark file: the machine, the commit, and every case's figures."""
    cpu = run["machine_info"]["cpu"]
    return {
        "cpu": f"{cpu['brand_raw']}, {cpu['arch']}",
        "avx512": "avx512f" in cpu.get("flags", []),
        "python": run["machine_info"]["python_version"],
        "commit": run["commit_info"]["id"],
        "uncommitted_changes": run["commit_info"]["dirty"],
        "cases": [benchmark["extra_info"] for benchmark in run["benchmarks"]],
    }


def table(cases: list[dict]) -> str:
    head = [
        "| loss | N | d | scale | ours | dense | ours / dense | ours, extra MB | dense, extra MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    body = [
        f"| {r['case']} | {r['n']:,} | {r['d']} | {r['scale']:.3g} | {_milliseconds(r['seconds'])} "
        f"| {_milliseconds(r['dense_seconds'])} | {r['ratio']:.2f} | {r['extra_mb']:.0f} | {r['dense_extra_mb']:,.0f} |"
        for r in cases
        if "ratio" in r
    ]
    return "\n".join(head + body)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


def plot(cases: list[dict], path: Path) -> None:
    """Time over dense time, and memory, of the CLIP loss against the size of the batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for d in (64, 512):
        clip = [r for r in cases if r["case"] == "clip" and r["d"] == d and r["scale"] < 50]
        clip.sort(key=lambda r: r["n"])
        size = [r["n"] for r in clip]
        (line,) = time.plot(size, [r["ratio"] for r in clip], "o-", label=f"d = {d}")
        memory.plot(size, [r["extra_mb"] for r in clip], "o-", color=line.get_color(), label=f"ours, d = {d}")
        memory.plot(size, [r["dense_extra_mb"] for r in clip], "o--", color=line.get_color(), label=f"dense, d = {d}")
    time.axhline(1, color="0.6", linewidth=1)
    time.set(ylabel="seconds, ours / dense", ylim=(0, None), title="CLIP loss, forward and backward")
    memory.set(yscale="log", ylabel="MB beyond inputs and gradients", title="Extra memory")
    for axes in (time, memory):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("batch size N")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


PACKAGES = (
    "torch",
    "simmim_kernels",
    "open_clip_torch",
    "sentence-transformers",
    "lightly",
    "pytorch-metric-learning",
    "info-nce-pytorch",
)


def machine(device: str) -> dict:
    """What a figure depends on: the processor, threads, versions, and the commit."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    git = ["git", "-C", str(Path(__file__).parent)]
    return {
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "avx512": any("avx512f" in line for line in _lines("/proc/cpuinfo")),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def run_suite(
    names: list[str], sizes: tuple[int, ...], dtypes: list[str], d: int, device: str, together: bool = False
) -> dict:
    """All cases, each in a process of its own, or those that differ in their size alone in one."""
    cases = list(suite.cases(names, sizes, dtypes))
    processes: dict[tuple, list[int]] = {}
    for name, n, dtype in cases:
        processes.setdefault((name, dtype) if together else (name, dtype, n), []).append(n)
    found = []
    for (name, dtype, *_), some in processes.items():
        found += suite.run_in_a_fresh_process(name, some, d, dtype, device)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {"machine": machine(device), "cases": found}


def merged(runs: list[dict]) -> dict:
    """Runs of one machine as one; of a case that is in several the last counts."""
    by_case = {(r["case"], r["n"], r["d"], r["dtype"]): r for run in runs for r in run["cases"]}
    return {"machine": runs[-1]["machine"], "cases": list(by_case.values())}


def suite_table(cases: list[dict]) -> str:
    head = [
        "| loss | dtype | N | d | ours | original | ours / original | ours, MB | original, MB | error | its error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [_suite_row(r) for r in cases])


def _suite_row(r: dict) -> str:
    key = f"| {r['case']} | {r['dtype']} | {r['n']:,} | {r['d']} |"
    if "left_out" in r:
        return f"{key} left out: {r['left_out']} | | | | | | |"

    def shown(name: str, form) -> str:
        return form(r[name]) if name in r else ""

    figures = [
        shown("ours_seconds", _milliseconds),
        shown("theirs_seconds", _milliseconds),
        shown("ratio", "{:.2f}".format),
        shown("ours_megabytes", "{:,.0f}".format),
        shown("theirs_megabytes", "{:,.0f}".format),
        shown("ours_error", "{:.0e}".format),
        shown("theirs_error", "{:.0e}".format),
    ]
    return " ".join([key, " | ".join(figures), "|"])


def suite_plot(cases: list[dict], path: Path) -> None:
    """Time and memory against N, one panel a loss, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = [r for r in cases if "ours_seconds" in r and r["dtype"] == "float32"]
    names = list(dict.fromkeys(r["case"] for r in cases))
    figure, axes = plt.subplots(2, len(names), figsize=(2.6 * len(names), 5), layout="constrained", squeeze=False)
    for column, name in enumerate(names):
        rows = sorted((r for r in cases if r["case"] == name), key=lambda r: r["n"])
        for row, unit in enumerate(("seconds", "megabytes")):
            panel = axes[row][column]
            for who, style in (("ours", "o-"), ("theirs", "s--")):
                points = [(r["n"], max(r[f"{who}_{unit}"], 0.01 if row else 0)) for r in rows if f"{who}_{unit}" in r]
                panel.plot(
                    *zip(*points, strict=True), style, markersize=3, label="ours" if who == "ours" else "original"
                )
            panel.set(xscale="log", yscale="log", xlabel="N")
            panel.set_xscale("log", base=2)
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel("seconds" if row == 0 else "extra MB")
            if row == 0:
                panel.set_title(name, fontsize=7)
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="*", help="files: what pytest benchmarks wrote, or saved runs to merge")
    parser.add_argument("--quick", action="store_true", help="three sizes in float32, under 3 minutes")
    parser.add_argument("--only", nargs="+", choices=suite.PEERS, default=list(suite.PEERS), help="losses")
    parser.add_argument("--sizes", type=int, nargs="+", help="batch sizes N")
    parser.add_argument("--dtypes", nargs="+", help="of the features; float32 and bfloat16 by default")
    parser.add_argument("--d", type=int, default=512, help="width of the features")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="where to keep the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="where to draw them")
    arguments = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in arguments.run]
    if runs and "benchmarks" in runs[0]:
        found, as_table, as_plot = compact(runs[0]), table, plot
    else:
        if not runs:
            sizes = tuple(arguments.sizes or (suite.QUICK if arguments.quick else suite.SIZES))
            dtypes = arguments.dtypes or (["float32"] if arguments.quick else ["float32", "bfloat16"])
            runs = [run_suite(arguments.only, sizes, dtypes, arguments.d, arguments.device, arguments.quick)]
        found, as_table, as_plot = merged(runs), suite_table, suite_plot
        print(json.dumps(found["machine"], indent=1))
    print(as_table(found["cases"]))
    if arguments.save:
        arguments.save.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.plot:
        as_plot(found["cases"], arguments.plot)


if __name__ == "__main__":
    main()
