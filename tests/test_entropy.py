"""Entropies of softmaxes over scores, against dense ones."""

import pytest
import torch
from truth import BACKENDS

import simmim_kernels as sk


def dense(s):
    log_p = s.log_softmax(1)
    return -torch.where(log_p == -torch.inf, 0, log_p.exp() * log_p).sum(1)


@pytest.mark.parametrize("options", ["plain", "biases", "marginal", "ids"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_dense(backend, dtype, options):
    x, y = (torch.randn(n, 6, dtype=torch.float64).to(dtype) for n in (13, 17))
    low = torch.float64 if dtype == torch.float64 else torch.float32
    biases = {"row_bias": torch.randn(13, dtype=low), "col_bias": torch.randn(17, dtype=low)}
    scores = sk.PairwiseScores(x, y, scale=0.8, **(biases if options == "biases" else {}))
    if options == "marginal":
        scores = scores.marginal
    if options == "ids":
        scores = scores.exclude(torch.arange(13) % 3, torch.arange(17) % 3)
    want = dense(scores.dense().double())
    got = sk.softmax_entropy(scores, backend)
    assert not got.requires_grad
    assert got.dtype == low
    assert (got - want).abs().max() <= (1e-12 if dtype == torch.float64 else 2e-5)


def test_rows_of_one_pair_and_of_none():
    x = torch.randn(3, 4)
    scores = sk.DotCritic()(x, x).exclude(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    assert torch.allclose(sk.softmax_entropy(scores)[0], torch.tensor(0.0), atol=1e-6)
    empty = sk.DotCritic()(x, x).exclude(torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    assert (sk.softmax_entropy(empty) == 0).all()


def test_beside_a_cross_entropy():
    x, weight, bias = torch.randn(9, 5), torch.randn(12, 5), torch.randn(12)
    target = torch.arange(9)
    scores = sk.PairwiseScores(x, weight, col_bias=bias, positives=target)
    assert torch.allclose(scores.cross_entropy(1).mean(), sk.linear_cross_entropy(x, weight, target, bias))
    assert torch.allclose(sk.softmax_entropy(scores), dense(x @ weight.T + bias), atol=1e-5)


def test_what_has_no_entropy_is_named():
    scores = sk.DotCritic()(torch.randn(3, 4), torch.randn(3, 4))
    with pytest.raises(ValueError, match="not clamped"):
        sk.softmax_entropy(scores.clamp(-1, 1))
    with pytest.raises(TypeError, match="scores must be PairwiseScores"):
        sk.softmax_entropy(torch.zeros(3, 3))
