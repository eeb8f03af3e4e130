"""What was recorded, as Markdown tables and plots."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import optimal, peers, tasks, trained

CLIMBS = [(family, critic) for family in trained.CLIMBING for critic in trained.STEPS]
# In nats: readings from here on are given to one digit, and wider error bars are not drawn.
DIVERGED, WIDEST_BAR = 100.0, 3.0
ALONE = [family for family in tasks.FAMILIES if family not in trained.CLIMBING]


def optimal_table(rows: list[dict]) -> str:
    """InfoNCE by the size of the batch, then the bounds without a ceiling at the largest: means over batches."""
    found = {(row["n"], row["information"]): row["mean"] for row in rows}
    largest = max((n for n, _ in found), default=0)
    lines = [("infonce", n) for n in optimal.BATCHES] + [(bound, largest) for bound in optimal.BOUNDS[1:]]
    head = ["bound", "N", "log N", *(f"I = {information}" for information in optimal.INFORMATION)]
    body = [
        [bound, f"{n:,}", f"{math.log(n):.2f}"]
        + [_number(found.get((n, information), {}).get(bound)) for information in optimal.INFORMATION]
        for bound, n in lines
    ]
    return _markdown(head, body)


def trained_table(rows: list[dict]) -> str:
    """Every climb: the estimate, with its bias and the variance of one batch's reading behind it."""
    found = {(row["family"], row["critic"], row["bound"]): row for row in rows}
    head = ["task", "critic", "bound", *(f"I = {information}" for information in tasks.LEVELS)]
    body = [
        [*climb, bound, *map(_cell, found[(*climb, bound)]["readings"])]
        for climb in CLIMBS
        for bound in trained.PARAMETERS
        if (*climb, bound) in found
    ]
    return _markdown(head, body)


def alone_table(rows: list[dict]) -> str:
    """The other tasks, with the separable critic."""
    found = {(row["family"], row["bound"]): row["readings"][0] for row in rows if len(row["readings"]) == 1}
    body = [
        [family, _number(tasks.FAMILIES[family][0].information)]
        + [_cell(found[family, bound]) if (family, bound) in found else "" for bound in trained.FEW]
        for family in ALONE
    ]
    return _markdown(["task", "truth", *trained.FEW], body)


# What a warning is about, by words in it; those that say that a reading may be too low come first.
SAID = {
    "too few rows": "few rows",
    "KSG reads": "KSG more",
    "KSG by pairs reads": "pairs more",
    "Gaussian copula reads": "copula more",
    "its ceiling": "ceiling",
    "found no information": "none found",
    "order of the rows": "order",
    "goes like the number": "row number",
    "identical": "identical",
    "repeats": "repeats",
    "still training": "training",
}


def suite_table(rows: list[dict], cases: Iterable[str]) -> str:
    """One draw of each case: the bound to quote and its error, its interval, what is beside it, and what was said."""
    found = {row["case"]: row for row in rows}
    head = ["sample", "N", "truth", "estimate", "95% interval", "shortfall", "holds it"]
    head += ["CCA", "copula", "KSG", "KSG by pairs", "said", "CPU s"]
    body = []
    for row in (found[case] for case in cases if case in found):
        value, (low, high) = row["estimate"][row["quote"]], row["interval"]
        marked = "" if row["quote"] == "infonce" else f" {row['quote']}"
        body.append(
            [
                row["case"],
                f"{row['rows']:,}",
                _number(row["truth"]),
                f"{_number(value)} ({value - row['truth']:+.2f}){marked}",
                f"{_number(low)} to {_number(high)}",
                _number(row["shortfall"]),
                "yes" if holds(row) else "with the shortfall" if holds(row, row["shortfall"]) else "no",
                _number(row["cca"]),
                *(_number(row["baselines"][name]) for name in ("gaussian_copula", "ksg", "ksg_pairs")),
                ", ".join(said(row)),
                f"{row['cpu_seconds']:.0f}",
            ]
        )
    return _markdown(head, body)


def suite_summary(rows: list[dict], cases: Iterable[str]) -> str:
    """How many of the cases come within 0.15 nats by each method, miss by more than 0.3 in silence, are covered."""
    kept = [row for row in rows if row["case"] in set(cases)]
    near = {
        name: sum(
            value is not None and abs(value - row["truth"]) <= 0.15 for row, value in zip(kept, values, strict=True)
        )
        for name, values in {
            "ours": [row["estimate"][row["quote"]] for row in kept],
            "CCA": [row["cca"] for row in kept],
            "Gaussian copula": [row["baselines"]["gaussian_copula"] for row in kept],
            "KSG": [row["baselines"]["ksg"] for row in kept],
        }.items()
    }
    silent = sum(abs(row["estimate"][row["quote"]] - row["truth"]) > 0.3 and not said(row) for row in kept)
    alone, stated = (sum(holds(row, share * row["shortfall"]) for row in kept) for share in (0, 1))
    covered = sum(holds(row, row["shortfall"]) or bool(said(row)) for row in kept)
    nothing = [row for row in kept if row["truth"] == 0]
    told = sum(abs(row["estimate"][row["quote"]]) < 0.05 or bool(said(row)) for row in nothing)
    return (
        f"Within 0.15 nats, of {len(kept)}: "
        + ", ".join(f"{name} {count}" for name, count in near.items())
        + f". Off by more than 0.3 without a warning: {silent}. The interval holds the truth in {alone}, with the "
        f"stated shortfall in {stated}, and it does so or a warning is given in {covered}. Of {len(nothing)} samples "
        f"of independent x and y, {told} read less than 0.05 or warn."
    )


