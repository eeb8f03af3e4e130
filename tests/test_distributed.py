"""Ranks of a process group beside one process that has all of their rows, in float64: the same numbers."""

import pytest
import sharded_cases as cases
import torch
from ranks import Ranks
from torch import Tensor

SCHEDULES = ("gather", "ring")


@pytest.fixture(scope="module")
def ranks():
    with Ranks() as started:
        yield started


def assert_same(got: Tensor, want: Tensor, what: str) -> None:
    assert got.shape == want.shape, (what, got.shape, want.shape)
    error = float((got - want).abs().max()) if got.numel() else 0.0
    assert error <= 1e-10 * max(1.0, float(want.abs().max()) if want.numel() else 0.0), f"{what}: {error:.3g}"


@pytest.fixture(scope="module")
def one_process():
    """Every loss of all rows."""
    return {name: cases.value_and_gradients(name, cases.tensors(), None) for name in cases.LOSSES}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("schedule", "averaging"), [("gather", True), ("ring", True), ("gather", False)])
def test_losses(ranks, one_process, world, schedule, averaging):
    found = ranks.run(world, cases.of_rank, schedule, averaging)
    for name, (value, gradients) in one_process.items():
        for own_value, _ in (of_rank[name] for of_rank in found):
            assert_same(own_value, value, name)
        for key, truth in gradients.items():
            parts = [of_rank[name][1][key] for of_rank in found]
            whole = sum(parts) if key.startswith("all/") else torch.cat(parts)
            assert_same(whole / world if averaging else whole, truth, f"{name}, by {key}")
