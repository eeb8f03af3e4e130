"""The concatenated MLP on the native backend, of one hidden layer and of two, against dense float64."""

import math

import pytest
import torch
from truth import OPTIONS, NetworkCase, assert_close, check_statistic, gradients, weighted

import simmim_kernels as sk
from simmim_kernels.backends import BACKENDS, select
from simmim_kernels.backends.native.library import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"the native library: {why_not()}")

ALL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Scores of a network have no biases.
WITHOUT_BIASES = {name: {**options, "biases": False} for name, options in OPTIONS.items() if name != "biases"}


@pytest.mark.parametrize("options", WITHOUT_BIASES.values(), ids=list(WITHOUT_BIASES))
@pytest.mark.parametrize("dim", [1, 0, (0, 1)], ids=str)
@pytest.mark.parametrize("fn", ["logsumexp", "softplus"])
@pytest.mark.parametrize("layers", [1, 2])
def test_options(layers, fn, dim, options, instruction_set):
    check_statistic(sk, NetworkCase(37, 53, 5, layers=layers, **options), fn, dim, "native")


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [
        (1, 1, 1),
        (2, 3, 7),
        (17, 5, 16),
        (5, 95, 33),
        (97, 17, 64),
        (3, 1100, 17),
        (200, 97, 40),
        (5, 3, 512),
        (9, 6, 300),
    ],
)
@pytest.mark.parametrize("layers", [1, 2])
def test_shapes_and_dtypes(layers, n, m, d, dtype, instruction_set, threads):
    case = NetworkCase(n, m, d, dtype, layers=layers)
    for fn, dim in (("logsumexp", 1), ("logsumexp", 0), ("softplus", (0, 1))):
        check_statistic(sk, case, fn, dim, "native")


@pytest.mark.parametrize("layers", [1, 2])
def test_rows_and_columns_in_one_pass(layers, instruction_set, threads):
    case = NetworkCase(130, 210, 24, torch.float32, layers=layers, joint="left_out")
    got, wide = case.scores(sk).logsumexps(backend="native"), case.upcast()
    want = [case.statistic(wide, "logsumexp", dim) for dim in (1, 0)]
    for found, true in zip(got, want, strict=True):
        assert_close(found.detach(), true.detach())
    found = gradients(sum(weighted(value) for value in got), case.tensors)
    truth = gradients(sum(weighted(value) for value in want), wide)
    for name in case.tensors:
        assert_close(found[name], truth[name], name=name)


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_of_some(layers, instruction_set):
    """Of the parameters alone, or of one side: they are the same whatever else is wanted."""
    case = NetworkCase(40, 110, 9, layers=layers)
    value = weighted(case.scores(sk).logsumexp(1, backend="native"))
    every = gradients(value, case.tensors)
    for name, tensor in case.tensors.items():
        leaves = {k: t.detach().requires_grad_(k == name) for k, t in case.tensors.items()}
        alone = NetworkCase(40, 110, 9, layers=layers)
        alone.tensors = leaves
        (found,) = torch.autograd.grad(weighted(alone.scores(sk).logsumexp(1, backend="native")), leaves[name])
        assert torch.equal(found, every[name]), name
        assert found.shape == tensor.shape


@pytest.mark.parametrize("layers", [1, 2])
def test_results_do_not_depend_on_who_was_faster(layers, threads):
    def run():
        case = NetworkCase(200, 300, 48, torch.float32, layers=layers)
        value = weighted(case.scores(sk).logsumexp(0, backend="native"))
        return [value.detach(), *gradients(value, case.tensors).values()]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_not_finite(layers, instruction_set):
    """NaN is seen in its row and in no other; a unit that is -inf in a row is off there."""
    case = NetworkCase(7, 20, 6, layers=layers)
    with torch.no_grad():
        case.tensors["x"][2, 3] = math.nan
    rows = case.scores(sk).logsumexp(1, backend="native")
    assert rows.isnan().nonzero().tolist() == [[2]]
    (dx,) = torch.autograd.grad(rows.sum(), case.tensors["x"])
    assert dx[2].isnan().any()
    assert dx[[0, 1, 3, 4, 5, 6]].isfinite().all()
    with torch.no_grad():
        case.tensors["x"][2, 3] = -math.inf
    check_statistic(sk, case, "logsumexp", 1, "native")


def test_what_it_runs():
    def chosen(layers):
        critic = sk.MLPCritic(3, 3, hidden=4, layers=layers)
        return select(critic(torch.randn(4, 3), torch.randn(4, 3))._problem)

    assert [chosen(layers) for layers in (1, 2, 3)] == ["native", "native", "tiled"]
    scores = sk.MLPCritic(3, 3, hidden=4, layers=3)(torch.randn(4, 3), torch.randn(4, 3))
    with pytest.raises(RuntimeError, match="of 3 hidden layers has no native kernel, those of 1 and 2 have"):
        scores.logsumexp(1, backend="native")


@pytest.mark.parametrize("name", ["y", "weight", "weight_bias", "output"])
def test_a_planted_error_is_seen(monkeypatch, name):
    backward, names = BACKENDS["native"].backward, ("x", "y", "row_bias", "col_bias", "weight", "weight_bias", "output")

    def off(*arguments):
        found = backward(*arguments)
        found[names.index(name)].view(-1)[3] *= 1.001
        return found

    monkeypatch.setattr(BACKENDS["native"], "backward", off)
    with pytest.raises(AssertionError, match=f"{name}: error"):
        check_statistic(sk, NetworkCase(37, 53, 5, layers=2), "logsumexp", 1, "native")
