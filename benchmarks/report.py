"""Table and plot of a recorded run: `python -m benchmarks.report RESULTS.json [--plot FILE.png]`."""

import argparse
import json
from pathlib import Path


def rows(path: Path) -> list[dict]:
    return [b["extra_info"] for b in json.loads(path.read_text())["benchmarks"] if "ratio" in b["extra_info"]]


def table(found: list[dict]) -> str:
    head = [
        "| loss | N | d | scale | ours | dense | ours / dense | ours, extra MB | dense, extra MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    body = [
        f"| {r['case']} | {r['n']} | {r['d']} | {r['scale']:.3g} | {1e3 * r['seconds']:.4g} ms "
        f"| {1e3 * r['dense_seconds']:.4g} ms | {r['ratio']:.2f} | {r['extra_mb']:.0f} | {r['dense_extra_mb']:.0f} |"
        for r in found
    ]
    return "\n".join(head + body)


def plot(found: list[dict], path: Path) -> None:
    """Time over dense time, and memory, of the CLIP loss against the size of the batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for d in sorted({r["d"] for r in found}):
        clip = sorted(
            (r for r in found if r["case"] == "clip" and r["d"] == d and r["scale"] < 50), key=lambda r: r["n"]
        )
        size = [r["n"] for r in clip]
        time.plot(size, [r["ratio"] for r in clip], "o-", label=f"d = {d}")
        (line,) = memory.plot(size, [r["extra_mb"] for r in clip], "o-", label=f"ours, d = {d}")
        memory.plot(size, [r["dense_extra_mb"] for r in clip], "o--", color=line.get_color(), label=f"dense, d = {d}")
    time.axhline(1, color="0.6", linewidth=1)
    time.set(
        xscale="log",
        xlabel="batch size N",
        ylabel="seconds, ours / dense",
        ylim=(0, None),
        title="Forward and backward of the CLIP loss",
    )
    memory.set(
        xscale="log", yscale="log", xlabel="batch size N", ylabel="MB beyond inputs and gradients", title="Extra memory"
    )
    for axes in (time, memory):
        axes.set_xscale("log", base=2)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="written by pytest benchmarks --benchmark-json=FILE")
    parser.add_argument("--plot", type=Path, help="where to write the plot")
    arguments = parser.parse_args()
    found = rows(arguments.results)
    print(table(found))
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
