"""Symmetric scores, of which backends look at one half: x is y, and so are the columns' biases and ids the rows'."""

import ctypes

import pytest
import torch
from torch import Tensor
from truth import EVERY_BACKEND, OPTIONS, WIDEST, Case, assert_close, check_statistic, gradients, weighted

import simmim_kernels as sk
from simmim_kernels.backends import native, tiled
from simmim_kernels.backends.native.library import ROW_STEP, Values, loaded, why_not
from simmim_kernels.backends.tiled import tiles
from simmim_kernels.problem import Problem

needs_native = pytest.mark.skipif(why_not() is not None, reason=f"the native library: {why_not()}")


def problem_of(scores: sk.PairwiseScores) -> Problem:
    return scores._problem


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize(
    ("fn", "dim"), [("logsumexp", 1), ("logsumexp", (0, 1)), ("softplus", 0), ("softplus", (0, 1))]
)
def test_options(fn, dim, options, backend, small_tiles):
    case = Case(37, 37, 5, WIDEST[backend], mirrored=True, **options)
    assert problem_of(case.scores(sk)).symmetric
    check_statistic(sk, case, fn, dim, backend)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_rows_and_columns_at_once(backend, small_tiles):
    case = Case(41, 41, 5, WIDEST[backend], mirrored=True, biases=True, joint="left_out")
    rows, columns = case.scores(sk).logsumexps(backend=backend)
    wide = case.upcast()
    want = [case.statistic(wide, "logsumexp", dim) for dim in (1, 0)]
    found = gradients(weighted(rows) + weighted(2 * columns.flip(0)), case.tensors)
    truth = gradients(weighted(want[0]) + weighted(2 * want[1].flip(0)), wide)
    for name in case.tensors:
        assert_close(found[name], truth[name], name=name)


@needs_native
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize(("fn", "dim"), [("logsumexp", 0), ("square", 1), ("softplus", (0, 1))])
def test_options_natively(fn, dim, options, instruction_set, threads):
    check_statistic(sk, Case(53, 53, 5, mirrored=True, **options), fn, dim, "native")


@needs_native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 9), (97, 33), (385, 20), (1100, 16), (210, 5000)])
def test_shapes_and_dtypes(n, d, dtype, instruction_set, threads):
    """One block of rows to several strips and panels, the last with a width that makes panels narrow."""
    check_statistic(sk, Case(n, n, d, dtype, mirrored=True, biases=True), "logsumexp", 1, "native")
    if dtype == torch.float16:
        return  # the sum of all, held dense to compare with, is beyond its range
    joint = "left_out" if n > 1 else "counted"
    check_statistic(sk, Case(n, n, d, dtype, mirrored=True, joint=joint), "softplus", (0, 1), "native")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_whole_tiles(dtype):
    check_statistic(sk, Case(1050, 1050, 7, dtype, mirrored=True, ids=1, biases=True), "logsumexp", 1, "tiled")


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("positives", [False, True])
def test_cross_entropies(positives, backend, small_tiles):
    case = Case(52, 52, 6, WIDEST[backend], mirrored=True, positives=positives, biases=True)
    check_entropies(case, backend)


@needs_native
@pytest.mark.parametrize("n", [2, 96, 300, 1100])  # with scores that are kept and with scores that are not
def test_cross_entropies_natively(n, instruction_set, threads):
    check_entropies(Case(n, n, 6, mirrored=True, positives=True), "native")


def check_entropies(case: Case, backend: str) -> None:
    wide, index = case.upcast(), torch.arange(case.n)
    scores = case.scores(sk).exclude(index, index, keep_joint=True)
    got = scores.cross_entropy(1, backend=backend)
    own = torch.eye(case.n, dtype=torch.bool)
    column = index if case.column is None else case.column
    own[index, column] = False
    dense = case.dense(wide)
    want = dense.masked_fill(own, -torch.inf).logsumexp(1) - dense[index, column]
    assert_close(got.detach(), want.detach())
    found, truth = gradients(weighted(got), case.tensors), gradients(weighted(want), wide)
    for name in case.tensors:
        assert_close(found[name], truth[name], name=name)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_positives_that_are_not_each_others(backend, small_tiles):
    """Pair (i, j) is then a joint pair where (j, i) is none: nothing may be made of one half."""
    case = Case(37, 37, 5, WIDEST[backend], mirrored=True, positives=True, joint="left_out")
    case.column = torch.arange(37).roll(1)
    scores = case.scores(sk)
    assert problem_of(scores).mirrored
    assert not problem_of(scores).symmetric
    check_statistic(sk, case, "logsumexp", 1, backend)
    check_statistic(sk, case, "softplus", (0, 1), backend)
    case.joint = "counted"
    check_entropies(case, backend)


