"""The table of backends and the choice among them."""

import sys
import types

import pytest
import torch
from truth import Case, assert_close, gradients, run

import simmim_kernels as sk
from simmim_kernels.backends import BACKENDS, cuda, native, reference, tiled, triton
from simmim_kernels.backends.native.library import why_not

X = torch.randn(5, 3)

# sk.backends is the function of the contract, which hides the package of the same name.
registry = sys.modules["simmim_kernels.backends"]


@pytest.fixture
def spy(monkeypatch):
    """A backend that supports inner products only, and remembers that it ran."""
    ran = []

    def forward(problem):
        ran.append("forward")
        return reference.forward(problem)

    def backward(*arguments):
        ran.append("backward")
        return reference.backward(*arguments)

    module = types.SimpleNamespace(
        unavailable=lambda: None,
        not_by_default=lambda device: None,
        forward=forward,
        backward=backward,
        ran=ran,
        supports=lambda p: None if p.form == "inner_product" else f"the form {p.form!r} is not supported",
    )
    monkeypatch.setitem(BACKENDS, "spy", module)
    return module


def test_table():
    found = sk.backends()
    assert list(found) == ["cuda", "triton", "native", "tiled", "reference"]
    assert found.pop("native") == (why_not() or "available")
    assert found.pop("cuda") == (cuda.unavailable() or "available")
    assert set(found.values()) == {"available"}


def test_the_first_that_supports_the_problem_is_the_default(monkeypatch, spy):
    monkeypatch.setattr(registry, "BACKENDS", {"spy": spy, **BACKENDS})
    sk.DotCritic()(X, X).logsumexp(1)
    assert spy.ran == ["forward"]
    sk.MLPCritic(3, 3, hidden=4)(X, X).logsumexp(1)
    assert spy.ran == ["forward"]


def test_few_scores_are_held_where_nothing_was_asked_for(monkeypatch, spy):
    monkeypatch.setattr(registry, "BACKENDS", {"spy": spy, **BACKENDS})
    monkeypatch.setattr("simmim_kernels.operator.held.HELD_SCORES", 25)
    case = Case(5, 5, 3, biases=True, clamp=(-0.5, 0.5))
    wide = case.upcast()
    for fn, dim in (("logsumexp", 1), ("logsumexp", (0, 1)), ("softplus", 0)):
        got, want = run(sk, case.scores(sk), fn, dim, None), case.statistic(wide, fn, dim)
        assert_close(got.detach(), want.detach())
        truth = gradients(want.sum(), wide)
        for name, found in gradients(got.sum(), case.tensors).items():
            assert_close(found, truth[name], name=name)
    assert spy.ran == []
    case.scores(sk).marginal.logsumexp(1)
    Case(5, 6, 3).scores(sk).logsumexp(1)
    sk.MLPCritic(3, 3, hidden=4)(X, X).logsumexp(1)
    assert spy.ran == ["forward"] * 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        held = sk.DotCritic()(X, X).logsumexp(1)
    assert_close(held, (X.bfloat16().double() @ X.bfloat16().double().T).logsumexp(1))


def test_choice_by_argument_context_and_environment(monkeypatch, spy):
    sk.DotCritic()(X, X).logsumexp(1, backend="spy")
    assert spy.ran == ["forward"]
    with sk.use_backend("spy"):
        sk.DotCritic()(X, X).logsumexp(1)
        with sk.use_backend("tiled"):
            sk.DotCritic()(X, X).logsumexp(1)
        sk.DotCritic()(X, X).sum(0)
    assert spy.ran == ["forward"] * 3
    sk.DotCritic()(X, X).logsumexp(1)
    assert spy.ran == ["forward"] * 3
    monkeypatch.setenv("SIMMIM_KERNELS_BACKEND", "spy")
    sk.DotCritic()(X, X).logsumexp(1)
    assert spy.ran == ["forward"] * 4


def test_the_backward_runs_where_the_forward_did(spy):
    x = X.clone().requires_grad_()
    with sk.use_backend("spy"):
        value = sk.DotCritic()(x, X).logsumexp(1)
    value.sum().backward()
    assert spy.ran == ["forward", "backward"]


def test_one_asked_for_by_name_that_cannot_run_raises_with_the_reason(monkeypatch, spy):
    scores = sk.MLPCritic(3, 3, hidden=4)(X, X)
    with pytest.raises(
        RuntimeError, match=r"backend 'spy' was asked for \(backend\).*'concatenated_mlp' is not supported"
    ):
        scores.logsumexp(1, backend="spy")
    with sk.use_backend("spy"), pytest.raises(RuntimeError, match="use_backend"):
        scores.logsumexp(1)
    monkeypatch.setattr(spy, "unavailable", lambda: "no such machine")
    assert sk.backends()["spy"] == "no such machine"
    with pytest.raises(RuntimeError, match="no such machine"):
        sk.DotCritic()(X, X).logsumexp(1, backend="spy")


def test_unknown_names_raise(monkeypatch):
    with (
        pytest.raises(
            ValueError, match="use_backend must name one of cuda, triton, native, tiled, reference; got 'no-such'"
        ),
        sk.use_backend("no-such"),
    ):
        pass
    with pytest.raises(ValueError, match="got 'no-such'"):
        sk.DotCritic()(X, X).sum(1, backend="no-such")
    monkeypatch.setenv("SIMMIM_KERNELS_BACKEND", "no-such")
    with pytest.raises(ValueError, match="SIMMIM_KERNELS_BACKEND must name one of"):
        sk.DotCritic()(X, X).sum(1)


def test_no_backend_at_all(monkeypatch):
    for module in (cuda, triton, native, tiled, reference):
        monkeypatch.setattr(module, "supports", lambda problem: "not today")
    with pytest.raises(
        RuntimeError,
        match=r"no backend can run this: cuda: .*; triton: .*; native: .*; tiled: not today; reference: not today",
    ):
        sk.DotCritic()(X, X).logsumexp(1)
