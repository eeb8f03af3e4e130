"""PairwiseScores: what it is besides its statistics."""

import math

import pytest
import torch
from truth import BACKENDS, Case, assert_close, gradients, weighted

import simmim_kernels as sk

OPTIONS = [
    {},
    {"joint": "left_out"},
    {"ids": 1},
    {"ids": 3},
    {"ids": 2, "joint": "left_out"},
    {"ids": 2, "joint": "kept"},
    {"ids": 3, "joint": "kept", "positives": True},
    {"ids": 1, "joint": "left_out", "positives": True},
    {"groups": 1},
    {"groups": 1, "joint": "kept"},
]
# Which leave some rows and columns empty.
SPARSE = [
    {"groups": 1, "ids": 1, "joint": "left_out", "positives": True},
    {"groups": 2, "ids": 3},
    {"groups": 2, "ids": 2, "joint": "kept"},
]


@pytest.mark.parametrize("options", [*OPTIONS, *SPARSE], ids=str)
@pytest.mark.parametrize(("n", "m"), [(13, 17), (1, 5), (40, 40)])
def test_count(n, m, options):
    case = Case(n, m, 3, **options)
    kept = ~case.mask()
    scores = case.scores(sk)
    for dim in (1, 0):
        assert torch.equal(scores.count(dim), kept.sum(dim))
    assert scores.count((0, 1)) == kept.sum()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_logmeanexp_and_dense(options):
    case = Case(40, 60, 3, clamp=(-0.5, 0.8), biases=True, **options)
    scores, kept = case.scores(sk), ~case.mask()
    s = case.dense(case.upcast()).masked_fill(~kept, -math.inf)
    assert torch.equal(scores.dense().isneginf(), ~kept)
    assert_close(scores.dense()[kept].detach(), s[kept].detach())
    for dim in (1, 0, (0, 1)):
        want = s.logsumexp(dim) - kept.sum(dim).double().log()
        assert_close(scores.logmeanexp(dim).detach(), want.detach())


@pytest.mark.parametrize(
    "options", [{}, {"biases": True}, {"positives": True, "biases": True, "clamp": (-0.3, 0.3)}], ids=str
)
def test_joint(options):
    case = Case(12, 15, 4, **options)
    wide = case.upcast()
    column = torch.arange(12) if case.column is None else case.column
    want = case.dense(wide)[torch.arange(12), column]
    got = case.scores(sk).joint
    assert_close(got.detach(), want.detach())
    found, truth = gradients(got.sin().sum(), case.tensors), gradients(want.sin().sum(), wide)
    for name in truth:
        assert_close(found[name], truth[name], name=name)


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
@pytest.mark.parametrize("options", [*OPTIONS, {"clamp": (-0.3, 0.4), "biases": True}], ids=str)
@pytest.mark.parametrize(("n", "m"), [(12, 15), (15, 15)])
def test_cross_entropy(n, m, options, backend, hold):
    """The log-sum-exp less the joint score, whatever is excluded and of whatever it is made."""
    backend = hold() if backend == "held" else backend
    case = Case(n, m, 4, **options)
    wide = case.upcast()
    column = torch.arange(n) if case.column is None else case.column
    joint, s = case.dense(wide)[torch.arange(n), column], case.dense(wide).masked_fill(case.mask(), -math.inf)
    want = s.logsumexp(1) - joint, s.logsumexp(0)[column] - joint
    scores = case.scores(sk)
    both = scores.cross_entropies(backend=backend)
    alone = [scores.cross_entropy(dim, backend=backend) for dim in (1, 0)]
    for got, again, value in zip(both, alone, want, strict=True):
        assert_close(got.detach(), value.detach())
        assert_close(again.detach(), value.detach())
    found = gradients(weighted(both[0]) + weighted(both[1].sin()), case.tensors)
    truth = gradients(weighted(want[0]) + weighted(want[1].sin()), wide)
    for name in truth:
        assert_close(found[name], truth[name], name=name)


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
@pytest.mark.parametrize("positives", [False, True])
def test_cross_entropy_within_groups_that_keep_joint_pairs(positives, backend, hold):
    """Of joint pairs in tiles that the groups leave out whole: their scores are wanted all the same."""
    backend = hold() if backend == "held" else backend
    case = Case(300, 310, 3, groups=1, joint="kept", positives=positives)
    case.row_groups, case.col_groups = torch.arange(300)[None] // 10, torch.arange(310)[None] // 10 + 4
    wide = case.upcast()
    column = torch.arange(300) if case.column is None else case.column
    s = case.dense(wide)
    want = s.masked_fill(case.mask(), -math.inf).logsumexp(1) - s[torch.arange(300), column]
    got = case.scores(sk).cross_entropy(1, backend=backend)
    assert_close(got.detach(), want.detach())
    found, truth = gradients(weighted(got), case.tensors), gradients(weighted(want), wide)
    for name in truth:
        assert_close(found[name], truth[name], name=name)


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
def test_cross_entropy_of_a_pair_without_others_is_zero(backend, hold):
    backend = hold() if backend == "held" else backend
    case = Case(1, 1, 3)
    rows, columns = case.scores(sk).cross_entropies(backend=backend)
    assert rows == columns == 0
    assert all((gradient == 0).all() for gradient in gradients(rows.sum() + columns.sum(), case.tensors).values())