def test_what_is_mirrored_and_what_is_not():
    x, bias, ids = torch.randn(6, 3), torch.randn(6), torch.arange(6)
    mirrored = sk.PairwiseScores(x, x, row_bias=bias, col_bias=bias).exclude(ids, ids).clamp(-1, 1)
    assert problem_of(mirrored).symmetric
    with torch.autocast("cpu"):
        assert problem_of(sk.PairwiseScores(x, x)).symmetric
        assert problem_of(sk.GaussianCritic()(x, x)).symmetric
    for other in (
        sk.PairwiseScores(x, x.clone()),
        sk.PairwiseScores(x, x, row_bias=bias),
        sk.PairwiseScores(x, x, row_bias=bias, col_bias=bias.clone()),
        sk.PairwiseScores(x, x).exclude(ids, ids.clone()),
        sk.PairwiseScores(x, x).exclude(ids, ids.clone()).exclude(ids, ids),
        sk.PairwiseScores(x, x)._shifted(bias),
    ):
        assert not problem_of(other).mirrored
    for critic in (sk.CosineCritic(), sk.GaussianCritic()):
        assert problem_of(critic(x, x)).symmetric
    assert not problem_of(sk.BilinearCritic(3, 3)(x, x)).mirrored


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_only_one_place_wants_a_gradient(backend, small_tiles):
    """Asked of the operator: a problem that says it is mirrored, of tensors one of which is held fixed."""
    x = torch.randn(20, 4, dtype=WIDEST[backend])
    weights = torch.linspace(0.5, 1.5, 20, dtype=x.dtype)

    def gradient(place: int) -> Tensor:
        operands = [x.clone().requires_grad_(), x.clone()]
        pair = operands if place == 0 else operands[::-1]
        problem = Problem(*pair, [torch.tensor(0.5, dtype=x.dtype)], mirrored=True)
        rows = torch.ops.simmim_kernels.statistic(*problem.arguments(), backend)[0]
        return torch.autograd.grad((weights * rows).sum(), operands[0])[0]

    def truth(place: int) -> Tensor:
        mine, other = x.double().clone().requires_grad_(), x.double()
        s = 0.5 * (mine @ other.T if place == 0 else other @ mine.T)
        return torch.autograd.grad((weights * s.logsumexp(1)).sum(), mine)[0]

    for place in (0, 1):
        assert_close(gradient(place), truth(place))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("spread", [30, 60])
def test_rows_of_very_different_size(spread, dtype, small_tiles):
    """References that one exponential cannot serve, in all that is looked at by row and by column."""
    backends = ["tiled"] if why_not() else ["tiled", "native"]
    for backend in backends:
        case = Case(60, 60, 8, dtype, mirrored=True, biases=True)
        case.tensors["row_bias"] = torch.linspace(-spread, spread, 60).to(dtype).requires_grad_()
        check_statistic(sk, case, "logsumexp", 1, backend)


def test_second_derivatives(small_tiles):
    x = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def value(x, scale):
        scores = sk.PairwiseScores(x, x, scale=scale)
        return weighted(scores.logsumexp(1)) + scores.marginal.sum((0, 1)) + scores.cross_entropy(1).sum()

    assert torch.autograd.gradcheck(value, (x, scale))
    assert torch.autograd.gradgradcheck(value, (x, scale))


def test_compiled():
    x = torch.randn(24, 5, requires_grad=True)
    losses = {
        "nt_xent": lambda x: sk.nt_xent_loss(x, x.flip(0)),
        "total": lambda x: sk.PairwiseScores(x, x).marginal.sum((0, 1)),
        "gaussian": lambda x: sk.GaussianCritic()(x, x).logsumexp(1).sum(),
    }
    for loss in losses.values():
        eager, compiled = loss(x), torch.compile(loss, backend="aot_eager", fullgraph=True)(x)
        assert_close(compiled.detach(), eager.detach().double())
        want = torch.autograd.grad(eager, x)[0].double()
        assert_close(torch.autograd.grad(compiled, x)[0], want)


def test_the_products_are_half_of_all(monkeypatch):
    """Counted in multiplications, of forward and backward: 2 g and the tiles on the diagonal, where others take 4 g."""
    made = []
    product = tiles.times_transposed

    def counted(a, b):
        made.append(a.shape[0] * a.shape[1] * b.shape[0])
        return product(a, b)

    monkeypatch.setattr(tiles, "times_transposed", counted)
    monkeypatch.setattr(tiles, "_TILE_ROWS", 8)
    n, d = 256, 4
    x = torch.randn(n, d, requires_grad=True)
    for y, least, most in ((x, 2, 2.2), (x.detach().clone().requires_grad_(), 4, 4)):
        made.clear()
        sk.PairwiseScores(x, y).logsumexp(1, backend="tiled").sum().backward()
        assert least <= sum(made) / (n * n * d) <= most


@needs_native
def test_natively_scores_below_the_diagonals_blocks_are_not_made(instruction_set):
    """The scores that a forward keeps are all that it makes: the others stay NaN, as they were."""
    n = 4 * ROW_STEP
    x = torch.randn(n, 7)
    kept = torch.full((n, n), torch.nan)
    rows, joint, entropies = torch.empty(n), torch.empty(n), torch.empty(1, n)
    values = Values(*(None if t is None else t.data_ptr() for t in (rows, None, joint, entropies, kept)))
    problem = problem_of(sk.PairwiseScores(x, x).marginal)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    call = native._Call(problem, symmetric=True)
    torch.set_num_threads(before)
    assert loaded().simmim_forward(ctypes.byref(call.struct), ctypes.byref(values)) == 0
    assert_close(rows, (x.double() @ x.double().T).fill_diagonal_(-torch.inf).logsumexp(1))
    share = float((~kept.isnan()).float().mean())
    assert 0.5 < share < 0.5 + 1.0 * ROW_STEP / n


def test_a_planted_error_is_seen(monkeypatch, small_tiles):
    """Where one half was doubled with its diagonal."""
    monkeypatch.setattr(tiled.tiles, "Tile", lambda *fields, mirrored: tiles_with_everything_mirrored(fields))
    with pytest.raises(AssertionError):
        check_statistic(sk, Case(37, 37, 5, mirrored=True), "logsumexp", 1, "tiled")


_Tile = tiles.Tile


def tiles_with_everything_mirrored(fields: tuple) -> tiles.Tile:
    return _Tile(*fields, mirrored=True)
