"""Entropies of softmaxes over scores, against dense ones, alone and beside the losses that return them."""

import math

import pytest
import torch
import torch.nn.functional as F
from truth import BACKENDS, softmax_entropies

import simmim_kernels as sk
from simmim_kernels.problem.softmax import entropy_of_rows, merged_entropy

N, M = 103, 211
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def ids(count):
    return torch.arange(count) % 3


OPTIONS = {
    "plain": lambda s: s,
    "marginal": lambda s: s.marginal,
    "clamped": lambda s: s.clamp(-1.0, 1.5),
    "ids": lambda s: s.exclude(ids(N), ids(M)),
    "ids, joint kept": lambda s: s.exclude(ids(N), ids(M), keep_joint=True),
    "groups": lambda s: s.within(torch.arange(N) // 40, torch.arange(M) // 40),
    "guide": lambda s: s.exclude_above(torch.ones(N, 1), torch.linspace(0, 1, M)[:, None], torch.linspace(-0.1, 1, N)),
}


def tolerance(dtype):
    return 1e-12 if dtype == torch.float64 else 2e-5


@pytest.mark.parametrize("size", [0.3, 60.0], ids=["small", "large"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_dense(backend, dtype, options, size, small_tiles):
    x, y = (torch.randn(n, 6, dtype=torch.float64).to(dtype) for n in (N, M))
    low = torch.float64 if dtype == torch.float64 else torch.float32
    biases = {"row_bias": torch.randn(N, dtype=low), "col_bias": torch.randn(M, dtype=low)}
    biases["col_bias"][5:9] = -torch.inf
    scores = options(sk.PairwiseScores(x, y, scale=size, **biases))
    got = sk.softmax_entropy(scores, backend)
    assert not got.requires_grad
    assert got.dtype == low
    # Scores of some hundred nats are themselves as far off as their last digits.
    near = tolerance(dtype) * (1 if size < 1 else 20)
    assert (got - softmax_entropies(scores.dense().double())).abs().max() <= near


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_a_network(backend):
    critic = sk.MLPCritic(4, 5, hidden=8).double()
    scores = critic(torch.randn(9, 4).double(), torch.randn(14, 5).double())
    assert torch.allclose(sk.softmax_entropy(scores, backend), softmax_entropies(scores.dense()), atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_one_pair_and_of_none(backend):
    x = torch.randn(3, 4)
    scores = sk.DotCritic()(x, x).exclude(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    assert torch.allclose(sk.softmax_entropy(scores, backend)[0], torch.tensor(0.0), atol=1e-6)
    empty = sk.DotCritic()(x, x).exclude(torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    assert (sk.softmax_entropy(empty, backend) == 0).all()


def test_parts_make_the_whole():
    s = torch.randn(7, 30, dtype=torch.float64) * 5
    s[0] = -torch.inf
    parts = [s[:, :4], s[:, 4:5], s[:, 5:]]
    whole = merged_entropy(torch.stack([p.logsumexp(1) for p in parts]), torch.stack([*map(entropy_of_rows, parts)]))
    assert torch.allclose(whole, softmax_entropies(s), atol=1e-13)
    assert torch.allclose(entropy_of_rows(torch.zeros(2, 8)), torch.tensor(math.log(8)))


CASES = {
    "in-batch keys": {},
    "symmetric": {"symmetric": True},
    "shared negatives": {"negative_keys": (M, 6)},
    "negatives of each query": {"negative_keys": (N, 5, 6)},
}


@pytest.mark.parametrize("options", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_beside_info_nce(backend, reduction, options):
    options = dict(options)
    q, k = (torch.randn(N, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    if "negative_keys" in options:
        options["negative_keys"] = torch.randn(options["negative_keys"], dtype=torch.float64)
    arguments = {**options, "temperature": 0.2, "reduction": reduction}
    want = sk.info_nce_loss(q, k, **arguments)
    with sk.use_backend(backend) if backend else torch.enable_grad():
        got, entropies = sk.info_nce_loss(q, k, **arguments, return_entropy=True)
    a, b = F.normalize(q, dim=1), F.normalize(k, dim=1)
    s = a @ b.T
    if "negative_keys" in options:
        keys = F.normalize(options["negative_keys"], dim=-1)
        others = a @ keys.T if keys.dim() == 2 else torch.einsum("nd,nkd->nk", a, keys)
        s = torch.cat([s.diagonal()[:, None], others], 1)
    torch.testing.assert_close(entropies, softmax_entropies(s / 0.2).detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    found, truth = (torch.autograd.grad(v.sum(), (q, k)) for v in (got, want))
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_beside_a_cross_entropy_over_classes(backend, smoothing):
    x, weight, bias = (torch.randn(*size, dtype=torch.float64) for size in ((90, 5), (120, 5), (120,)))
    target = torch.arange(90)
    target[3] = -100
    x.requires_grad_()
    want = F.cross_entropy(x @ weight.T + bias, target, label_smoothing=smoothing)
    module = sk.LinearCrossEntropyLoss(label_smoothing=smoothing, return_entropy=True)
    with sk.use_backend(backend) if backend else torch.enable_grad():
        got, entropies = module(x, weight, target, bias)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropies, softmax_entropies(x @ weight.T + bias).detach(), rtol=1e-10, atol=1e-10)
    found, truth = (torch.autograd.grad(v, x)[0] for v in (got, want))
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


def test_one_look_at_the_scores(monkeypatch):
    """The loss's own pass makes them: the scores are made once, where softmax_entropy beside it would be twice."""
    from simmim_kernels.backends import tiled

    looks = []
    inner = tiled.forward_with_entropies
    monkeypatch.setattr(tiled, "forward_with_entropies", lambda p: looks.append(p.dims) or inner(p))
    monkeypatch.setattr(tiled, "forward", None)
    with sk.use_backend("tiled"):
        sk.info_nce_loss(torch.randn(20, 4), torch.randn(20, 4), return_entropy=True)
    assert looks == ["rows"]


def test_compiled():
    def step(x, y):
        loss, entropies = sk.info_nce_loss(x, y, return_entropy=True)
        loss.backward()
        return entropies

    x, y = torch.randn(30, 4, requires_grad=True), torch.randn(30, 4)
    want = step(x, y)
    torch.testing.assert_close(torch.compile(step, backend="aot_eager", fullgraph=False)(x, y), want)


def test_what_is_wrong_is_named():
    with pytest.raises(TypeError, match="scores must be PairwiseScores"):
        sk.softmax_entropy(torch.zeros(3, 3))
    with pytest.raises(TypeError, match="return_entropy must be True or False"):
        sk.info_nce_loss(torch.randn(3, 2), torch.randn(3, 2), return_entropy=1)
    with pytest.raises(TypeError, match="return_entropy must be True or False"):
        sk.LinearCrossEntropyLoss(return_entropy="yes")
