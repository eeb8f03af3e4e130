"""A recorded run as a table, a compact file and a plot.

python -m pytest benchmarks --benchmark-json=run.json
python -m benchmarks.report run.json --save benchmarks/results/cpu.json --plot benchmarks/results/cpu.png
"""

import argparse
import json
from pathlib import Path


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the file that pytest benchmarks wrote")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="where to keep the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="where to draw them")
    arguments = parser.parse_args()
    found = compact(json.loads(arguments.run.read_text()))
    print(table(found["cases"]))
    if arguments.save:
        arguments.save.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.plot:
        plot(found["cases"], arguments.plot)


if __name__ == "__main__":
    main()