def test_cross_entropy_needs_one_direction():
    with pytest.raises(ValueError, match=r"dim must be 0 or 1, got \(0, 1\)"):
        Case(4, 4, 2).scores(sk).cross_entropy((0, 1))


def test_shape_repr_and_dtype():
    scores = sk.DotCritic()(torch.randn(3, 2).bfloat16(), torch.randn(5, 2).bfloat16())
    assert scores.shape == (3, 5)
    assert scores.dtype == torch.float32
    assert "shape=(3, 5)" in repr(scores)


def test_clamps_compose():
    x = torch.randn(9, 4).double() * 3
    s = x @ x.T
    scores = sk.DotCritic()(x, x)
    for limits in (((-1, 2), (-3, 1)), ((-1, 1), (2, 3)), ((-1, 1), (-5, -4))):
        got, want = scores, s
        for lo, hi in limits:
            got, want = got.clamp(lo, hi), want.clamp(lo, hi)
        assert_close(got.logsumexp(1), want.logsumexp(1))


def test_a_clamps_bounds_are_within_it():
    """Scores of exactly -1 and 1 have a gradient, those beyond have none, on every path."""
    x = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0], [0.5], [3.0]], dtype=torch.float64)
    s = (x @ y.T).detach()
    clamped = s.clamp(-1.0, 1.0)
    want = (clamped.softmax(1) * (s.abs() <= 1)) @ y
    scores = sk.DotCritic()(x, y).clamp(-1.0, 1.0)
    for backend in BACKENDS:
        assert_close(torch.autograd.grad(scores.logsumexp(1, backend=backend).sum(), x)[0], want)
    assert_close(torch.autograd.grad(scores.dense().logsumexp(1).sum(), x)[0], want)
    assert_close(torch.autograd.grad(scores.joint.sum(), x)[0], torch.tensor([[1.0], [0.5], [0.0]]).double())


def test_exclusions_are_not_limited_to_small_ids():
    x = torch.randn(6, 3).double()
    ids = torch.tensor([2**62, -(2**62), 5, 5, 2**62, 7])
    got = sk.DotCritic()(x, x).exclude(ids, ids)
    mask = ids[:, None] == ids
    assert_close(got.logsumexp(1), (x @ x.T).masked_fill(mask, -math.inf).logsumexp(1))
    assert torch.equal(got.count(1), (~mask).sum(1))
    assert torch.equal(got.exclude(ids.roll(1), ids).count(1), (~(mask | (ids.roll(1)[:, None] == ids))).sum(1))


def test_groups_add_up_with_each_other_and_with_six_exclusions():
    x = torch.randn(40, 3).double()
    columns = torch.arange(40)
    got, mask = sk.DotCritic()(x, x), torch.zeros(40, 40, dtype=torch.bool)
    for k in range(2, 8):
        ids = columns % k * 2**58
        rows = ids.roll(k)
        got, mask = got.exclude(rows, ids), mask | (rows[:, None] == ids)
        if k % 3 == 0:
            rows, ids = columns // (7 * k) - 2**62, columns // (5 * k) - 2**62
            got, mask = got.within(rows, ids), mask | (rows[:, None] != ids)
    assert 0 < (~mask).sum() < 40**2 / 4
    assert torch.equal(got.dense().isneginf(), mask)
    for dim in (0, 1, (0, 1)):
        assert torch.equal(got.count(dim), (~mask).sum(dim))
    for backend in BACKENDS:
        sums = got.sum(1, fn="square", backend=backend)
        assert_close(sums, (x @ x.T).square().masked_fill(mask, 0).sum(1))


def test_false_negatives_leave_the_joint_pair_in():
    """Rows with equal captions are no negatives of each other: infonce over the rest, positives kept."""
    x, y = torch.randn(8, 4).double(), torch.randn(8, 4).double()
    caption = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4])
    got = sk.bounds.infonce(sk.DotCritic()(x, y).exclude(caption, caption, keep_joint=True))
    s = x @ y.T
    out = (caption[:, None] == caption) & ~torch.eye(8, dtype=torch.bool)
    want = (s.diagonal() - s.masked_fill(out, -math.inf).logsumexp(1)).mean() + math.log(8)
    assert_close(got, want)


def test_statistics_of_several_blocks_combine_by_logaddexp():
    x, y, queue = (torch.randn(n, 4).double() for n in (6, 6, 11))
    got = torch.logaddexp(sk.DotCritic()(x, y).logsumexp(1), sk.DotCritic()(x, queue).logsumexp(1))
    assert_close(got, (x @ torch.cat([y, queue]).T).logsumexp(1))