def said(row: dict) -> list[str]:
    return [short for words, short in SAID.items() if any(words in warning for warning in row["warnings"])]


def holds(row: dict, shortfall: float = 0.0) -> bool:
    """Whether the interval, longer by the shortfall, holds the truth, to three digits: it may have no width."""
    low, high = row["interval"]
    return round(low, 3) <= round(row["truth"], 3) <= round(high + shortfall, 3)


def peers_table(rows: list[dict]) -> str:
    found = {(row["critic"], row["bound"], row["information"], row["package"]): row["estimate"] for row in rows}
    cases = dict.fromkeys(key[:3] for key in found)
    body = [[*map(str, case), *(_number(found.get((*case, name))) for name in peers.ESTIMATORS)] for case in cases]
    return _markdown(["critic", "bound", "truth", *peers.ESTIMATORS], body)


def _cell(reading: dict) -> str:
    if reading["estimate"] is None:
        return "not finite"
    if abs(reading["estimate"]) >= DIVERGED:
        return f"{reading['estimate']:.0e} ({reading['bias']:+.0e}, {reading['variance']:.0e})"
    return f"{reading['estimate']:.2f} ({reading['bias']:+.2f}, {reading['variance']:.2g})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def _markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))


def plot_ceiling(rows: list[dict], path: Path) -> None:
    """InfoNCE with the optimal critic against the size of the batch."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    sizes = list(optimal.BATCHES)
    axes.plot(sizes, [math.log(n) for n in sizes], "k--", linewidth=1, label="ceiling, log N")
    for position, information in enumerate(i for i in optimal.INFORMATION if i >= 6):
        found = sorted((row["n"], row["mean"]["infonce"]) for row in rows if row["information"] == information)
        axes.plot(*zip(*found, strict=True), "o-", color=f"C{position}", label=f"I = {information}")
        axes.axhline(information, color=f"C{position}", linewidth=0.8, alpha=0.4)
    axes.set(title="InfoNCE with the optimal critic, d = 20", xlabel="batch size N", ylabel="nats", ylim=(3, 15.5))
    axes.set_xscale("log", base=2)
    _finish(axes)
    figure.savefig(path, dpi=150)


def plot_trained(rows: list[dict], path: Path) -> None:
    """Estimates against the truth, and the other tasks beside them.

    Bars are the standard deviation of one batch's reading. What diverged is out of sight, and in the table.
    """
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    panels = figure.subplot_mosaic(
        [[str(CLIMBS[0]), str(CLIMBS[1]), "alone"], [str(CLIMBS[2]), str(CLIMBS[3]), "alone"]]
    )
    for family, critic in CLIMBS:
        axes = panels[str((family, critic))]
        for position, bound in enumerate(trained.PARAMETERS):
            for row in rows:
                if (row["family"], row["critic"], row["bound"]) == (family, critic, bound):
                    _errorbars(axes, row["readings"], bound, position)
        axes.plot(tasks.LEVELS, tasks.LEVELS, color="black", linewidth=1)
        axes.axhline(math.log(trained.BATCH), color="0.6", linestyle="--", linewidth=1)
        axes.set(title=f"{family}, {critic} critic", xlabel="truth, nats", ylabel="estimate, nats", ylim=(-1, 14))
        _finish(axes)
    axes = panels["alone"]
    for position, bound in enumerate(trained.FEW):
        for row in rows:
            if row["family"] in ALONE and row["bound"] == bound:
                shifted = [{**row["readings"][0], "information": ALONE.index(row["family"]) + 0.12 * (position - 1.5)}]
                label = bound if row["family"] == ALONE[0] else None
                _errorbars(axes, shifted, label, list(trained.PARAMETERS).index(bound))
    for position, family in enumerate(ALONE):
        axes.hlines(tasks.FAMILIES[family][0].information, position - 0.35, position + 0.35, color="black")
    axes.set(title="other tasks, separable critic", ylabel="estimate, nats", ylim=(0, 4))
    axes.set_xticks(range(len(ALONE)), ALONE)
    _finish(axes)
    figure.savefig(path, dpi=150)


def _errorbars(axes: Axes, readings: list[dict], label: str | None, color: int) -> None:
    finite = [reading for reading in readings if reading["estimate"] is not None]
    deviations = [math.sqrt(reading["variance"]) for reading in finite]
    axes.errorbar(
        [reading["information"] for reading in finite],
        [reading["estimate"] for reading in finite],
        [deviation if deviation <= WIDEST_BAR else math.nan for deviation in deviations],
        fmt="o-",
        markersize=3,
        capsize=2,
        linewidth=1,
        color=f"C{color}",
        label=label,
    )


def _finish(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small", loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
