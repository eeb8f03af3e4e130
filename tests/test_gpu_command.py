"""`python -m benchmarks.gpu` on a CPU: its flow and its file, and that its checks can fail."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from truth import error

import simmim_kernels as sk

ROOT = Path(__file__).parents[1]
ROW = {
    "name",
    "n",
    "m",
    "d",
    "dtype",
    "pass",
    "ms",
    "rounds",
    "peak_mb",
    "gemm_fraction",
    "error",
    "failure",
}


@pytest.fixture
def parts(monkeypatch):
    """The modules of the command, which are installed with nothing and live beside the tests."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.gpu import checks, losses, peers, run, spot_truth, timings

    return SimpleNamespace(checks=checks, losses=losses, run=run, timings=timings, peers=peers, truth=spot_truth)


@pytest.fixture
def run(parts):
    return parts.run.Run(torch.device("cpu"), backend="tiled")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_a_dry_run_writes_every_part_of_the_file(tmp_path):
    output = tmp_path / "gpu.json"
    finished = command("--dry-run", "--backend", "tiled", "--output", output)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = json.loads(output.read_text())
    assert found["device"] == "dry run"
    assert found["driver"] == "none"
    assert set(found["versions"]) == {"simmim_kernels", "python", "torch", "triton", "cuda"}
    assert "commit" in found
    assert set(found["gemm_tflops"]) == {"bfloat16", "tf32", "float32"}
    assert found["copy_tbps"] > 0
    assert set(found["peers"]) == {"memeff", "siglip-kernel", "inf-cl", "open_clip"}
    assert all(set(check) == {"passed", "figure"} for check in found["checks"].values())
    assert sum(check["passed"] is True for check in found["checks"].values()) >= 12
    assert {"determinism", "memory growth", "compute-sanitizer memcheck", "tests/test_gpu.py"} <= set(found["checks"])
    for row in found["cases"]:
        assert set(row) - {"backend", "peer"} == ROW
        assert ("backend" in row) != ("peer" in row)
        assert row["failure"] or row["ms"] > 0
    assert {row["name"] for row in found["cases"]} >= {"clip", "siglip", "info_nce", "nt_xent", "clip, high"}
    assert {row["pass"] for row in found["cases"]} == {"both", "forward"}
    # What cannot be timed here is named with its reason.
    assert {item["reason"] for item in found["not_run"]} == {"needs a CUDA device"}
    assert "no check failed" in finished.stdout.splitlines()[-1]


def test_a_backend_that_cannot_run_fails_every_check_and_ends_with_status_1(tmp_path):
    output = tmp_path / "gpu.json"
    finished = command("--dry-run", "--backend", "none such", "--only", "ids, clamp", "--output", output)
    found = json.loads(output.read_text())
    assert finished.returncode == 1
    assert [check["passed"] for check in found["checks"].values()] == [False, False]
    assert "use_backend must name one of" in finished.stdout
    assert "FAILED" in finished.stdout.splitlines()[-1]


def test_what_there_is_no_time_for_is_named(tmp_path):
    output = tmp_path / "gpu.json"
    finished = command("--dry-run", "--backend", "tiled", "--minutes", "0", "--output", output)
    found = json.loads(output.read_text())
    assert finished.returncode == 0
    assert found["checks"] == {}
    assert found["cases"] == []
    assert {"determinism", "tests/test_gpu.py"} <= {item["name"] for item in found["not_run"]}
    assert "no time left" in finished.stdout


def wrong(loss, by):
    """A loss whose gradients, and value, are too large by a factor."""
    return replace(loss, ours=lambda x, y, t: by * loss.ours(x, y, t))


@pytest.mark.parametrize(("dtype", "by"), [(torch.bfloat16, 1.1), (torch.float32, 1.0001)], ids=str)
@pytest.mark.parametrize("name", ["clip", "siglip", "info_nce"])
def test_a_wrong_loss_fails_its_spot_check(name, dtype, by, parts, run, monkeypatch):
    assert parts.checks.spot_check(run, name, 65_536, 768, dtype).passed
    monkeypatch.setitem(parts.losses.LOSSES, name, wrong(parts.losses.LOSSES[name], by))
    assert not parts.checks.spot_check(run, name, 65_536, 768, dtype).passed


