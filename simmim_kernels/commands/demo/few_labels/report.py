"""What the fits say: tables, a plot, and sentences that follow from the figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import log
from statistics import mean, stdev

from matplotlib.figure import Figure
from rich.table import Table

from .tasks import Task
from .training import COPY, SCRATCH, SIMULTANEOUS, WAYS, Fit, Reading

# A gain of three seeds that beats this many of its standard deviations has p = 0.04, one-sided, by Student's t.
SPREADS = 2
COMPARISONS = ((COPY, SCRATCH), (SIMULTANEOUS, SCRATCH), (SIMULTANEOUS, COPY))


@dataclass(frozen=True)
class Gain:
    """Accuracy of one way less that of another on the same labels: mean over seeds, and standard deviation."""

    labels: int
    mean: float
    spread: float

    @property
    def verdict(self) -> str:
        if abs(self.mean) <= SPREADS * self.spread:
            return "makes no difference beyond the spread"
        return "helps" if self.mean > 0 else "hurts"


def numbers_of_labels(fits: Sequence[Fit], task: str) -> list[int]:
    return sorted({fit.labels for fit in fits if fit.task == task and fit.way is not None})


def select(fits: Sequence[Fit], task: str, way: str | None, labels: int | None = None) -> list[Fit]:
    """By seed."""
    chosen = [fit for fit in fits if fit.task == task and fit.way == way and labels in (None, fit.labels)]
    return sorted(chosen, key=lambda fit: fit.seed)


def gains(fits: Sequence[Fit], task: str, way: str, other: str) -> list[Gain]:
    found = []
    for labels in numbers_of_labels(fits, task):
        pairs = zip(select(fits, task, way, labels), select(fits, task, other, labels), strict=True)
        differences = [_accuracy(a.target) - _accuracy(b.target) for a, b in pairs]
        found.append(Gain(labels, mean(differences), stdev(differences)))
    return found


def sentence(way: str, other: str, compared: Sequence[Gain]) -> str:
    """Where a way helps against another, where it hurts and where neither, with the largest gain or loss of each."""
    verdicts = {gain.verdict: [g for g in compared if g.verdict == gain.verdict] for gain in compared}
    parts = []
    for verdict, chosen in verdicts.items():
        labels = ", ".join(str(gain.labels) for gain in chosen)
        most = max(chosen, key=lambda gain: abs(gain.mean))
        size = f"{100 * most.mean:+.1f} +/- {100 * most.spread:.1f} points"
        parts.append(f"{verdict} at {labels} labels ({size}{' at most' if len(chosen) > 1 else ''})")
    return f"{way} against {other}: {'; '.join(parts)}"


def source_sentence(fits: Sequence[Fit], source: Task, target: Task) -> str:
    """What either fine-tuning leaves of the source task, over all numbers of labels."""
    before, copied, simultaneous = (
        _mean_and_spread(select(fits, task.name, way), lambda fit: 100 * _accuracy(fit.source))
        for task, way in ((source, None), (target, COPY), (target, SIMULTANEOUS))
    )
    return (
        f"accuracy on the source, {source.name}, in %: {before} before, {copied} after {COPY}, "
        f"{simultaneous} after {SIMULTANEOUS}"
    )


def conclusions(fits: Sequence[Fit], source: Task, target: Task) -> list[str]:
    found = [sentence(way, other, gains(fits, target.name, way, other)) for way, other in COMPARISONS]
    return [*found, source_sentence(fits, source, target)]


def target_table(fits: Sequence[Fit], source: Task, task: Task, seeds: int) -> Table:
    before = _mean_and_spread(select(fits, source.name, None), lambda fit: _nats(fit.source), 2)
    table = Table(
        title=f"{task.name}, from {source.name}",
        caption=f"held out; mean +/- standard deviation of {seeds} seeds; at most log {task.classes} ="
        f" {log(task.classes):.2f} nats of the target; the source network has {before} of the source",
    )
    table.add_column("labels", justify="right")
    table.add_column("way")
    for name in ("accuracy, %", "target, nats", "source, nats"):
        table.add_column(name, justify="right")
    for labels in numbers_of_labels(fits, task.name):
        for way in WAYS:
            chosen = select(fits, task.name, way, labels)
            table.add_row(
                str(labels) if way == WAYS[0] else "",
                way,
                _mean_and_spread(chosen, lambda fit: 100 * _accuracy(fit.target)),
                _mean_and_spread(chosen, lambda fit: _nats(fit.target), 2),
                "" if way == SCRATCH else _mean_and_spread(chosen, lambda fit: _nats(fit.source), 2),
                end_section=way == WAYS[-1],
            )
    return table


def plot(fits: Sequence[Fit], pairs: Sequence[tuple[Task, Task]], seeds: int) -> bytes:
    """A PNG: one panel for each source and target."""
    figure = Figure(figsize=(4.2 * len(pairs), 4.6), layout="constrained")
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for panel, (source, target) in zip(panels, pairs, strict=True):
        labels = numbers_of_labels(fits, target.name)
        for position, way in enumerate(WAYS):
            values = [[100 * _accuracy(fit.target) for fit in select(fits, target.name, way, n)] for n in labels]
            shifted = [n * 1.05 ** (position - 1) for n in labels]  # so that no bar hides another
            panel.errorbar(shifted, list(map(mean, values)), list(map(stdev, values)), label=way, marker="o", capsize=3)
        panel.axhline(100 / target.classes, color="black", linestyle="--", linewidth=1, label="chance")
        panel.set(title=f"{target.name}\nfrom {source.name}", xlabel="labels", xscale="log", ylim=(0, 102))
        panel.set_xticks(labels, [str(n) for n in labels])
        panel.minorticks_off()
    panels[0].set_ylabel(f"held-out accuracy, %\nmean ± standard deviation of {seeds} seeds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def _accuracy(reading: Reading | None) -> float:
    assert reading is not None
    return reading.accuracy


def _nats(reading: Reading | None) -> float:
    assert reading is not None
    return reading.nats


def _mean_and_spread(fits: Sequence[Fit], value: Callable[[Fit], float], digits: int = 1) -> str:
    values = [value(fit) for fit in fits]
    return f"{mean(values):.{digits}f} +/- {stdev(values):.{digits}f}"
