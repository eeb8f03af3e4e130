"""Tiled and Triton on a CUDA device, against dense float64 on the CPU. CUDA C++ is in test_cuda_gpu.py."""

import itertools

import pytest
import torch
from truth import (
    GUIDED,
    OPTIONS,
    Case,
    NetworkCase,
    assert_close,
    check_softmax_entropies,
    check_statistic,
    error,
)

import simmim_kernels as sk
from simmim_kernels.backends.tiled import tiles
from simmim_kernels.backends.triton import gradients, launch

pytestmark = pytest.mark.gpu

GPU_BACKENDS = ("tiled", "triton")
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _tiles_of_tests(monkeypatch):
    monkeypatch.setattr(tiles, "_DEVICE_TILE", 256)


# Most of the time goes into compiling kernels, one for each of these: few cases, each for a reason. All statistics with
# all options are compared under the interpreter (test_triton.py).


@pytest.fixture
def any_order():
    """Out of deterministic mode, in which the suite runs: Triton then adds the other side's gradients by atomics."""
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize(("fn", "dim"), [("logsumexp", 1), ("softplus", (0, 1)), ("square", 0)])
@pytest.mark.parametrize("d", [5, 300], ids=["fused", "strips"])
def test_options(d, fn, dim, options, any_order):
    check_statistic(sk, Case(337, 453, d, torch.float32, device="cuda", **options), fn, dim, "triton")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_options_in_a_fixed_order(options):
    check_statistic(sk, Case(337, 453, 16, torch.float32, device="cuda", **options), "logsumexp", 1, "triton")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_options_of_tiled(options):
    check_statistic(sk, Case(337, 453, 5, device="cuda", **options), "logsumexp", 1, "tiled")
    check_statistic(sk, Case(337, 453, 5, device="cuda", **options), "softplus", (0, 1), "tiled")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize(("layers", "d"), [(1, 72), (2, 72), (2, 256)])
def test_networks(layers, d, options):
    options = {**options, "biases": False}
    check_statistic(
        sk, NetworkCase(137, 253, d, torch.float32, device="cuda", layers=layers, **options), "logsumexp", 1, "triton"
    )


@pytest.mark.parametrize("option", GUIDED)
@pytest.mark.parametrize("d", [5, 300], ids=["fused", "strips"])
def test_guides(d, option, any_order):
    case = Case(337, 453, d, torch.float32, device="cuda", **GUIDED[option])
    for fn, dim in (("logsumexp", 1), ("logsumexp", 0), ("softplus", (0, 1))):
        check_statistic(sk, case, fn, dim, "triton")


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [64, 128, 256])
def test_guides_over_many_tiles(d, dtype, precision):
    """Each owns a side in deterministic mode, in which these run; TF32 is for the scores alone."""
    if dtype != torch.float32 and precision == "high":
        pytest.skip("half precision has but one")
    case = Case(1500, 1100, d, dtype, biases=True, guide=384, device="cuda")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        if precision == "highest":
            check_statistic(sk, case, "logsumexp", 1, "triton")
        else:
            got = case.scores(sk).logsumexp(1, backend="triton")
            assert error(got.detach(), case.statistic(case.upcast(), "logsumexp", 1).detach()) < 2e-3
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_guide_is_compared_in_float32():
    """Products that TF32 would round to the limit: of odd rows every pair is out."""
    odd = torch.arange(200, device="cuda") % 2
    x, y = torch.randn(200, 64, device="cuda"), torch.randn(300, 64, device="cuda")
    features = (1 + odd * 2.0**-12)[:, None], torch.ones(300, 1, device="cuda"), torch.full_like(x[:, 0], 1 + 2.0**-13)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        rows = sk.DotCritic()(x, y).exclude_above(*features).logsumexp(1, backend="triton")
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(rows.isinf(), odd == 1)


@pytest.mark.parametrize("options", GUIDED.values(), ids=list(GUIDED))
@pytest.mark.parametrize("layers", [1, 2])
def test_networks_with_guides(layers, options):
    case = NetworkCase(137, 253, 72, torch.float32, device="cuda", layers=layers, **{**options, "biases": False})
    check_statistic(sk, case, "logsumexp", 1, "triton")


ENTROPIES = ("plain", "clamp", "ids", "marginal", "groups, ids, biases and clamp", "guide")


@pytest.mark.parametrize("dims", ["rows", "both"])
@pytest.mark.parametrize("option", ENTROPIES)
def test_softmax_entropies(option, dims):
    options = (OPTIONS | GUIDED)[option]
    for d, dtype in ((33, torch.float32), (64, torch.bfloat16), (512, torch.float16)):
        check_softmax_entropies(Case(1500, 1100, d, dtype, device="cuda", **options), dims)


def test_softmax_entropies_of_large_scores_and_of_networks():
    case = Case(300, 20000, 64, torch.bfloat16, scale=50.0, biases=True, device="cuda")
    check_softmax_entropies(case, slack=50 * 2**-20)
    with torch.no_grad():
        case.tensors["col_bias"][100:900] = -torch.inf
        case.tensors["row_bias"][[0, 200]] = -torch.inf
    check_softmax_entropies(case, slack=50 * 2**-20)
    for layers in (1, 2):
        check_softmax_entropies(NetworkCase(137, 253, 72, torch.float32, layers=layers, device="cuda"))


