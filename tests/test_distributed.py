"""Ranks of a process group beside one process that has all of their rows, in float64: the same numbers."""

import math
from pathlib import Path

import pytest
import sharded_cases as cases
import sharded_jobs as jobs
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import Failed, Ranks
from torch import Tensor
from truth import BACKENDS

import simmim_kernels as sk
from benchmarks.distributed import cost, table

SCHEDULES = ("gather", "ring")


@pytest.fixture(scope="module")
def ranks():
    with Ranks() as started:
        yield started


def assert_same(got: Tensor, want: Tensor, what: str, tolerance: float = 1e-10) -> None:
    assert got.shape == want.shape, (what, got.shape, want.shape)
    if not want.numel():
        return
    assert torch.equal(got.isfinite(), want.isfinite()), what
    got, want = (t.where(t.isfinite(), t.sign()) for t in (got, want))
    error = float((got - want).abs().max())
    assert error <= tolerance * max(1.0, float(want.abs().max())), f"{what}: {error:.3g}"


@pytest.fixture(scope="module")
def one_process():
    """Every loss of all rows."""
    return {name: cases.value_and_gradients(name, cases.tensors(), None) for name in cases.LOSSES}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("schedule", "averaging"), [("gather", True), ("ring", True), ("gather", False)])
def test_losses(ranks, one_process, world, schedule, averaging):
    compare(one_process, ranks.run(world, cases.of_rank, schedule, averaging, not averaging), averaging)


@pytest.mark.gpu
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_losses_on_a_gpu(one_process, schedule):
    """One rank of NCCL."""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        compare(one_process, [cases.of_rank(dist.group.WORLD, schedule, True, device="cuda")], True)
    finally:
        dist.destroy_process_group()


def compare(one_process: dict, found: list[dict], averaging: bool) -> None:
    """What ranks have of every loss, and what one process has."""
    world = len(found)
    for name, (value, gradients) in one_process.items():
        for own_value, _ in (of_rank[name] for of_rank in found):
            assert_same(own_value.cpu(), value, name)
        for key, truth in gradients.items():
            parts = [of_rank[name][1][key].cpu() for of_rank in found]
            whole = sum(parts) if key.startswith("all/") else torch.cat(parts)
            assert_same(whole / world if averaging else whole, truth, f"{name}, by {key}")


counts = st.lists(st.integers(0, 5), min_size=1, max_size=4)
options = st.fixed_dictionaries(
    {
        "biases": st.booleans(),
        "clamp": st.booleans(),
        "ids": st.integers(0, 2),
        "groups": st.integers(0, 2),
        "joint": st.sampled_from(["counted", "left_out", "kept"]),
        "guide": st.booleans(),
    }
)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(counts, st.data(), options, st.sampled_from(SCHEDULES), st.sampled_from(BACKENDS), st.integers(0, 99))
def test_configurations(ranks, rows, data, options, schedule, backend, seed):
    rows[0] += 1
    columns = data.draw(st.lists(st.integers(0, 5), min_size=len(rows), max_size=len(rows)))
    columns[-1] += 2
    options = options | {"guide": options["guide"] and backend in ("reference", "tiled")}
    compare_configuration(ranks, options, tuple(rows), tuple(columns), seed, schedule, backend)


