"""Pairs left out by a guide's scores, and ranking without false negatives, against dense formulas."""

import pytest
import torch
import torch.nn.functional as F
from truth import BACKENDS, EVERY_BACKEND, TOLERANCE, WIDEST, assert_close, error

import simmim_kernels as sk

N, M = 131, 217


def problem(dtype=torch.float64):
    sizes = (N, 6), (M, 6), (N, 3), (M, 3)
    x, y, *guide = (torch.randn(size, dtype=torch.float64).to(dtype) for size in sizes)
    return x.requires_grad_(), y.requires_grad_(), (*guide, torch.randn(N).to(dtype))


def left_out(guide):
    return guide[0] @ guide[1].T > guide[2][:, None]


def assert_alike(got, want, name):
    """As assert_close, and infinite in the same places: some rows have lost every pair."""
    empty = want.isinf()
    assert torch.equal(got.isinf(), empty), name
    assert_close(got.masked_fill(empty, 0), want.masked_fill(empty, 0), name=name)


@pytest.mark.parametrize("keep_joint", [False, True])
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_against_dense(backend, with_ids, keep_joint, small_tiles):
    x, y, guide = problem(WIDEST[backend])
    out = left_out(guide)
    scores = sk.DotCritic()(x, y).exclude_above(*guide, keep_joint=keep_joint)
    if with_ids:
        ids = torch.arange(N) % 5, torch.arange(M) % 7
        out = out | (ids[0][:, None] == ids[1])
        scores = scores.exclude(*ids, keep_joint=keep_joint)
    if keep_joint:
        out[torch.arange(N), torch.arange(N)] = False
    products = x.double() @ y.double().T
    dense, made = products.masked_fill(out, -torch.inf), scores.dense()
    assert torch.equal(made.isinf(), out)
    assert error(made[~out], products[~out]) <= TOLERANCE[x.dtype]
    for dim, name in ((1, "rows"), (0, "columns"), ((0, 1), "all")):
        want, got = torch.logsumexp(dense, dim), scores.logsumexp(dim, backend=backend)
        assert_alike(got, want, name)
        found, truth = (torch.autograd.grad(v.square().sum(), (x, y), retain_graph=True) for v in (got, want))
        for gradient, true in zip(found, truth, strict=True):
            assert_close(gradient, true.double(), name=name)
        assert torch.equal(scores.count(dim), (~out).sum(dim))
    softplus = scores.sum((0, 1), backend=backend)
    assert_close(softplus, torch.logaddexp(products, torch.zeros(()).double())[~out].sum())
    if keep_joint:
        with sk.use_backend(backend):
            assert_close(scores.cross_entropy(1), dense.logsumexp(1) - dense.diagonal())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_narrow_operands_under_an_exact_guide(backend, dtype, small_tiles):
    """Whole numbers, so that no rounding changes which pairs there are; features of another width than the guide's."""
    x, y = (torch.randn(n, 37).to(dtype).requires_grad_() for n in (N, M))
    guide = torch.randint(-3, 4, (N, 5)).float(), torch.randint(-3, 4, (M, 5)).float(), torch.randint(0, 4, (N,)) + 0.5
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    want = (wide[0] @ wide[1].T).masked_fill(left_out(guide), -torch.inf)
    scores = sk.DotCritic()(x, y).exclude_above(*guide)
    for got, truth in (
        (scores.logsumexp(1, backend=backend), want.logsumexp(1)),
        (scores.sum((0, 1), "square", backend=backend), want.masked_fill(left_out(guide), 0).square().sum()),
    ):
        torch.testing.assert_close(got.double(), truth, rtol=2e-5, atol=2e-5)
        found = torch.autograd.grad(got.sum(), (x, y))
        exact = torch.autograd.grad(truth.sum(), wide, retain_graph=True)
        for a, b in zip(found, exact, strict=True):
            near = (1e-5 if dtype == torch.float32 else 2e-2) * b.abs().max()
            assert (a.double() - b).abs().max() <= near


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_scores_of_a_network(backend, layers):
    critic = sk.MLPCritic(4, 5, hidden=8, layers=layers).double()
    guide = problem()[2]
    scores = critic(torch.randn(N, 4).double(), torch.randn(M, 5).double()).exclude_above(*guide)
    want, got = scores.dense().logsumexp(1), scores.logsumexp(1, backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    found, truth = (torch.autograd.grad(v.sum(), [*critic.parameters()], retain_graph=True) for v in (got, want))
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_cross_entropies_of_kept_scores(backend, reduction):
    """On `native` by strips whose scores are kept from the value to the gradients; a guide's are made once then."""
    n, m = 700, 900
    x, y = (torch.randn(rows, 5, dtype=torch.float64, requires_grad=True) for rows in (n, m))
    guide = torch.randn(n, 3).double(), torch.randn(m, 3).double(), torch.full((n,), 0.7).double()
    out = left_out(guide)
    out[torch.arange(n), torch.arange(n)] = False
    want = F.cross_entropy((x @ y.T).masked_fill(out, -torch.inf), torch.arange(n), reduction=reduction)
    scores = sk.DotCritic()(x, y).exclude_above(*guide, keep_joint=True)
    with sk.use_backend(backend):
        got = scores._reduced_entropies("rows", reduction)
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
        weight = torch.rand(n).double() if reduction == "none" else torch.ones(()).double()
        found, truth = (torch.autograd.grad((v * weight).sum(), (x, y)) for v in (got, want))
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)


