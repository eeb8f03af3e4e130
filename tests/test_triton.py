"""The Triton backend: every way through its kernels against dense float64, under the interpreter where no GPU is."""

import itertools
import types

import pytest
import torch
from truth import (
    GUIDED,
    OPTIONS,
    POINTWISE,
    SPREADS,
    Case,
    assert_close,
    check_pointwise,
    check_spread,
    check_statistic,
    gradients,
    weighted,
)

import simmim_kernels as sk
from simmim_kernels.backends.triton import configurations, launch, strips
from simmim_kernels.backends.triton import gradients as triton_gradients

DIMS = (1, 0, (0, 1))

# A narrow problem takes the fused kernel, a wide one strips; one pass serves both sides, or each has its own.
WAYS = [f"{kernel}, {passes}" for kernel in ("fused", "strips") for passes in ("one pass", "two passes")]


@pytest.fixture
def way(request, monkeypatch, small_tiles):
    kernel, passes = request.param.split(", ")
    if kernel == "strips":
        monkeypatch.setattr(configurations, "_INTERPRETER", configurations._INTERPRETER._replace(fused={}))
    monkeypatch.setattr(triton_gradients, "_in_one_pass", lambda problem: passes == "one pass")
    return request.param


every_way = pytest.mark.parametrize("way", WAYS, indirect=True)


SIZES = (1, 2, 3, 17, 31, 63, 65, 129)
WIDTHS = (1, 3, 16, 33, 64, 100)


FUNCTIONS = ("logsumexp", "softplus", "square")


def thirds():
    """Of all ways, options, functions and dims one in three, in which any three of them meet somewhere.

    Each way and option has a Latin square's diagonal of functions and dims, and the next way the next diagonal.
    """
    for (w, way), (o, option) in itertools.product(enumerate(WAYS), enumerate(OPTIONS)):
        for f, fn in enumerate(FUNCTIONS):
            yield fn, DIMS[(f + w + o) % 3], option, way


@pytest.mark.parametrize(("fn", "dim", "option", "way"), list(thirds()), indirect=["way"], ids=str)
def test_options(fn, dim, option, way):
    check_statistic(sk, Case(37, 53, 5, torch.float32, **OPTIONS[option]), fn, dim, "triton")


@every_way
@pytest.mark.parametrize("dim", DIMS, ids=str)
def test_identity(dim, way):
    """A function as any other, whose options those of the square stand for."""
    check_statistic(sk, Case(37, 53, 5, torch.float32, biases=True, ids=1), "identity", dim, "triton")


@every_way
@pytest.mark.parametrize("dim", DIMS, ids=str)
def test_log1mexp_of_negative_scores(dim, way):
    case = Case(37, 53, 5, torch.float32, biases=True, scale=0.3, joint="left_out")
    with torch.no_grad():
        case.tensors["row_bias"] -= float(case.dense(case.tensors).max()) + 0.05
    check_statistic(sk, case, "log1mexp", dim, "triton")