SIZES = (1, 17, 64, 129, 1000)
WIDTHS = (1, 16, 33, 64, 128, 256, 384, 1000)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize(("n", "m"), [*zip(SIZES, SIZES, strict=True), *itertools.pairwise(SIZES), (129, 17)])
def test_shapes_and_dtypes(n, m, dtype, any_order):
    d = WIDTHS[(n + m) % len(WIDTHS)]
    check_statistic(sk, Case(n, m, d, dtype, device="cuda"), "logsumexp", 0, "triton")
    # Dense float16 overflows in a total of 10^5 pairs, and is then no measure.
    if dtype != torch.float16 or n * m < 2**16:
        check_statistic(sk, Case(n, m, d, dtype, device="cuda"), "softplus", (0, 1), "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [10, 64, 128, 200, 256, 512, 1000])
def test_widths_over_many_tiles(d, dtype, any_order):
    """Several tiles in both directions, so that programs run side by side, and their partial results are merged."""
    case = Case(1500, 1100, d, dtype, biases=True, device="cuda")
    check_statistic(sk, case, "logsumexp", 1, "triton")
    check_statistic(sk, case, "logsumexp", 0, "triton")


@pytest.mark.parametrize("d", [10, 64, 128, 256, 512, 768])
def test_tf32_has_the_accuracy_of_its_mantissa(d, any_order):
    """2^-11 in every product: a few times that in sums of them."""
    case = Case(500, 700, d, torch.float32, device="cuda", biases=True)
    wide = case.upcast()
    want = case.statistic(wide, "logsumexp", 1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        got = case.scores(sk).logsumexp(1, backend="triton")
        found = torch.autograd.grad(got.sum(), case.tensors["x"])[0]
    finally:
        torch.set_float32_matmul_precision(before)
    assert error(got.detach(), want.detach()) < 2e-3
    assert error(found, torch.autograd.grad(want.sum(), wide["x"])[0]) < 5e-3


@pytest.mark.parametrize("spread", [1, 30, 300])
def test_rows_and_columns_of_very_different_size(spread):
    case = Case(400, 600, 8, torch.float32, device="cuda", biases=True)
    case.tensors["row_bias"] = torch.linspace(-spread, spread, 400, device="cuda").requires_grad_()
    rows, columns = case.scores(sk).logsumexps(backend="triton")
    wide = case.upcast()
    for got, dim in ((rows, 1), (columns, 0)):
        assert_close(got.detach(), case.statistic(wide, "logsumexp", dim).detach())


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_nan_and_inf_are_not_hidden(backend):
    x, y = torch.randn(200, 30, device="cuda"), torch.randn(300, 30, device="cuda")
    x[4, 1] = torch.nan
    rows, columns = sk.DotCritic()(x, y).logsumexps(backend=backend)
    assert torch.equal(rows.isnan().cpu(), torch.arange(200) == 4)
    assert columns.isnan().all()


LOSSES = {
    "clip": lambda x, y: sk.clip_loss(x, y, 0.3),
    "siglip": lambda x, y: sk.siglip_loss(x, y, 0.3, -1.0),
    "nt_xent": sk.nt_xent_loss,
    "dcl": sk.dcl_loss,
    "smile": lambda x, y: -sk.bounds.smile(sk.GaussianCritic(3.0)(x, y)),
    "false negatives": lambda x, y: (
        -sk.bounds.infonce(
            sk.DotCritic(0.3)(x, y).exclude(*[torch.arange(len(x), device=x.device) % 50] * 2, keep_joint=True)
        )
    ),
}


@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(LOSSES))
def test_loss(name, dtype, backend):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("triton has no float64")
    x, y = (torch.randn(700, 33).to(dtype) for _ in range(2))
    leaves = [t.cuda().requires_grad_() for t in (x, y)]
    wide = [t.double().requires_grad_() for t in (x, y)]
    with sk.use_backend(backend):
        got = LOSSES[name](*leaves)
    with sk.use_backend("reference"):
        want = LOSSES[name](*wide)
    found, truth = torch.autograd.grad(got, leaves), torch.autograd.grad(want, wide)
    for a, b in zip((got.detach(), *found), (want.detach(), *truth), strict=True):
        if dtype == torch.bfloat16:
            assert error(a, b) < 0.02
        else:
            assert_close(a, b)


@pytest.mark.parametrize("d", [64, 512])
def test_nothing_waits_for_the_device(d):
    """No launch of a forward or a backward reads a value back, so that a CUDA graph can hold them all."""
    x, y = (torch.randn(700, d, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    scale = torch.tensor(0.1, device="cuda", requires_grad=True)
    with sk.use_backend("triton"):
        sk.clip_loss(x, y, scale).backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for loss in (sk.clip_loss, sk.siglip_loss):
                loss(x, y, scale).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("d", [64, 512])
def test_products(d):
    x, y = (torch.randn(1000, d, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    one_pass = gradients._in_one_pass(sk.PairwiseScores(x, y)._problem)
    # A thread counts its own launches: the backward must run on this one.
    with torch.autograd.set_multithreading_enabled(False), launch.counted_multiplications() as work:
        with sk.use_backend("triton"):
            sk.clip_loss(x, y, 0.1).backward()
        assert work.multiplications == (4 if one_pass else 5) * 1000 * 1000 * d
        before = work.multiplications
        with sk.use_backend("triton"):
            sk.siglip_loss(x, y, 0.1).backward()
        assert work.multiplications - before == 3 * 1000 * 1000 * d


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_memory_does_not_grow_with_the_square(backend):
    from simmim_kernels.comparison.measure import extra_bytes, forward_backward

    def step(n):
        with sk.use_backend(backend):
            forward_backward(LOSSES["clip"], [torch.randn(n, 16, device="cuda", requires_grad=True) for _ in range(2)])

    small, large = (extra_bytes(lambda n=n: step(n), "cuda") for n in (16384, 32768))
    assert large <= 2 * small