@pytest.mark.parametrize("joint", ["counted", "left_out", "kept"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_guide(ranks, schedule, joint):
    """Its features go where the candidates' do, with ids, biases and joint pairs as without ranks."""
    options = {"biases": True, "clamp": False, "ids": 1, "groups": 0, "joint": joint, "guide": True}
    for backend in ("reference", "tiled"):
        compare_configuration(ranks, options, (4, 0, 3), (3, 6, 0), 1, schedule, backend)


def compare_configuration(ranks, options, rows, columns, seed, schedule, backend) -> None:
    arguments = (options, rows, columns, seed, schedule, backend)
    want = jobs.configuration(None, *arguments[:-1], "reference")
    found = ranks.run(len(rows), jobs.configuration, *arguments)
    for kind in ("rows", "columns"):
        for k, truth in enumerate(want[kind]):
            assert_same(torch.cat([part[kind][k] for part in found]), truth, f"{kind} {k}")
    for part in found:
        assert_same(part["total"], want["total"], "total")
    for name, truth in want["gradients"].items():
        parts = [part["gradients"][name] for part in found]
        assert_same(sum(parts) if name.startswith("all/") else torch.cat(parts), truth, name)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_readouts(ranks, schedule):
    want = jobs.readouts(None, schedule)
    for found in ranks.run(3, jobs.readouts, schedule):
        for name, value in want.items():
            assert_same(found[name], value, name)


def whole_batch(world: int) -> list[Tensor]:
    return [torch.cat(parts).detach().requires_grad_() for parts in zip(*map(jobs.features, range(world)), strict=True)]


def test_losses_of_own_anchors(ranks):
    """As drop-ins have them on request: gradients are those of the sum over ranks."""
    world = 3
    x, y = whole_batch(world)
    values = sk.nt_xent_loss(x, y, 0.3, "none").view(2, world, -1).mean((0, 2))
    truths = torch.autograd.grad(values.sum(), (x, y))
    found = ranks.run(world, jobs.of_own_anchors)
    for rank, (value, *gradients) in enumerate(found):
        assert_same(value, values[rank].detach(), "value")
        for gradient, truth in zip(gradients, truths, strict=True):
            assert_same(gradient, truth.chunk(world)[rank], "gradient")


@pytest.mark.parametrize("averaging", [True, False])
def test_whole_gradient_of_a_scale(ranks, averaging):
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(sk.clip_loss(*whole_batch(3), scale), scale)
    for found in ranks.run(3, jobs.gradient_of_scale, averaging):
        assert_same(found, want, "scale")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("world", [2, 4])
def test_no_rank_does_anothers_work(ranks, schedule, world):
    """4 products of this rank's n rows and all N columns: 4 g / W, whose sum over ranks is one process's 4 g."""
    assert ranks.run(world, jobs.counted_pairs, schedule, "clip_loss", 6) == [4.0] * world
    assert ranks.run(world, jobs.counted_pairs, schedule, "siglip_loss", 6) == [3.0] * world


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_traffic_is_that_of_the_cost_model(ranks, schedule, dtype):
    world, n, d = 4, 6, 16
    want = cost(world, n, d, schedule, dtype.itemsize)
    for sent in ranks.run(world, jobs.traffic, schedule, n, d, dtype):
        assert sum(sent.values()) == want.sent


def test_ring_holds_no_more_than_a_shard(ranks):
    """64 rows of 256 features on each of 4 ranks: no tensor of all 256 rows is made, nor one of two shards."""
    assert ranks.run(4, jobs.largest_tensor, "ring", 64, 256) == [64 * 256] * 4
    assert ranks.run(4, jobs.largest_tensor, "ring", 64, 256, True) == [64 * 256] * 4  # with a guide as wide
    assert ranks.run(2, jobs.largest_tensor, "ring", 64, 256) == [64 * 256] * 2
    assert ranks.run(4, jobs.largest_tensor, "gather", 64, 256) == [4 * 64 * 256] * 4


def test_shapes_are_told_every_time_or_once(ranks):
    for fixed, often in ((False, 3), (True, 1)):
        for sent in ranks.run(3, jobs.told, fixed):
            assert [count > 0 for count in sent] == [k < often for k in range(3)]
            assert max(sent) <= 2 * 120


@pytest.mark.parametrize(
    "what",
    ["d", "dtype", "schedule", "averaging", "requires_grad", "col_bias", "kind of scores", "d of the guide"],
)
def test_ranks_that_do_not_go_together_all_raise(ranks, what):
    for failed in ranks.outcomes(3, jobs.mismatched, what):
        assert isinstance(failed, Failed)
        assert failed.type == "ValueError"
        assert what in failed.message
        assert "ranks 0, 2" in failed.message
        assert "rank 1" in failed.message


def test_a_batch_without_rows_raises(ranks):
    for failed in ranks.outcomes(2, jobs.without_rows):
        assert (failed.type, "none on any" in failed.message) == ("ValueError", True)


def test_groups_that_are_none_are_named(ranks):
    words = ("must be a ProcessGroup", "of one dimension", "gather, ring", ".to_local()", "that this rank is in")
    for found in ranks.run(4, jobs.wrong_groups):
        assert all(word in message for word, message in zip(words, found, strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nan_on_one_rank_is_nan_on_all(ranks, schedule):
    for found in ranks.run(3, jobs.not_a_number, schedule):
        assert all(found)


def test_a_rank_that_dies_is_an_error_of_the_others():
    with Ranks(2) as started:
        survivor, dead = started.outcomes(2, jobs.dies)
    assert dead is None
    assert survivor.type in ("RuntimeError", "DistBackendError")


@pytest.mark.parametrize("wrapped", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("how", "schedule"),
    [
        ("plain", "gather"),
        ("plain", "ring"),
        ("accumulation", "gather"),
        ("checkpointing", "ring"),
        ("autocast", "gather"),
    ],
)
def test_training_is_that_of_one_process(ranks, wrapped, how, schedule):
    world = 3
    want = jobs.trained(None, f"alone {world}", how)
    # Under autocast what rounds is the products of a rank's own rows.
    tolerance = 2e-2 if how == "autocast" else 1e-10
    for found in ranks.run(world, jobs.trained, wrapped, how, schedule):
        assert found.keys() == want.keys()
        for name, truth in want.items():
            assert_same(found[name], truth, name, tolerance)


@pytest.mark.parametrize("name", ["clip", "nt_xent"])
def test_compiled_whole(ranks, name):
    """With fixed shapes there is no break in the graph."""
    for errors_and_breaks in ranks.run(2, jobs.compiled, name, "gather", True):
        assert max(errors_and_breaks) <= 1e-10


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_compiled_with_breaks(ranks, schedule):
    for *errors, breaks in ranks.run(2, jobs.compiled, "clip", schedule, False):
        assert breaks
        assert max(errors) <= 1e-10


def test_second_derivatives(ranks):
    """Of what ranks make of their gradients, summed: that of one process, whose gradient has all of these parts."""
    want = jobs.twice_differentiated(None, "gather")
    found = torch.cat(ranks.run(2, jobs.twice_differentiated, "gather"))
    assert_same(found, want, "second derivatives")
    for failed in ranks.outcomes(2, jobs.twice_differentiated, "ring"):
        assert (failed.type, 'schedule="gather"' in failed.message) == ("NotImplementedError", True)


def test_the_demo_learns_as_in_one_process(ranks):
    want = torch.tensor(jobs.demo_curve(None, 6))
    for found in ranks.run(3, jobs.demo_curve, 6):
        torch.testing.assert_close(torch.tensor(found), want, rtol=1e-4, atol=1e-5)


def test_cost_model():
    """What the page says of it: ring's memory does not grow with W, gather's does; the work of a rank does."""
    assert table() in (Path(__file__).parents[1] / "docs" / "distributed.md").read_text()
    small, large = (cost(world, 1024, 512, "ring", 2) for world in (8, 64))
    assert large.features == small.features
    assert cost(64, 1024, 512, "gather", 2).features > 6 * cost(8, 1024, 512, "gather", 2).features
    assert large.flop == 8 * small.flop
    assert math.isclose(large.sent / small.sent, 64 / 8, rel_tol=0.2)
