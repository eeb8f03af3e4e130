"""Every statistic, option, shape and dtype against dense float64, value and all gradients."""

import itertools

import pytest
import torch
from truth import (
    BACKENDS,
    EVERY_BACKEND,
    NEGATED,
    OPTIONS,
    POINTWISE,
    SPREADS,
    WIDEST,
    Case,
    assert_close,
    check_spread,
    check_statistic,
    gradients,
    run,
    weighted,
)

import simmim_kernels as sk

DIMS = (1, 0, (0, 1))
SIZES = (1, 2, 3, 17, 63, 64, 65, 127, 129, 255)
WIDTHS = (1, 3, 7, 16, 33, 64, 128)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("dim", DIMS, ids=str)
@pytest.mark.parametrize("fn", ["logsumexp", "softplus", "square", "identity"])
def test_options(fn, dim, options, backend, small_tiles):
    check_statistic(sk, Case(37, 53, 5, **options), fn, dim, backend)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("options", NEGATED.values(), ids=list(NEGATED))
@pytest.mark.parametrize("mirrored", [False, True], ids=["", "mirrored"])
@pytest.mark.parametrize(("fn", "dim"), [("softplus", 1), ("softplus", (0, 1)), ("identity", 0)], ids=str)
def test_negated_joint_pairs(fn, dim, mirrored, options, backend, small_tiles):
    case = Case(37, 37 if mirrored else 53, 5, WIDEST[backend], mirrored=mirrored, **options)
    check_statistic(sk, case, fn, dim, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", DIMS, ids=str)
@pytest.mark.parametrize("options", [{}, {"joint": "left_out"}, {"ids": 1}], ids=str)
def test_log1mexp_of_negative_scores(dim, options, backend, small_tiles):
    case = Case(37, 53, 5, biases=True, scale=0.3, **options)
    with torch.no_grad():
        case.tensors["row_bias"] -= float(case.dense(case.tensors).max()) + 0.05
    check_statistic(sk, case, "log1mexp", dim, backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "m"), [*zip(SIZES, SIZES, strict=True), *itertools.pairwise(SIZES), (129, 17), (64, 3)])
def test_shapes_and_dtypes(n, m, dtype, small_tiles):
    d = WIDTHS[(n + m) % len(WIDTHS)]
    for fn, dim in (("logsumexp", 1), ("logsumexp", 0), ("softplus", (0, 1))):
        check_statistic(sk, Case(n, m, d, dtype), fn, dim, "tiled")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(1000, 1300, 384), (520, 1030, 1000), (1000, 129, 1024), (600, 600, 512)])