def test_second_derivatives():
    x, y, guide = problem()
    guide = guide[0][:5], guide[1][:6], guide[2][:5]

    def statistic(x, y):
        return sk.DotCritic()(x, y).exclude_above(*guide, keep_joint=True).logsumexp(1, backend="tiled")

    x, y = x[:5].detach().requires_grad_(), y[:6].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(statistic, (x, y))


def test_what_cannot_be_is_named():
    x, y, guide = problem()
    scores = sk.DotCritic()(x, y)
    for arguments, message in (
        ((guide[0][:3], *guide[1:]), r"guide_x must have 131 rows"),
        ((guide[0], guide[1][:, :2], guide[2]), "guide_x and guide_y must have the same number of columns"),
        ((*guide[:2], guide[2][:4]), r"limit must have shape \(131,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            scores.exclude_above(*arguments)
    with pytest.raises(ValueError, match="a second guide"):
        scores.exclude_above(*guide).exclude_above(*guide)
    with pytest.raises(ValueError, match="keep_joint must be the same"):
        scores.exclude_above(*guide).exclude(torch.arange(N), torch.arange(M), keep_joint=True)


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(("anchors", "positives"), [(True, True), (False, True), (True, False)])
def test_guided_ranking(anchors, positives, relative, negatives):
    """sentence-transformers' GISTEmbedLoss, on matrices."""
    count = 3 if negatives else 2
    given = [torch.randn(N, 6, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    guides = [torch.randn(N, 4, dtype=torch.float64) for _ in range(count)]
    z, g = ([F.normalize(t, dim=1) for t in both] for both in (given, guides))
    paired = (g[0] * g[1]).sum(1, keepdim=True)
    limit = paired - (0.1 * paired.abs() if relative else 0.1)
    blocks = [(0, 1)]
    if anchors:
        blocks.append((0, 0))
    if positives:
        blocks.append((1, 1))
    if negatives:
        blocks.append((0, 2))
    scores = []
    for a, b in blocks:
        out = g[a] @ g[b].T > limit
        if (a, b) == (0, 1):
            out = out & ~torch.eye(N, dtype=torch.bool)
        scores.append((z[a] @ z[b].T).masked_fill(out, -torch.inf))
    want = F.cross_entropy(torch.cat(scores, 1) / 0.05, torch.arange(N))
    got = sk.guided_ranking_loss(
        given[0], given[1], given[2] if negatives else None, guides, 0.05,
        margin=0.1, relative=relative, contrast_anchors=anchors, contrast_positives=positives,
    )  # fmt: skip
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    found, truth = (torch.autograd.grad(v, given) for v in (got, want))
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


def test_guided_ranking_names_wrong_guides():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="guides must be 2 tensors"):
        sk.guided_ranking_loss(x, x, None, [x])