@pytest.mark.parametrize("check", ["many_elements", "every_option"])
def test_one_wrong_statistic_fails(check, parts, run, monkeypatch):
    def make():
        arguments = {"dtype": torch.float32} if check == "every_option" else {}
        return getattr(parts.checks, check)(run, **arguments)

    assert make().passed
    right = sk.PairwiseScores.logsumexps

    def last_row_is_lost(scores, backend=None):
        rows, columns = right(scores, backend)
        return torch.cat([rows[:-1], 0 * rows[-1:]]), columns

    monkeypatch.setattr(sk.PairwiseScores, "logsumexps", last_row_is_lost)
    assert not make().passed


def test_an_unsteady_loss_fails_determinism(parts, run, monkeypatch):
    assert parts.checks.determinism(run).passed
    loss = parts.losses.LOSSES["clip"]
    unsteady = replace(loss, ours=lambda x, y, t: loss.ours(x, y, t) * (1 + 0.1 * torch.rand(())))
    monkeypatch.setitem(parts.losses.LOSSES, "clip", unsteady)
    assert not parts.checks.determinism(run).passed
    assert not parts.checks.run_to_run(run).passed


def test_the_whole_matrix_of_scores_fails_memory_growth(parts, run):
    assert not parts.checks.memory_growth(replace(run, backend="reference")).passed


def test_a_check_that_raises_has_failed(parts):
    def check():
        raise RuntimeError("at 3:7:\nsome code\nno such name")

    outcome = parts.checks.attempted(check)
    assert outcome == parts.checks.Outcome(False, "RuntimeError: at 3:7: ... no such name")


def test_not_a_number_is_an_error(parts):
    with pytest.raises(ValueError, match="not finite"):
        parts.truth.relative_error(torch.tensor([1.0, float("nan")]), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["clip", "siglip", "info_nce", "nt_xent"])
def test_spot_truth_is_dense_float64(name, parts, run, monkeypatch):
    monkeypatch.setattr(parts.truth, "SLAB", 200)
    loss = parts.losses.LOSSES[name]
    x, y = run.features(41, 7, torch.float64)
    value, dx, dy, _ = parts.run.loss_and_gradients(loss.dense, (x, y, run.scale().double()))
    truth, some = loss.truth(x, y, parts.losses.SCALE), torch.tensor([3, 40])
    # The scale is a float32 tensor to the dense formula.
    assert error(truth.gradient_rows(some), dx[some]) < 1e-6
    if name != "nt_xent":
        assert error(truth.transposed().gradient_rows(some), dy[some]) < 1e-6
        assert error(truth.loss(), value) < 1e-6


def test_a_peer_that_is_not_installed_is_named(parts):
    found = parts.peers.find(parts.peers.Peer("nowhere", "no_such_package", {}))
    assert found.module is None
    assert found.version.startswith("not installed")


def test_a_peer_that_raises_is_a_row_with_the_reason(parts, run):
    def raises(module, scale):
        raise TypeError("only for CUDA")

    peer = parts.peers.Peer("theirs", "math", {"clip": raises})
    limited = parts.peers.Peer("limited", "math", {"clip": raises}, limit=lambda n, d: "d must be 7")
    case = parts.timings.TimedCase("clip", 256, 512)
    rows, not_run = parts.timings.time_case(
        case, run, parts.run.Deadline(60), {"bfloat16": 1.0}, [parts.peers.find(p) for p in (peer, limited)]
    )
    by_name = {row.get("peer") or row["backend"]: row for row in rows}
    assert not_run == []
    assert by_name["tiled"]["failure"] is None
    assert by_name["tiled"]["ms"] > 0
    assert 0 < by_name["tiled"]["error"] < 0.05
    assert by_name["theirs"]["failure"] == "TypeError: only for CUDA"
    assert by_name["theirs"]["ms"] is None
    assert by_name["limited"]["failure"] == "ValueError: d must be 7"


def test_required_flop(parts):
    losses = parts.losses.LOSSES
    g = 2 * 1000 * 1000 * 64
    assert losses["clip"].required_flop(1000, 64, "forward") == g
    assert losses["clip"].required_flop(1000, 64, "both, graph") == 4 * g
    assert losses["siglip"].required_flop(1000, 64, "both") == 3 * g
    assert losses["nt_xent"].required_flop(1000, 64, "both") == 16 * g