def test_whole_tiles_and_their_ragged_ends(n, m, d, dtype):
    check_statistic(sk, Case(n, m, d, dtype, biases=True, ids=1), "logsumexp", 0, "tiled")
    check_statistic(sk, Case(n, m, d, dtype), "softplus", 1, "tiled")


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_rows_and_columns_at_once(options, backend, small_tiles):
    case = Case(37, 53, 5, WIDEST[backend], **options)
    rows, columns = case.scores(sk).logsumexps(backend=backend)
    wide = case.upcast()
    want = [case.statistic(wide, "logsumexp", dim) for dim in (1, 0)]
    assert_close(rows.detach(), want[0].detach())
    assert_close(columns.detach(), want[1].detach())
    found = gradients(weighted(rows) + weighted(columns.square()), case.tensors)
    truth = gradients(weighted(want[0]) + weighted(want[1].square()), wide)
    for name in case.tensors:
        assert_close(found[name], truth[name], name=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spread", SPREADS, ids=lambda s: f"scores to {s}")
@pytest.mark.parametrize("columns_differ", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rows_and_columns_of_very_different_size(spread, columns_differ, dtype, backend, small_tiles):
    check_spread(sk, spread, columns_differ, dtype, backend)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_empty_rows_and_columns(backend, small_tiles):
    case = Case(40, 60, 5, WIDEST[backend])
    row_ids, col_ids = torch.arange(40), 100 + torch.arange(60)
    row_ids[7] = 200
    col_ids[:] = torch.where(torch.arange(60) == 11, 300, 100)
    row_ids[20:] = 100
    scores = case.scores(sk).exclude(row_ids, col_ids).exclude(torch.full((40,), 300), col_ids)
    rows, columns = scores.logsumexps(backend=backend)
    empty = torch.zeros(40, dtype=torch.bool)
    empty[20:] = True
    assert torch.equal(rows.isneginf(), empty)
    assert torch.equal(columns.isneginf(), torch.arange(60) == 11)
    found = gradients(rows.sum() + columns.sum(), case.tensors)
    assert all(torch.isfinite(g).all() for g in found.values())
    assert (found["x"][20:] == 0).all()
    assert (found["y"][11] == 0).all()
    total = scores.logsumexp((0, 1), backend=backend)
    assert torch.isfinite(torch.autograd.grad(total, case.tensors["x"])[0]).all()
    everything = case.scores(sk).exclude(torch.zeros(40, dtype=torch.long), torch.zeros(60, dtype=torch.long))
    total = everything.logmeanexp((0, 1), backend=backend)
    assert total.isneginf()
    assert (torch.autograd.grad(total, case.tensors["x"])[0] == 0).all()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("in_order", [True, False])
def test_groups_of_one_side_only(in_order, backend, small_tiles):
    """Rows and columns whose group is not on the other side are empty: -inf, 0, and without a gradient."""
    case = Case(40, 60, 5, WIDEST[backend], biases=True)
    row_ids, col_ids = torch.arange(40) // 4, torch.arange(60) // 4 + 3
    if not in_order:
        row_ids, col_ids = row_ids[torch.randperm(40)], col_ids[torch.randperm(60)]
    scores = case.scores(sk).within(row_ids, col_ids)
    rows, columns = scores.logsumexps(backend=backend)
    assert torch.equal(rows.isneginf(), row_ids < 3)
    assert torch.equal(columns.isneginf(), col_ids > 9)
    wide = case.upcast()
    pairs = row_ids[:, None] == col_ids
    found = gradients(rows[row_ids >= 3].sum() + columns[col_ids <= 9].sum(), case.tensors)
    s = case.dense(wide).masked_fill(~pairs, -1e6)
    truth = gradients(s[row_ids >= 3].logsumexp(1).sum() + s[:, col_ids <= 9].logsumexp(0).sum(), wide)
    for name in case.tensors:
        assert_close(found[name], truth[name], name=name)
    assert (found["x"][row_ids < 3] == 0).all()
    sums = scores.sum(1, fn="square", backend=backend)
    assert_close(sums.detach(), (case.dense(wide).square() * pairs).sum(1).detach())
    nothing = case.scores(sk).within(torch.zeros(40, dtype=torch.long), torch.ones(60, dtype=torch.long))
    found = gradients(nothing.logsumexp(1, backend=backend).sum(), case.tensors)
    assert all((gradient == 0).all() for gradient in found.values())
    found = gradients(nothing.sum((0, 1), fn="softplus", backend=backend), case.tensors)
    assert all((gradient == 0).all() for gradient in found.values())


# The interpreter takes two minutes of what the others take 50 ms for.
GROUPED = [(n, m, backend) for backend in EVERY_BACKEND for n, m in [(1, 1), (3, 17), (17, 3), (64, 65)]]


@pytest.mark.parametrize(
    ("n", "m", "backend"), [*GROUPED, *((n, m, backend) for backend in BACKENDS for n, m in [(129, 127), (300, 1000)])]
)
def test_groups_of_ragged_shapes(n, m, backend):
    case = Case(n, m, 3, WIDEST[backend], groups=1)
    case.row_groups, case.col_groups = (torch.arange(size)[None] * 5 // size for size in (n, m))
    case.row_groups %= int(case.col_groups.max()) + 1
    case.col_groups %= int(case.row_groups.max()) + 1
    check_statistic(sk, case, "softplus", 1, backend)
    check_statistic(sk, case, "square", (0, 1), backend)
    if m > 3:
        case.row_groups %= len(case.col_groups.unique())
        check_statistic(sk, case, "logsumexp", 1, backend)


def test_tiles_between_groups_are_not_looked_at(small_tiles, monkeypatch):
    """Of rows in the order of their groups only the tiles along the diagonal are made, forward and backward."""
    from simmim_kernels.backends.tiled import tiles

    made = []
    multiply = tiles.times_transposed
    monkeypatch.setattr(tiles, "times_transposed", lambda a, b: made.append(a.shape) or multiply(a, b))
    x, y = (torch.randn(480, 3, requires_grad=True) for _ in range(2))
    groups = torch.arange(480) // 8
    value = sk.DotCritic()(x, y).within(groups, groups).logsumexp(1, backend="tiled")
    assert len(made) == 480 // 16 + 480 // 24 - 10  # a tile of 16 x 24 begins where the one before ends, both every 48
    made.clear()
    value.sum().backward()
    assert len(made) == 3 * (480 // 16 + 480 // 24 - 10)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("side", ["row_bias", "col_bias"])
@pytest.mark.parametrize("every", [True, False])
def test_biases_that_rule_pairs_out(every, side, backend, small_tiles):
    """-inf for a bias: rows or columns without a pair have statistics of -inf and no gradient; nothing is NaN."""
    case = Case(40, 60, 5, WIDEST[backend], biases=True)
    case.tensors[side].data[slice(None) if every else slice(0, 30)] = -torch.inf
    rows, columns = case.scores(sk).logsumexps(backend=backend)
    t = {name: tensor.detach() for name, tensor in case.upcast().items()}
    s = case.dense(t)
    for got, dim in ((rows, 1), (columns, 0)):
        assert torch.equal(got.isneginf(), s.logsumexp(dim).isneginf())
    g = s.softmax(1).nan_to_num(0) + s.softmax(0).nan_to_num(0)
    want = {"x": t["scale"] * g @ t["y"], "y": t["scale"] * g.T @ t["x"], "row_bias": g.sum(1), "col_bias": g.sum(0)}
    found = gradients(rows.sum() + columns.sum(), case.tensors)
    for name, truth in want.items():
        assert_close(found[name], truth, name=name)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_scores_of_ten_thousand(dtype, backend, small_tiles):
    if dtype == torch.float64 and WIDEST[backend] != dtype:
        pytest.skip(f"{backend} has no float64")
    x = torch.tensor([[100.0], [-100.0], [1.0], [0.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([[100.0], [-100.0], [50.0]], dtype=dtype, requires_grad=True)
    scores = sk.DotCritic()(x, y)
    rows, columns = scores.logsumexps(backend=backend)
    want = torch.tensor([1e4, 1e4, 100.0, torch.tensor(3.0).log()])
    assert torch.allclose(rows.float(), want)
    assert torch.allclose(columns.float(), torch.tensor([1e4, 1e4, 5e3]))
    dx, dy = torch.autograd.grad(rows.sum() + columns.sum(), (x, y))
    s = (x.double() @ y.double().T).detach()
    g = s.softmax(1) + s.softmax(0)
    assert torch.allclose(dx.double(), g @ y.double(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert torch.allclose(dy.double(), g.T @ x.double(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_fp16_logits_beyond_its_range(backend):
    x = torch.full((3, 4), 200.0, dtype=torch.float16, requires_grad=True)
    value = sk.DotCritic(scale=2.0)(x, x).logsumexp(1, backend=backend)
    assert torch.allclose(value, torch.full((3,), 320000.0) + torch.tensor(3.0).log())
    value.sum().backward()
    # The log-sum-exp is rounded to float32, 0.03 at this size, and the weights by that much.
    assert torch.allclose(x.grad.float(), torch.full((3, 4), 800.0), rtol=0.02)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gradients_of_a_total_may_pass_float16s_range_before_their_factor(backend):
    """They are made along with the value, and wait for an upstream gradient that brings them back."""
    x = torch.full((64, 4), 16.0, dtype=torch.float16, requires_grad=True)
    value = sk.DotCritic()(x, x.detach()).sum((0, 1), fn="square", backend=backend)
    (found,) = torch.autograd.grad(value * 2.0**-10, x)
    # 64 columns, 2 s = 2048 each, times 16: 2^21, where float16 ends at 2^16.
    assert torch.equal(found, torch.full_like(x, 2.0**11))


@pytest.mark.parametrize("backend", [*EVERY_BACKEND, "held"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_biases_keep_their_own_precision(dtype, backend, hold):
    """float32 biases beside half-precision features, as a learned baseline or a log-Q correction: not rounded."""
    backend = hold() if backend == "held" else backend
    case = Case(20, 30, 8, dtype, biases=True)
    wide = case.upcast()
    s, scores = case.dense(wide), case.scores(sk)
    for dim in (1, 0):
        assert_close(scores.logsumexp(dim, backend=backend).detach(), s.logsumexp(dim).detach())
    assert_close(scores.joint.detach(), s.diagonal().detach())
    assert_close(scores.cross_entropy(1, backend=backend).detach(), (s.logsumexp(1) - s.diagonal()).detach())
    assert_close(scores.sum(0, "softplus", backend=backend).detach(), torch.nn.functional.softplus(s).sum(0).detach())


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_nan_and_inf_are_not_hidden(backend, small_tiles):
    x, y = torch.randn(20, 3), torch.randn(30, 3)
    x[4, 1] = torch.nan
    x.requires_grad_()
    rows, columns = sk.DotCritic()(x, y).logsumexps(backend=backend)
    assert torch.equal(rows.isnan(), torch.arange(20) == 4)
    assert columns.isnan().all()
    assert torch.autograd.grad(rows.sum(), x)[0][4].isnan().all()
    x = torch.ones(20, 1)
    x[4] = torch.inf
    rows, columns = sk.DotCritic()(x, torch.ones(30, 1)).logsumexps(backend=backend)
    assert torch.equal(rows.isposinf(), torch.arange(20) == 4)
    assert columns.isposinf().all()


@pytest.mark.parametrize("fn", ["logsumexp", "softplus"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_clamp_takes_nan_for_outside(backend, fn, small_tiles):
    """As PyTorch's does: its value is NaN and its gradient 0."""
    x, y, row_bias = (torch.randn(*shape, requires_grad=True) for shape in ((20, 3), (30, 3), (20,)))
    with torch.no_grad():
        row_bias[4] = torch.nan
    s = sk.PairwiseScores(x, y, scale=1.0, row_bias=row_bias).clamp(-1, 1)
    got = run(sk, s, fn, 1, backend)
    dense = (x @ y.T + row_bias[:, None]).clamp(-1, 1)
    want = dense.logsumexp(1) if fn == "logsumexp" else POINTWISE[fn](dense).sum(1)
    assert torch.equal(got.isnan(), torch.arange(20) == 4)
    for found, truth in zip(*(torch.autograd.grad(v.sum(), (x, y, row_bias)) for v in (got, want)), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_duplicates(backend, small_tiles):
    x = torch.ones(50, 3, dtype=WIDEST[backend])
    rows, columns = sk.DotCritic()(x, x).logsumexps(backend=backend)
    want = torch.full((50,), 3 + torch.tensor(50.0).double().log(), dtype=torch.float64)
    assert_close(rows, want)
    assert_close(columns, want)


def test_a_planted_error_is_seen(monkeypatch, small_tiles):
    """The comparison fails for a backend that forgets one column of one tile, or halves one weight."""
    from simmim_kernels.backends.tiled import gradients as tiled_gradients
    from simmim_kernels.backends.tiled import tiles

    fill = tiles.Walk.fill_excluded

    def forget(self, tile, values, value):
        fill(self, tile, values, value)
        if tile.cols.start == 24:
            values[:, -1] = value

    with monkeypatch.context() as patch:
        patch.setattr(tiles.Walk, "fill_excluded", forget)
        with pytest.raises(AssertionError, match="error"):
            check_statistic(sk, Case(37, 53, 5), "logsumexp", 1, "tiled")

    flush = tiled_gradients.flush

    def halve(e):
        e = flush(e)
        e[0, 0] *= 0.5
        return e

    with monkeypatch.context() as patch:
        patch.setattr(tiled_gradients, "flush", halve)
        with pytest.raises(AssertionError, match="x: error"):
            check_statistic(sk, Case(37, 53, 5), "logsumexp", 1, "tiled")
    check_statistic(sk, Case(37, 53, 5), "logsumexp", 1, "tiled")