@every_way
@pytest.mark.parametrize("option", GUIDED)
def test_guides(option, way):
    """Limits belong to the rows, whichever side a backward owns; over all pairs one mask serves value and weights."""
    # Each way and each option meets each of these.
    fn, dim = (("logsumexp", 1), ("logsumexp", 0), ("softplus", (0, 1)))[
        (WAYS.index(way) + list(GUIDED).index(option)) % 3
    ]
    check_statistic(sk, Case(37, 53, 5, torch.float32, **GUIDED[option]), fn, dim, "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "m"), [(17, 31), (31, 17), (65, 33), (33, 65), (33, 64)])
def test_shapes_and_dtypes_of_guides(n, m, dtype, small_tiles):
    case = Case(n, m, WIDTHS[n % len(WIDTHS)], dtype, guide=WIDTHS[m % len(WIDTHS)])
    check_statistic(sk, case, "logsumexp", 1, "triton")


@pytest.mark.parametrize("kernel", ["fused", "strips"])
def test_products_of_guides(kernel, monkeypatch, small_tiles):
    """Once a look at the scores, beside theirs: in the forward, and in a backward for each of its passes."""
    if kernel == "strips":
        monkeypatch.setattr(configurations, "_INTERPRETER", configurations._INTERPRETER._replace(fused={}))
    case = Case(37, 53, 5, torch.float32, guide=7)
    passes = 1 if triton_gradients._in_one_pass(case.scores(sk)._problem) else 2
    leaves, pairs = list(case.tensors.values()), 37 * 53
    with launch.counted_multiplications() as work:
        rows = case.scores(sk).logsumexp(1, backend="triton")
        assert work.multiplications == pairs * (5 + 7)
        torch.autograd.grad(rows.sum(), leaves)
        assert work.multiplications == pairs * (5 + 7) + pairs * ((2 + passes) * 5 + passes * 7)


def test_a_guide_of_strided_features(small_tiles):
    case = Case(37, 53, 5, torch.float32, guide=7)
    x, y, limit = case.guides
    case.guides = [x.repeat_interleave(2, dim=1)[:, ::2], y.T.contiguous().T, limit.repeat_interleave(2)[::2]]
    check_statistic(sk, case, "logsumexp", 1, "triton")


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [*zip(SIZES, SIZES, strict=True), *itertools.pairwise(SIZES), (65, 3)]


@pytest.mark.parametrize(
    ("n", "m", "dtype", "way"),
    # Each shape by both ways, each dtype by both.
    [(*nm, t, WAYS[(k + j) % 2 * 2]) for k, nm in enumerate(SHAPES) for j, t in enumerate(DTYPES)],
    indirect=["way"],
    ids=str,
)
def test_shapes_and_dtypes(n, m, dtype, way):
    """Each shape meets each of three statistics with one of the dtypes, and each dtype all of them."""
    which = (SHAPES.index((n, m)) + DTYPES.index(dtype)) % 3
    fn, dim = (("logsumexp", 1), ("logsumexp", 0), ("softplus", (0, 1)))[which]
    check_statistic(sk, Case(n, m, WIDTHS[(n + m) % len(WIDTHS)], dtype), fn, dim, "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fn", ["logsumexp", "square"])
@every_way
def test_half_precision_with_options(fn, dtype, way):
    case = Case(37, 53, 40, dtype, biases=True, ids=1, clamp=(-2.0, 2.0))
    check_statistic(sk, case, fn, 1, "triton")


def test_widths_beyond_the_fused_kernel():
    """The default choice, with nothing patched: d = 300 goes by strips."""
    assert configurations.fused_tile(Case(3, 3, 256, torch.float32).scores(sk)._problem) is not None
    assert configurations.fused_tile(Case(3, 3, 300, torch.float32).scores(sk)._problem) is None
    for d in (256, 300):
        check_statistic(sk, Case(20, 35, d, torch.float32, biases=True), "logsumexp", 1, "triton")
        check_statistic(sk, Case(20, 35, d, torch.bfloat16), "softplus", (0, 1), "triton")


@every_way
@pytest.mark.parametrize("spread", SPREADS, ids=lambda s: f"scores to {s}")
def test_rows_and_columns_of_very_different_size(spread, way):
    """Each spread is of rows on some ways and of columns on the others, and so does each way have both."""
    check_spread(sk, spread, (SPREADS.index(spread) + WAYS.index(way)) % 2 == 1, torch.float32, "triton")


@every_way
@pytest.mark.parametrize(
    "needs", [needs for needs in itertools.product([False, True], repeat=4) if any(needs)], ids=str
)
def test_only_the_gradients_that_are_wanted(needs, way):
    case = Case(37, 53, 5, torch.float32, biases=True)
    case.tensors["col_bias"].requires_grad_(False)
    for name, need in zip(("x", "y", "row_bias", "scale"), needs, strict=True):
        case.tensors[name].requires_grad_(need)
    wanted = {name: tensor for name, tensor in case.tensors.items() if tensor.requires_grad}
    wide = {name: tensor.detach().double().requires_grad_(name in wanted) for name, tensor in case.tensors.items()}
    truth_of = {name: tensor for name, tensor in wide.items() if name in wanted}
    # Gradients of what bounds the weights come with a value or without one; each way has half of both.
    fn, dim = (("logsumexp", 1), ("softplus", (0, 1)))[(sum(needs) + WAYS.index(way)) % 2]
    got = case.scores(sk).logsumexp(dim, "triton") if fn == "logsumexp" else case.scores(sk).sum(dim, fn, "triton")
    truth = gradients(weighted(case.statistic(wide, fn, dim)), truth_of)
    for name, found in gradients(weighted(got), wanted).items():
        assert_close(found, truth[name], name=name)


@pytest.mark.parametrize(("passes", "backward"), [("one pass", 3), ("two passes", 4)])
@pytest.mark.parametrize("kernel", ["fused", "strips"])
def test_products(kernel, passes, backward, request, monkeypatch, small_tiles):
    """4 g for rows and columns together, 3 g for a sum over all pairs; an ordered backward of both sides 1 g more."""
    if kernel == "strips":
        monkeypatch.setattr(configurations, "_INTERPRETER", configurations._INTERPRETER._replace(fused={}))
    monkeypatch.setattr(triton_gradients, "_in_one_pass", lambda problem: passes == "one pass")
    case = Case(37, 53, 5, torch.float32, biases=True)
    leaves = list(case.tensors.values())
    g = 37 * 53 * 5
    with launch.counted_multiplications() as work:
        rows, columns = case.scores(sk).logsumexps(backend="triton")
        assert work.multiplications == g
        torch.autograd.grad(rows.sum() + columns.sum(), leaves)
        assert work.multiplications == g + backward * g
    with launch.counted_multiplications() as work:
        total = case.scores(sk).sum((0, 1), backend="triton")
        assert work.multiplications == backward * g
        torch.autograd.grad(total, leaves)
        assert work.multiplications == backward * g
    with launch.counted_multiplications() as work, torch.no_grad():
        case.scores(sk).sum((0, 1), backend="triton")
        assert work.multiplications == g


@pytest.mark.parametrize("kernel", ["fused", "strips"])
def test_products_of_symmetric_scores(kernel, monkeypatch, small_tiles):
    """3 g, whatever the passes: weights by row and by column serve one side. A sum over all pairs takes 2 g."""
    if kernel == "strips":
        monkeypatch.setattr(configurations, "_INTERPRETER", configurations._INTERPRETER._replace(fused={}))
    case = Case(37, 37, 5, torch.float32, mirrored=True, biases=True)
    g, leaves = 37 * 37 * 5, list(case.tensors.values())
    with launch.counted_multiplications() as work:
        torch.autograd.grad(case.scores(sk).logsumexp(1, backend="triton").sum(), leaves)
        assert work.multiplications == 3 * g
    with launch.counted_multiplications() as work:
        torch.autograd.grad(case.scores(sk).sum((0, 1), backend="triton"), leaves)
        assert work.multiplications == 2 * g


def test_one_pass_wherever_the_order_may_vary_and_memory_allows(monkeypatch):
    narrow, wide = (Case(9, 9, d, torch.bfloat16).scores(sk)._problem for d in (5, 300))
    assert not triton_gradients._in_one_pass(narrow)
    assert triton_gradients._in_one_pass(wide)
    torch.use_deterministic_algorithms(False)
    assert triton_gradients._in_one_pass(narrow)
    monkeypatch.setattr(configurations, "ACCUMULATOR_BYTES", 9 * 5 * 4)
    assert triton_gradients._in_one_pass(narrow)
    assert not triton_gradients._in_one_pass(wide)


@every_way
def test_small_float16_weights_are_kept(way):
    """A mean over many rows makes weights far below float16's smallest number."""
    case = Case(37, 53, 5, torch.float16)
    got = gradients(2**-24 * case.scores(sk).logsumexp(1, backend="triton").sum(), case.tensors)
    large = gradients(case.scores(sk).logsumexp(1, backend="triton").sum(), case.tensors)
    assert_close(got["scale"], 2**-24 * large["scale"].double())


def test_float16_gradients_of_a_total_do_not_overflow():
    x = torch.full((64, 4), 60.0, dtype=torch.float16, requires_grad=True)
    y = torch.full((2000, 4), 60.0, dtype=torch.float16)
    (1e-3 * sk.DotCritic(0.1)(x, y).sum((0, 1), "identity", "triton")).backward()
    assert torch.allclose(x.grad.float(), torch.full((64, 4), 2000 * 60 * 0.1 * 1e-3), rtol=1e-3)


def test_what_it_does_not_support():
    x = torch.randn(4, 3)
    with pytest.raises(RuntimeError, match="float64 operands have no Triton kernel"):
        sk.DotCritic()(x.double(), x.double()).logsumexp(1, backend="triton")
    with pytest.raises(RuntimeError, match="a guide in float64 has no Triton kernel"):
        sk.DotCritic()(x, x).exclude_above(x.double(), x.double(), x[:, 0]).logsumexp(1, backend="triton")


def test_it_must_be_asked_for_by_name():
    from simmim_kernels.backends import select, triton

    assert triton.not_by_default(torch.device("cpu")) == "the interpreter is for tests"
    assert select(Case(4, 4, 3, torch.float32).scores(sk)._problem) != "triton"


def test_what_no_gpu_has_run_must_be_asked_for_by_name(monkeypatch):
    from simmim_kernels.backends import BACKENDS, CannotRun, cuda, select, triton

    monkeypatch.setattr(triton, "not_by_default", lambda device: None)
    monkeypatch.setattr(cuda, "unavailable", lambda: "not here")
    plain = Case(4, 4, 3, torch.float32).scores(sk)._problem
    guided = Case(4, 4, 3, torch.float32, guide=2).scores(sk)._problem
    assert select(plain) == "triton"
    for problem, what in ((guided, "pairs that a guide leaves out"), (plain.replace(wants_entropy=True), "entropies")):
        assert select(problem, "triton") == "triton"
        assert select(problem) != "triton"
        with monkeypatch.context() as patch:
            for other in ("native", "tiled", "reference"):
                patch.setattr(BACKENDS[other], "supports", lambda problem: "not asked")
            with pytest.raises(CannotRun, match=f"not verified on hardware: .*{what}"):
                select(problem)


@pytest.mark.parametrize("fn", list(POINTWISE))
def test_pointwise_functions_over_their_range(fn):
    check_pointwise(sk, fn, "triton", 2e-6)


def test_a_planted_error_is_seen(monkeypatch, small_tiles):
    """The comparison fails for a merge that forgets the last line of its parts, and for a product short of one term."""
    from simmim_kernels.backends.triton import merges

    parts = merges._parts

    def forget(values, tiles, *rest):
        return parts(values, max(tiles - 1, 1), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(merges, "_parts", forget)
        with pytest.raises(AssertionError, match="error"):
            check_statistic(sk, Case(37, 53, 5, torch.float32), "logsumexp", 1, "triton")
    add_product = strips.add_product

    def lose(total, a, b, first):
        add_product(total, a[:, :-1], b[:-1], first)

    monkeypatch.setattr(configurations, "_INTERPRETER", configurations._INTERPRETER._replace(fused={}))
    with monkeypatch.context() as patch:
        patch.setattr(strips, "add_product", lose)
        with pytest.raises(AssertionError, match="x: error"):
            check_statistic(sk, Case(37, 53, 5, torch.float32), "softplus", 1, "triton")
    check_statistic(sk, Case(37, 53, 5, torch.float32), "logsumexp", 1, "triton")


def test_an_amd_architecture_without_tiles_is_a_reason(monkeypatch):
    monkeypatch.setattr(configurations.knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    for name, reason in (("gfx942:sramecc+", None), ("gfx1100", "gfx942, gfx90a, gfx950 alone; cuda:0 is gfx1100")):
        properties = types.SimpleNamespace(gcnArchName=name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        said = configurations.without_tiles(torch.device("cuda:0"))
        assert said is None if reason is None else said.endswith(reason)
