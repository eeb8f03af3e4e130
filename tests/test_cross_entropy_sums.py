"""Sums of cross entropies that come with their gradients, from one call of the native backend."""

import pytest
import torch
from torch import Tensor
from truth import ENTROPIES, Case, assert_close, gradients

import simmim_kernels as sk
from simmim_kernels.backends import native
from simmim_kernels.backends.native.library import why_not
from simmim_kernels.operator.cross_entropy import cross_entropy_sum

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"the native library: {why_not()}")


def truth(case: Case, dims: str, weights: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    wide, rows = case.upcast(), torch.arange(case.n)
    column = rows if case.column is None else case.column
    s = case.dense(wide)
    joint, s = s[rows, column], s.masked_fill(case.mask(), -torch.inf)
    entropies = s.logsumexp(1) - joint
    if dims == "both":
        entropies = entropies + s.logsumexp(0)[: case.n] - joint
    value = (entropies if weights is None else weights.double() * entropies).sum() / 7
    return value.detach(), gradients(value, wide)


def weights_of(case: Case) -> Tensor:
    return (torch.arange(case.n) % 3).to(torch.float32)


def check(case: Case, weighted: bool) -> None:
    weights = weights_of(case) if weighted else None
    for dims in ("rows",) if case.column is not None else ("rows", "both"):
        got = cross_entropy_sum(case.scores(sk)._problem, dims, 7, weights)
        value, want = truth(case, dims, weights)
        assert_close(got.detach(), value)
        for name, gradient in gradients(2 * got, case.tensors).items():
            if want[name].abs().max() < 1e-12:  # a row's bias, which is in all its scores
                assert gradient.abs().max() < 1e-6
            else:
                assert_close(gradient, 2 * want[name], name=name)


@pytest.mark.parametrize("options", ENTROPIES.values(), ids=list(ENTROPIES))
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 3), (5, 9, 1), (97, 97, 33), (130, 1100, 16)])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_options(n, m, d, weighted, options, instruction_set, threads):
    check(Case(n, m, d, **options), weighted)


@pytest.mark.parametrize("options", ENTROPIES.values(), ids=list(ENTROPIES))
@pytest.mark.parametrize(("n", "m", "d", "rows"), [(5, 9, 1, 2), (130, 1100, 16, 50)])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_by_strips_of_rows(n, m, d, rows, weighted, options, instruction_set, threads, monkeypatch):
    monkeypatch.setattr(native, "_rows_at_once", lambda problem: 0 if problem.wants_columns else rows)
    check(Case(n, m, d, **options), weighted)


def test_strips_are_of_rows_alone_and_large_enough(monkeypatch):
    asked = []
    original = native._rows_at_once
    monkeypatch.setattr(native, "_rows_at_once", lambda problem: asked.append(original(problem)) or asked[-1])
    x, y = torch.randn(1000, 4, requires_grad=True), torch.randn(8000, 4, requires_grad=True)
    targets = torch.arange(1000)
    torch.autograd.grad(sk.linear_cross_entropy(x, y, targets), (x, y))
    # 8,000 columns, rounded up to 8,064 numbers of 4 bytes: 520 rows in 16 MB, and so two strips of 500.
    assert set(asked) == {500}
    asked.clear()
    torch.autograd.grad(sk.clip_loss(x, y[:1000], 3.0), x)  # by column, too
    torch.autograd.grad(sk.info_nce_loss(x, x, normalize=False), x)  # symmetric: half the scores are made twice
    wide = torch.randn(17_000, 4)
    torch.autograd.grad(sk.linear_cross_entropy(x, wide, targets), x)  # of which 246 rows would fit
    assert set(asked) == {0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype, instruction_set, threads):
    case = Case(130, 300, 33, dtype)
    value, want = truth(case, "both", None)
    got = cross_entropy_sum(case.scores(sk)._problem, "both", 7)
    assert_close(got.detach(), value)
    for name, gradient in gradients(got, case.tensors).items():
        allowed = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        assert (gradient.double() - want[name]).norm() <= allowed * want[name].norm(), name


def test_second_derivatives():
    case = Case(5, 7, 3, biases=True)
    tensors = tuple(case.tensors[name] for name in ("x", "y", "scale", "row_bias", "col_bias"))

    def total(x, y, scale, row_bias, col_bias, weights=None):
        scores = sk.PairwiseScores(x, y, scale=scale, row_bias=row_bias, col_bias=col_bias)
        return cross_entropy_sum(scores._problem, "both", 7.0, weights)

    for weights in (None, weights_of(case).double()):
        assert torch.autograd.gradcheck(lambda *t, weights=weights: total(*t, weights), tensors)
        assert torch.autograd.gradgradcheck(lambda *t, weights=weights: total(*t, weights), tensors)
    assert torch.autograd.gradgradcheck(lambda x: total(x, x, tensors[2], None, None), tensors[:1])


def test_what_has_no_weight_may_be_infinite():
    x, y = torch.randn(6, 3), torch.randn(6, 3).requires_grad_()
    bias = torch.zeros(6)
    bias[4] = -torch.inf
    target, ignored = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([0, 1, 2, 3, -100, 5])
    assert sk.linear_cross_entropy(x, y, target, bias) == torch.inf
    loss = sk.linear_cross_entropy(x, y, ignored, bias)
    want = torch.nn.functional.cross_entropy(x.double() @ y.double().T + bias, ignored)
    assert_close(loss.detach(), want.detach())
    assert torch.autograd.grad(loss, y)[0].isfinite().all()


def test_nothing_has_any_weight():
    x, y = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3)
    loss = sk.linear_cross_entropy(x, y, torch.full((6,), -100))
    assert loss.isnan()
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros(6, 3))


def test_few_scores_are_one_call_and_many_are_two(monkeypatch):
    calls = []
    for name in ("cross_entropy_sum", "cross_entropies", "cross_entropy_gradients"):
        function = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, f=function, name=name: calls.append(name) or f(*a))
    x, y = (torch.randn(40, 5, requires_grad=True) for _ in range(2))
    one = torch.autograd.grad(sk.clip_loss(x, y, 3.0), (x, y))
    assert calls == ["cross_entropy_sum"]
    monkeypatch.setattr(native, "KEPT_SCORES", 40 * 39)
    two = torch.autograd.grad(sk.clip_loss(x, y, 3.0), (x, y))
    assert calls[1:] == ["cross_entropies", "cross_entropy_gradients"]
    for a, b in zip(one, two, strict=True):
        assert_close(a, b.double())


def test_without_gradients():
    x, y = torch.randn(40, 5), torch.randn(40, 5)
    loss = sk.clip_loss(x, y, 3.0)
    assert not loss.requires_grad
    with sk.use_backend("reference"):
        assert_close(loss, sk.clip_loss(x.double(), y.double(), 3.0))
