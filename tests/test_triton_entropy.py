"""Entropies of rows' softmaxes from the Triton backend's own forward, against dense float64."""

import math

import pytest
import torch
from truth import GUIDED, OPTIONS, Case, NetworkCase, assert_close, check_softmax_entropies

import simmim_kernels as sk
from simmim_kernels.backends import triton
from simmim_kernels.backends.triton import launch


@pytest.mark.parametrize("dims", ["rows", "both"])
@pytest.mark.parametrize("option", [*OPTIONS, *GUIDED])
def test_options(option, dims, small_tiles):
    check_softmax_entropies(Case(37, 53, 5, torch.float32, **(OPTIONS | GUIDED)[option]), dims)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 77), (77, 1), (17, 31), (31, 17), (65, 129), (129, 65)])
def test_shapes_and_dtypes(n, m, dtype, small_tiles):
    check_softmax_entropies(Case(n, m, 33, dtype, biases=True), "rows" if n % 2 else "both")


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("option", ["plain", "marginal, ids and clamp", "guide"])
def test_networks(option, layers, small_tiles):
    check_softmax_entropies(NetworkCase(21, 37, 7, torch.float32, layers=layers, **(OPTIONS | GUIDED)[option]))


@pytest.mark.parametrize("dims", ["rows", "both"])
@pytest.mark.parametrize("scale", [50.0, 1000.0])
def test_large_scores(scale, dims, small_tiles):
    """A score of size s is rounded to s 2^-24, and the entropy by as much."""
    case = Case(40, 90, 8, torch.float32, scale=scale, biases=True)
    check_softmax_entropies(case, dims, slack=scale * 2**-22)


@pytest.mark.parametrize("spread", [30, 300, 3000])
def test_rows_of_very_different_size(spread, small_tiles):
    case = Case(40, 60, 8, torch.float32, biases=True)
    case.tensors["row_bias"] = torch.linspace(-spread, spread, 40).requires_grad_()
    check_softmax_entropies(case, slack=spread * 2**-22)


def test_rows_without_pairs_and_scores_of_minus_infinity(small_tiles):
    case = Case(37, 70, 5, torch.float32, biases=True)
    with torch.no_grad():
        case.tensors["col_bias"][3:40] = -math.inf  # a whole tile, and parts of others
        case.tensors["row_bias"][[0, 20]] = -math.inf
    check_softmax_entropies(case)
    case = Case(37, 70, 5, torch.float32, ids=1)
    case.col_ids[:] = 1  # a third of the rows have this id
    check_softmax_entropies(case)
    case.row_ids[:] = 1
    check_softmax_entropies(case)


def test_extremes(small_tiles):
    """log M of equal scores, 0 of a row that one pair has to itself, and NaN where the scores have it."""
    x, y = torch.zeros(20, 4), torch.randn(100, 4)
    problem = sk.DotCritic()(x, y)._problem
    assert_close(triton.forward_with_entropies(problem)[2], torch.full((20,), math.log(100)).double())
    x[:, 0], y[:, 0], y[7, 0] = 1.0, 0.0, 500.0
    x[3, 1] = math.nan
    entropies = triton.forward_with_entropies(sk.DotCritic()(x, y)._problem)[2]
    assert torch.equal(entropies.isnan(), torch.arange(20) == 3)
    assert (entropies[torch.arange(20) != 3] == 0).all()


def test_products(small_tiles):
    """One look at the scores, as of the log-sum-exps alone."""
    problem = Case(37, 53, 5, torch.float32).scores(sk)._problem.replace(dims="both")
    with launch.counted_multiplications() as work:
        triton.forward_with_entropies(problem)
        assert work.multiplications == 37 * 53 * 5


def test_a_planted_error_is_seen(monkeypatch, small_tiles):
    """Entropies fail where a part's own is left out of the merge."""
    from simmim_kernels.backends.triton import merges

    merged = merges.merged_entropies

    def forget(before, entropy, values, entropies, shift):
        return merged(before, entropy, values, entropies * 0.0, shift)

    monkeypatch.setattr(merges, "merged_entropies", forget)
    with pytest.raises(AssertionError):
        check_softmax_entropies(Case(37, 53, 5, torch.float32))
