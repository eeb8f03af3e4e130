"""CUDA C++ on a GPU, against dense float64 on the CPU. What runs without one is in test_cuda.py.

Everything runs by the kernels that the library chooses and by those for GPUs other than Hopper, which any has.
"""

import pytest
import torch
from truth import ENTROPIES, NEGATED, OPTIONS, Case, check_cross_entropies, check_statistic, entropies_of, gradients

import simmim_kernels as sk
from simmim_kernels.backends import cuda
from simmim_kernels.backends.cuda import calls, library, strips

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda.unavailable() is not None, reason=str(cuda.unavailable())),
]
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, params=["chosen", "mma"])
def _kernels(request, monkeypatch):
    reason = cuda.supports(Case(4, 4, 8, torch.bfloat16, device="cuda").scores(sk)._problem)
    if reason is not None:
        pytest.skip(reason)
    if request.param == "mma":
        monkeypatch.setattr(calls, "VARIANT", library.variants().index("mma"))


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


SIZES = (
    (337, 453, 5, HALF[0]),
    (337, 453, 5, HALF[1]),
    (1000, 1001, 120, HALF[0]),
    (1000, 1001, 300, HALF[0]),
    (300, 5000, 64, HALF[1]),
)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dim", [1, 0, (0, 1)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_log_sum_exps(size, dim, options):
    check_statistic(sk, Case(*size, device="cuda", **OPTIONS[options]), "logsumexp", dim, "cuda")


@pytest.mark.parametrize("options", ["plain", "biases", "clamp", "strided"])
@pytest.mark.parametrize("dim", [1, 0, (0, 1)], ids=str)
def test_one_row(dim, options):
    check_statistic(sk, Case(1, 1200, 64, HALF[0], device="cuda", **OPTIONS[options]), "logsumexp", dim, "cuda")


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("options", OPTIONS | NEGATED)
@pytest.mark.parametrize("dim", [1, 0, (0, 1)], ids=str)
def test_sums_of_softplus(dim, options, dtype):
    case = Case(237, 253, 72, dtype, device="cuda", **(OPTIONS | NEGATED)[options])
    check_statistic(sk, case, "softplus", dim, "cuda")


@pytest.mark.parametrize("fn", ["logsumexp", "identity", "softplus", "square"])
def test_float32_as_tf32(tf32, fn):
    case = Case(337, 453, 300, torch.float32, device="cuda", biases=True)
    for name in "xy":  # exact in TF32
        case.tensors[name] = case.tensors[name].detach().bfloat16().float().requires_grad_()
    scores, wide = case.scores(sk), case.upcast()
    got = scores.logsumexp(1, backend="cuda") if fn == "logsumexp" else scores.sum(1, fn, backend="cuda")
    torch.testing.assert_close(got.double().cpu(), case.statistic(wide, fn, 1), rtol=1e-5, atol=1e-5)


SUMS = {"each": (False, False), "total": (True, False), "weighted": (True, True)}


def _check_cross_entropies(case, kind):
    total, weighs = SUMS[kind]
    weights = (torch.arange(case.n) % 3).float() if weighs else None
    for dims in ("rows",) if case.positives else ("rows", "columns", "both"):
        check_cross_entropies(sk, case, dims, "cuda", total, weights)


@pytest.mark.parametrize("options", ENTROPIES)
@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cross_entropies(size, kind, options):
    _check_cross_entropies(Case(*size, device="cuda", **ENTROPIES[options]), kind)


@pytest.mark.parametrize("size", [(1, 300, 8), (2, 129, 72), (64, 64, 1024), (600, 777, 16)], ids=str)
@pytest.mark.parametrize("kind", SUMS)
def test_cross_entropies_of_odd_sizes_and_several_blocks(size, kind, monkeypatch):
    monkeypatch.setattr(strips, "BLOCK", 256)
    _check_cross_entropies(Case(*size, HALF[0], device="cuda"), kind)


