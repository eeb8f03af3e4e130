"""In-batch ranking, paired negatives, alignment and uniformity, and DCL's weights, against dense formulas."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from truth import BACKENDS

import simmim_kernels as sk

N, D = 7, 5
DIRECTIONS = [
    ("query_to_doc",),
    ("query_to_doc", "doc_to_query"),
    ("query_to_doc", "query_to_query"),
    ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
]
OPTIONS = [
    {"directions": d, "partition_mode": p, "hardness_mode": h, "hardness_strength": 0.0 if h is None else 3.0}
    for d, p, h in itertools.product(
        DIRECTIONS, ("joint", "per_direction"), (None, "in_batch_negatives", "hard_negatives", "all_negatives")
    )
    if p == "joint" or not {"query_to_query", "doc_to_doc"} & set(d)
]


def features(count, n=N, dtype=torch.float64):
    g = torch.Generator().manual_seed(n)
    return [torch.randn(n, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(count)]


def dense(q, docs, scale, directions, partition_mode, hardness_mode, hardness_strength):
    """(N,) as sentence-transformers 6.2 has it."""
    n, own = len(q), torch.eye(len(q), dtype=torch.bool).repeat(1, len(docs))
    everything = torch.cat(docs)
    similarity = {"query_to_doc": q @ everything.T}
    if "query_to_query" in directions:
        similarity["query_to_query"] = q @ q.T
    if "doc_to_query" in directions:
        similarity["doc_to_query"] = docs[0] @ q.T
    if "doc_to_doc" in directions:
        similarity["doc_to_doc"] = docs[0] @ everything.T
    penalty = hardness_strength * similarity["query_to_doc"].detach()
    first = torch.arange(own.shape[1]) < n
    penalised = {
        None: torch.zeros_like(own),
        "in_batch_negatives": ~own,
        "hard_negatives": own & ~first,
        "all_negatives": ~(own & first),
    }[hardness_mode]
    left_out = {"query_to_query": torch.eye(n, dtype=torch.bool), "doc_to_doc": own}
    scores = {
        key: (scale * value).masked_fill(left_out.get(key, torch.zeros_like(value, dtype=torch.bool)), -torch.inf)
        for key, value in similarity.items()
    }
    scores["query_to_doc"] = scores["query_to_doc"] + torch.where(penalised, penalty, 0)
    positive = scores["query_to_doc"].diagonal()
    if partition_mode == "joint":
        return torch.cat(list(scores.values()), dim=1).logsumexp(1) - positive
    return torch.stack([value.logsumexp(1) for value in scores.values()]).mean(0) - positive


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_ranking_against_dense(options, negatives):
    q, *docs = features(2 + negatives)
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    leaves, normalize = [q, *docs, temperature], options["partition_mode"] == "joint"
    operands = [F.normalize(t, dim=1) for t in (q, *docs)] if normalize else [q, *docs]
    want = dense(operands[0], operands[1:], 1 / temperature, **options)
    truths = torch.autograd.grad(want.square().sum(), leaves, retain_graph=True)
    for backend in BACKENDS:
        with sk.use_backend(backend):
            got = sk.ranking_loss(q, docs[0], docs[1:], temperature, "none", normalize=normalize, **options)
            found = torch.autograd.grad(got.square().sum(), leaves)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        for gradient, truth in zip(found, truths, strict=True):
            torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_ranking_of_one_query(options):
    q, *docs = features(3, n=1)
    for given in (docs[:1], docs):
        loss = sk.ranking_loss(q, given[0], given[1:], **options)
        operands = [F.normalize(t, dim=1) for t in (q, *given)]
        torch.testing.assert_close(
            loss, dense(operands[0], operands[1:], 20.0, **options).mean(), rtol=1e-10, atol=1e-14
        )
        assert torch.autograd.grad(loss, q)[0].isfinite().all()


def test_ranking_names_wrong_arguments():
    q, p = features(2)
    for options, message in (
        ({"directions": ("doc_to_doc",)}, "directions must be a sequence with 'query_to_doc' in it"),
        ({"directions": ("query_to_doc", "up")}, "directions must be one of"),
        ({"partition_mode": "per_direction", "directions": DIRECTIONS[3]}, "partition_mode must be 'joint'"),
        ({"hardness_mode": "easy"}, "hardness_mode must be one of"),
        ({"hardness_strength": -1.0}, "hardness_strength must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            sk.ranking_loss(q, p, **options)
        with pytest.raises(ValueError, match=message):
            sk.RankingLoss(**options)
    with pytest.raises(ValueError, match=r"queries and negatives\[1\] must have the same number of rows"):
        sk.ranking_loss(q, p, (p, p[:2]))
    assert torch.equal(sk.RankingLoss(0.1, "sum")(q, p, p), sk.ranking_loss(q, p, (p,), 0.1, "sum"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_negatives_of_each_querys_own(backend):
    q, p = features(2)
    own = torch.randn(N, 3, D, dtype=torch.float64, requires_grad=True)
    leaves = (q, p, own)
    x, y, z = (F.normalize(t, dim=-1) for t in leaves)
    logits = torch.cat([(x * y).sum(1, keepdim=True), torch.einsum("nd,nkd->nk", x, z)], dim=1) / 0.3
    want = F.cross_entropy(logits, torch.zeros(N, dtype=torch.long))
    with sk.use_backend(backend):
        got = sk.info_nce_loss(q, p, own, 0.3)
        found = torch.autograd.grad(got, leaves)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for gradient, truth in zip(found, torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"negative_keys must have shape \(7, K, 5\)"):
        sk.info_nce_loss(q, p, own[:3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("alpha", "t"), [(2.0, 2.0), (1.0, 3.0)])
def test_alignment_and_uniformity(backend, alpha, t):
    """The code of the paper, sec. 4.1."""
    leaves = features(2)
    x, y = (F.normalize(z, dim=1) for z in leaves)
    want = (x - y).norm(dim=1).pow(alpha).mean()
    for z in (x, y):
        want = want + 0.7 * torch.pdist(z).pow(2).mul(-t).exp().mean().log() / 2
    with sk.use_backend(backend):
        got = sk.alignment_uniformity_loss(*leaves, alpha, t, 0.7)
        found = torch.autograd.grad(got, leaves)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for gradient, truth in zip(found, torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-10)
    assert torch.equal(
        sk.AlignmentUniformityLoss(alpha, t, 0.7)(*leaves), sk.alignment_uniformity_loss(*leaves, alpha, t, 0.7)
    )
    with pytest.raises(ValueError, match="z must have at least two rows"):
        sk.uniformity(x[:1])


def test_weights_of_dcl():
    z1, z2 = features(2)
    x, y = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    eye = torch.eye(N, dtype=torch.bool)
    want = 0
    for a, b in ((x, y), (y, x)):
        off = torch.cat([(a @ m.T / 0.2).masked_fill(eye, -torch.inf) for m in (a, b)], dim=1)
        weight = 2 - N * ((a * b).sum(1).detach() / 0.4).softmax(0)
        want = want + (off.logsumexp(1) - weight * (a * b).sum(1) / 0.2).mean() / 2
    got = sk.DCLWLoss(0.2, 0.4)(z1, z2)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for gradient, truth in zip(*(torch.autograd.grad(v, (z1, z2)) for v in (got, want)), strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-10)


def test_the_bias_of_clip_has_gradient_zero():
    x, y = features(2)
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    loss = sk.clip_loss(x, y, 2.0, bias)
    assert loss == sk.clip_loss(x, y, 2.0)
    assert torch.autograd.grad(loss, bias)[0] == 0
    assert sk.ClipLoss("none")(x, y, 2.0, bias).shape == (N,)