@pytest.mark.parametrize("kind", SUMS)
def test_cross_entropies_of_positives_in_several_blocks(kind, monkeypatch):
    monkeypatch.setattr(strips, "BLOCK", 256)
    _check_cross_entropies(Case(900, 500, 16, HALF[0], device="cuda", positives=True, biases=True), kind)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_cross_entropies_of_a_mirrored_problem(dtype):
    _check_cross_entropies(Case(340, 340, 16, dtype, device="cuda", mirrored=True, positives=True), "total")


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("options", ["biases", "clamp", "positives"])
def test_cross_entropies_of_float32_as_tf32(tf32, kind, options):
    """Values to float32's digits; gradients come from products of weights that are rounded to TF32's 10 bits."""
    case = Case(337, 453, 300, torch.float32, device="cuda", **ENTROPIES[options])
    for name in "xy":  # exact in TF32
        case.tensors[name] = case.tensors[name].detach().bfloat16().float().requires_grad_()
    dims, wide = "rows" if case.positives else "both", case.upcast()
    got, want = case.scores(sk)._cross_entropies(dims, "cuda"), entropies_of(case, wide, dims)
    torch.testing.assert_close(got.double().cpu(), want, rtol=1e-5, atol=1e-5)
    found, truth = gradients(got.sum(), case.tensors), gradients(want.sum(), wide)
    for name, true in truth.items():
        assert (found[name].double().cpu() - true).norm() <= 2**-10 * true.norm() + 1e-4, name


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_converged_model_keeps_its_digits(reduction, dtype):
    x = torch.nn.functional.normalize(torch.randn(100, 64, generator=torch.Generator().manual_seed(0)))
    y = torch.nn.functional.normalize(x + 0.03 * torch.randn(100, 64, generator=torch.Generator().manual_seed(1)))
    leaves = [t.to("cuda", dtype).requires_grad_() for t in (x, y)]
    with sk.use_backend("cuda"):
        value = sk.clip_loss(*leaves, 14.0, reduction=reduction).sum()
    wide = [t.detach().cpu().double().requires_grad_() for t in leaves]
    s, each = 14 * wide[0] @ wide[1].T, torch.arange(100)
    want = sum(torch.nn.functional.cross_entropy(side, each, reduction="sum") for side in (s, s.T)) / 2
    assert abs(value.double().cpu() - want) <= 1e-4 * want
    found, truth = (torch.autograd.grad(2**10 * v, t) for v, t in ((value, leaves), (want, wide)))
    for got, true in zip(found, truth, strict=True):
        assert (got.double().cpu() - true).norm() <= torch.finfo(dtype).eps * true.norm()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_not_a_number_stays_one(dtype):
    x, y = (torch.randn(100, 64, device="cuda", dtype=dtype).requires_grad_() for _ in range(2))
    with torch.no_grad():
        x[3, 5] = torch.nan
    with sk.use_backend("cuda"):
        value = sk.PairwiseScores(x, y).cross_entropy(1)
        assert value[3].isnan()
        assert value.isfinite().sum() == 99
        loss = sk.clip_loss(x, y, 1.0)
    assert loss.isnan()
    assert torch.autograd.grad(loss, x)[0][3].isnan().all()


def test_what_has_no_weight_may_be_infinite():
    x, y = (torch.randn(6, 8, device="cuda").bfloat16().requires_grad_() for _ in range(2))
    bias = torch.zeros(6, device="cuda")
    bias[4] = -torch.inf
    ignored = torch.tensor([0, 1, 2, 3, -100, 5], device="cuda")
    with sk.use_backend("cuda"):
        loss = sk.linear_cross_entropy(x, y, ignored, bias)
    want = torch.nn.functional.cross_entropy(x.double() @ y.double().T + bias, ignored)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(loss, y)[0].isfinite().all()


def _features(n, d=128, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, device="cuda", generator=generator)).bfloat16()


def _step(loss, x, y, scale):
    leaves = [t.detach().requires_grad_() for t in (x, y, scale)]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def _clip(x, y, scale):
    with sk.use_backend("cuda"):
        return sk.clip_loss(x, y, scale)


def _siglip(x, y, scale):
    with sk.use_backend("cuda"):
        return sk.siglip_loss(x, y, scale)


@pytest.mark.parametrize("loss", [_clip, _siglip], ids=["clip", "siglip"])
def test_a_graph_gives_what_calls_give(loss):
    x, y, scale = _features(1000), _features(1000, seed=1), torch.tensor(10.0, device="cuda")
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):  # a warm-up, as a capture asks for
        for _ in range(3):
            _step(loss, x, y, scale)
    torch.cuda.current_stream().wait_stream(other)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(loss, x, y, scale)
    for seed in (2, 3):
        x.copy_(_features(1000, seed=seed))
        graph.replay()
        for got, want in zip(captured, _step(loss, x, y, scale), strict=True):
            assert torch.equal(got, want)


def test_two_streams_at_once():
    inputs = [(_features(3000, seed=k), _features(3000, seed=k + 9), torch.tensor(10.0, device="cuda")) for k in (0, 1)]
    alone = [_step(_clip, *each) for each in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    found = []
    for stream, each in zip(streams, inputs, strict=True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found.append([_step(_clip, *each) for _ in range(4)])
    torch.cuda.synchronize()
    for steps, wanted in zip(found, alone, strict=True):
        for step in steps:
            assert all(map(torch.equal, step, wanted))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    x, y, scale = _features(500), _features(500, seed=1), torch.tensor(10.0, device="cuda")
    wanted = _step(_clip, x, y, scale)
    found = _step(_clip, *(t.to("cuda:1") for t in (x, y, scale)))
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, wanted, strict=True))


def test_the_same_bits_twice():
    x, y, scale = _features(3000), _features(3000, seed=1), torch.tensor(10.0, device="cuda")
    assert all(map(torch.equal, _step(_siglip, x, y, scale), _step(_siglip, x, y, scale)))
