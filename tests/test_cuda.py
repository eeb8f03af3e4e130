"""The CUDA backend without a GPU: its kernels' body on the CPU, its C interface, and the Python around them.

csrc/cuda/tests has the body of the kernels as fibers on the CPU: body_test.cpp holds it against float64, with errors
that planted_errors.py puts into it and without; host_library.cpp puts the library's own interface on top, which the
backend then calls as if it were the GPU's.
"""

import ctypes
import fcntl
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from truth import (
    ENTROPIES,
    NEGATED,
    OPTIONS,
    POINTWISE,
    Case,
    assert_close,
    check_cross_entropies,
    check_pointwise,
    check_statistic,
    gradients,
    weighted,
)

import simmim_kernels as sk
from simmim_kernels.backends import CannotRun, cuda, select
from simmim_kernels.backends.cuda import calls, library, strips
from simmim_kernels.operator.cross_entropy import cross_entropy_sum

SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
# Of the library and of the backward, so small that several meet.
C_BLOCK, BLOCK = 512, 256
# Of lines, for every type of operands, and what adds up.
LINES = 7
# Of bfloat16 operands, those of which alone are compiled here, with their matrix instruction: Hopper's, and others'.
KERNELS, NARROW, PRODUCT = 19, 2, "HGMMA.64x128x16.F32.BF16"
MMA_KERNELS, MMA_PRODUCT = 10, "HMMA.16816.F32.BF16"
NVCC = os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
# csrc/cuda/tests/planted_errors.py, whose program has every error behind a number.
PLANTED = runpy.run_path(str(SOURCES / "tests" / "planted_errors.py"))


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Builds a file once for all workers of a run, and gives its path to each."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def built(name, build):
        folder = shared / f"cuda-{name}"
        folder.mkdir(exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / name).exists():
                build(folder).rename(folder / name)
        return folder / name

    return built


def _host_library(folder):
    source, output = SOURCES / "tests" / "host_library.cpp", folder / "made.so"
    flags = ("-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", f"-DSIMMIM_CUDA_BLOCK={C_BLOCK}")
    command = [*shlex.split(os.environ.get("CXX", "c++")), *PLANTED["FLAGS"], *flags, str(source), "-o", str(output)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture(scope="session")
def host_library(once):
    """The C interface over memory of the CPU."""
    found = ctypes.CDLL(str(once("host.so", _host_library)))
    library.declare(found)
    return found


@pytest.fixture
def on_host(monkeypatch, host_library):
    """The backend on CPU tensors."""

    def add_product(total, a, b, first):
        total.addmm_(a.float(), b.float(), beta=0 if first else 1)

    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(cuda, "_cannot_run_on", lambda device: None)
    monkeypatch.setattr(calls, "loaded", lambda: host_library)
    monkeypatch.setattr(calls, "stream_of", lambda device: 0)
    monkeypatch.setattr(strips, "add_product", add_product)
    monkeypatch.setattr(strips, "BLOCK", BLOCK)


@pytest.fixture(scope="session")
def program(once):
    return once("body_test", PLANTED["build"])


def test_the_body_of_the_kernels(program):
    assert PLANTED["failure"](program, 0) is None


# Those that are seen in a second. The script goes through all.
@pytest.mark.parametrize(
    "number", [*range(1, 9), 10, 14, 15, 16, 19, 20, 22, 23, 24, *range(28, 47), 48, 49, 51, 55, 57, 58, 60]
)
def test_a_planted_error_of_the_body_is_seen(program, number):
    assert PLANTED["failure"](program, number) is not None


@pytest.fixture
def tf32(on_host):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dim", [1, 0, (0, 1)], ids=str)
def test_statistics_and_gradients(on_host, options, dim):
    check_statistic(sk, Case(141, 150, 20, torch.bfloat16, **OPTIONS[options]), "logsumexp", dim, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", ["biases", "marginal"])
@pytest.mark.parametrize("d", [64, 120, 128, 136])
def test_widths(on_host, d, options, dtype):
    """Up to 64 and to 128 by narrow kernels, of which 64 columns may be padding; in parts; and by blocks of weights."""
    for n, m in ((141, 150), (1, 300)):
        if n == 1 and options == "marginal":
            continue  # which would leave a column without a pair
        check_statistic(sk, Case(n, m, d, dtype, **OPTIONS[options]), "logsumexp", (0, 1), "cuda")


@pytest.mark.parametrize("options", ["plain", "biases", "marginal", "strided"])
def test_blocks_of_weights_of_plain_scores(on_host, options, monkeypatch):
    monkeypatch.setattr(calls, "NARROW", 0)
    check_statistic(sk, Case(141, 300, 20, torch.bfloat16, **OPTIONS[options]), "logsumexp", (0, 1), "cuda")


@pytest.mark.parametrize("options", ["strided", "groups, ids, biases and clamp", "marginal of positives"])
def test_float16(on_host, options):
    check_statistic(sk, Case(141, 150, 20, torch.float16, **OPTIONS[options]), "logsumexp", (0, 1), "cuda")


def _exact_in_tf32(*sizes, **options):
    case = Case(*sizes, torch.float32, **options)
    for name in "xy":
        case.tensors[name] = case.tensors[name].detach().bfloat16().float().requires_grad_()
    return case


@pytest.mark.parametrize("options", ["strided", "groups, ids, biases and clamp", "marginal of positives"])
def test_float32_as_tf32(tf32, options):
    check_statistic(sk, _exact_in_tf32(141, 150, 21, **OPTIONS[options]), "logsumexp", (0, 1), "cuda")


def _below_zero(case):
    """For log1mexp."""
    if case.biases:
        for name in ("row_bias", "col_bias"):
            case.tensors[name] = (-3 - case.tensors[name].detach().abs()).requires_grad_()
    return case


POINTWISE_OPTIONS = ("groups, ids, biases and clamp", "ids that keep the joint pairs", "marginal of positives")


@pytest.mark.parametrize("fn", POINTWISE)
@pytest.mark.parametrize("dim", [1, 0, (0, 1)], ids=str)
def test_sums(on_host, fn, dim):
    check_statistic(sk, _below_zero(Case(141, 150, 20, torch.bfloat16, biases=True, scale=0.1)), fn, dim, "cuda")


@pytest.mark.parametrize("options", {**dict.fromkeys(POINTWISE_OPTIONS), **NEGATED})
@pytest.mark.parametrize("dim", [1, (0, 1)], ids=str)
def test_options_of_sums(on_host, options, dim):
    case = Case(141, 150, 20, torch.bfloat16, **(OPTIONS | NEGATED)[options])
    check_statistic(sk, case, "softplus", dim, "cuda")


@pytest.mark.parametrize("dim", [0, (0, 1)], ids=str)
def test_sums_of_float16(on_host, dim):
    check_statistic(sk, Case(190, 200, 20, torch.float16, biases=True, joint="negated"), "softplus", dim, "cuda")


@pytest.mark.parametrize("fn", POINTWISE)
def test_sums_of_float32_as_tf32(tf32, fn):
    case = _below_zero(_exact_in_tf32(300, 290, 20, biases=True, scale=0.1))
    check_statistic(sk, case, fn, (0, 1), "cuda")


@pytest.mark.parametrize("fn", POINTWISE)
def test_functions_at_every_size(tf32, fn):
    check_pointwise(sk, fn, "cuda", 1e-5)


@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 1), (1, 300, 8), (129, 2, 72), (127, 129, 100), (128, 520, 330), (520, 270, 9)]
)
def test_odd_sizes_and_several_blocks(on_host, n, m, d):
    case = Case(n, m, d, torch.bfloat16, biases=True)
    rows, columns = case.scores(sk).logsumexps(backend="cuda")
    wide = case.upcast()
    dense = case.dense(wide)
    for got, dim in ((rows, 1), (columns, 0)):
        assert_close(got, dense.logsumexp(dim).detach(), name=str(dim))
    got = gradients(weighted(rows) + weighted(columns), case.tensors)
    want = gradients(weighted(dense.logsumexp(1)) + weighted(dense.logsumexp(0)), wide)
    low = gradients(*_of_dense(case))
    for name, gradient in got.items():
        assert_close(gradient, want[name], low[name] if name in "xy" else low[name].bfloat16(), name)


def _of_dense(case):
    """The same in PyTorch's own bfloat16."""
    tensors = {k: v.detach().clone().requires_grad_() for k, v in case.tensors.items()}
    s = case.dense({**tensors, "x": tensors["x"], "y": tensors["y"]}).float()
    return weighted(s.logsumexp(1)) + weighted(s.logsumexp(0)), tensors


def test_a_mirrored_problem(on_host):
    case = Case(140, 140, 16, torch.bfloat16, mirrored=True, joint="left_out")
    check_statistic(sk, case, "logsumexp", 1, "cuda")


def test_one_side_needs_a_gradient(on_host):
    case = Case(140, 150, 16, torch.bfloat16)
    case.tensors["y"].requires_grad_(False)
    got = torch.autograd.grad(case.scores(sk).logsumexp(1, backend="cuda").sum(), case.tensors["x"])[0]
    wide = case.upcast()
    want = torch.autograd.grad(case.dense(wide).logsumexp(1).sum(), wide["x"])[0]
    assert_close(got, want, want.bfloat16())


def _weights(case):
    return (torch.arange(case.n) % 3).float()


SUMS = {"each": (False, False), "total": (True, False), "weighted": (True, True)}


# A column may be the positive of several rows: its cross entropies are composed.
ENTROPIES_BY_DIMS = [
    (dims, options)
    for options, given in ENTROPIES.items()
    for dims in (("rows",) if given.get("positives") else ("rows", "columns", "both"))
]


@pytest.mark.parametrize(("dims", "options"), ENTROPIES_BY_DIMS)
@pytest.mark.parametrize("kind", SUMS)
def test_cross_entropies(on_host, kind, dims, options):
    case = Case(141, 150, 20, torch.bfloat16, **ENTROPIES[options])
    total, weighs = SUMS[kind]
    check_cross_entropies(sk, case, dims, "cuda", total, _weights(case) if weighs else None)


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 3), (1, 300, 8), (2, 129, 72), (270, 520, 330), (520, 521, 9)])
@pytest.mark.parametrize("total", [False, True], ids=["each", "total"])
def test_cross_entropies_of_odd_sizes_and_several_blocks(on_host, n, m, d, total):
    case = Case(n, m, d, torch.float16, biases=n > 1)
    if n == m == 1:  # nothing but the joint pair
        value = case.scores(sk)._cross_entropies("both", "cuda")
        assert (value == 0).all()
        assert all((g == 0).all() for g in gradients(value.sum(), case.tensors).values())
        return
    check_cross_entropies(sk, case, "both", "cuda", total)
    if n > 1:
        check_cross_entropies(sk, Case(n, m, d, torch.bfloat16, positives=True, biases=True), "rows", "cuda", total)


@pytest.mark.parametrize("options", ["biases", "clamp", "positives", "strided"])
@pytest.mark.parametrize("kind", SUMS)
def test_cross_entropies_of_float32_as_tf32(tf32, kind, options):
    case, (total, weighs) = _exact_in_tf32(141, 150, 21, **ENTROPIES[options]), SUMS[kind]
    dims = "rows" if case.positives else "both"
    check_cross_entropies(sk, case, dims, "cuda", total, _weights(case) if weighs else None)


@pytest.mark.parametrize("joint", ["counted", "kept"])
@pytest.mark.parametrize("total", [False, True], ids=["each", "total"])
def test_cross_entropies_of_a_mirrored_problem(on_host, joint, total):
    ids = 1 if joint == "kept" else 0
    case = Case(140, 140, 16, torch.bfloat16, mirrored=True, positives=True, joint=joint, ids=ids, biases=True)
    check_cross_entropies(sk, case, "rows", "cuda", total)


@pytest.mark.parametrize("needed", ["x", "y", "scale", "row_bias", "col_bias"])
@pytest.mark.parametrize("positives", [False, True], ids=["diagonal", "positives"])
def test_one_gradient_of_cross_entropies_is_needed(on_host, needed, positives):
    case = Case(300, 310, 16, torch.bfloat16, biases=True, positives=positives)
    for name, tensor in case.tensors.items():
        tensor.requires_grad_(name == needed)
    alone = torch.autograd.grad(
        cross_entropy_sum(case.scores(sk)._problem, "rows", 7, None, "cuda"), case.tensors[needed]
    )
    for tensor in case.tensors.values():
        tensor.requires_grad_()
    of_all = gradients(cross_entropy_sum(case.scores(sk)._problem, "rows", 7, None, "cuda"), case.tensors)
    assert torch.equal(alone[0], of_all[needed])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_converged_model_keeps_its_digits(on_host, reduction, dtype):
    """Joint pairs hold all but some 1e-4 of their rows: gradients are what is left, not differences of roundings."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(100, 64, generator=generator))
    y = torch.nn.functional.normalize(x + 0.03 * torch.randn(100, 64, generator=generator))
    leaves = [t.to(dtype).requires_grad_() for t in (x, y)]
    with sk.use_backend("cuda"):
        value = sk.clip_loss(*leaves, 14.0, reduction=reduction).sum()
    wide = [t.detach().double().requires_grad_() for t in leaves]
    s, each = 14 * wide[0] @ wide[1].T, torch.arange(100)
    want = sum(torch.nn.functional.cross_entropy(side, each, reduction="sum") for side in (s, s.T)) / 2
    assert want < 0.03 * 100
    assert abs(value.double() - want) <= 1e-4 * want
    found, truth = (torch.autograd.grad(2**10 * v, t) for v, t in ((value, leaves), (want, wide)))
    for got, true in zip(found, truth, strict=True):
        assert (got.double() - true).norm() <= torch.finfo(dtype).eps * true.norm()


def test_a_joint_score_of_infinity_does_not_hide_itself(tf32):
    x = torch.tensor([[0.5, -0.5], [0.3, torch.inf], [-0.4, -0.2]], requires_grad=True)
    with sk.use_backend("cuda"):
        scores, loss = sk.DotCritic()(x, x), sk.clip_loss(x, x, 1.0)
        assert loss.isnan()
        assert scores.cross_entropy(1)[1].isnan()
        assert scores.cross_entropy(0)[1].isnan()
        assert sk.linear_cross_entropy(x, x, torch.arange(3), reduction="none")[1].isnan()
    assert torch.autograd.grad(loss, x)[0][1].isnan().all()


def test_what_has_no_weight_may_be_infinite(on_host):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, 8, generator=generator).bfloat16().requires_grad_() for _ in range(2))
    bias = torch.zeros(6)
    bias[4] = -torch.inf
    target, ignored = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([0, 1, 2, 3, -100, 5])
    with sk.use_backend("cuda"):
        assert sk.linear_cross_entropy(x, y, target, bias) == torch.inf
        loss = sk.linear_cross_entropy(x, y, ignored, bias)
        nothing = sk.linear_cross_entropy(x, y, torch.full((6,), -100))
    want = torch.nn.functional.cross_entropy(x.double() @ y.double().T + bias, ignored)
    assert_close(loss.detach(), want.detach())
    assert torch.autograd.grad(loss, y)[0].isfinite().all()
    assert nothing.isnan()
    assert (torch.autograd.grad(nothing, x)[0] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_of_cross_entropies(tf32, reduction):
    def second(backend, dtype):
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(7, 8, generator=generator).bfloat16().to(dtype).requires_grad_() for _ in range(2))
        with sk.use_backend(backend):
            loss = sk.clip_loss(x, y, 2.0, reduction=reduction).square().sum()
        first = torch.autograd.grad(loss, (x, y), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, y))

    for got, want in zip(second("cuda", torch.float32), second("reference", torch.float64), strict=True):
        assert_close(got, want)


def test_what_a_step_asks_of_pytorch(on_host):
    """Small batches take the host's time: an operation of PyTorch takes as long as a kernel."""
    x, y = (torch.randn(40, 8).bfloat16().requires_grad_() for _ in range(2))
    scale = torch.tensor(10.0, requires_grad=True)

    def step():
        with sk.use_backend("cuda"):
            return torch.autograd.grad(sk.clip_loss(x, y, scale), (x, y, scale))

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    found = [event for event in profile.events() if event.name.startswith("aten::")]
    outermost = [each for each in found if each.cpu_parent is None or not each.cpu_parent.name.startswith("aten::")]
    # 4 of the conversions are those of the products here, which a GPU's do without.
    assert len(outermost) <= 21, [each.name for each in outermost]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(on_host, value):
    x, y = torch.randn(200, 8).bfloat16(), torch.rand(150, 8).bfloat16()
    x[3, 2] = value
    rows, columns = sk.DotCritic()(x, y).logsumexps(backend="cuda")
    want = (x.double() @ y.double().T).logsumexp(1)
    others = torch.arange(200) != 3
    assert_close(rows[others], want[others])
    assert not rows[3].isfinite()
    assert not columns.isfinite().any()


def test_a_planted_error_is_seen(on_host, monkeypatch):
    monkeypatch.setattr(cuda, "forward", lambda problem: [1.05 * part for part in calls.Call(problem).statistics()])
    with pytest.raises(AssertionError, match="error"):
        check_statistic(sk, Case(20, 30, 8, torch.bfloat16), "logsumexp", 1, "cuda")


@pytest.fixture
def by_mma(on_host, host_library, monkeypatch):
    """The kernels for GPUs other than Hopper."""
    monkeypatch.setattr(calls, "VARIANT", host_library.simmim_cuda_variants().split(b";").index(b"mma"))
    before = host_library.simmim_host_mma_launches()
    yield
    assert host_library.simmim_host_mma_launches() > before


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_log_sum_exps_by_mma(by_mma, options, dtype):
    check_statistic(sk, Case(141, 150, 40, dtype, **OPTIONS[options]), "logsumexp", (0, 1), "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("fn", POINTWISE)
def test_sums_by_mma(tf32, by_mma, fn, dtype):
    case = _below_zero(_exact_in_tf32(141, 150, 20, biases=True, scale=0.1))
    case = case if dtype == torch.float32 else _below_zero(Case(141, 150, 20, dtype, biases=True, scale=0.1))
    check_statistic(sk, case, fn, (0, 1), "cuda")


@pytest.mark.parametrize("options", NEGATED)
def test_options_of_sums_by_mma(by_mma, options):
    check_statistic(sk, Case(141, 150, 20, torch.float16, **NEGATED[options]), "softplus", 1, "cuda")


def test_float32_by_mma_as_tf32(tf32, by_mma):
    case = _exact_in_tf32(300, 290, 21, **OPTIONS["groups, ids, biases and clamp"])
    check_statistic(sk, case, "logsumexp", (0, 1), "cuda")


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (1, 300, 8), (127, 129, 100), (128, 520, 330), (520, 270, 9)])
def test_odd_sizes_and_several_blocks_by_mma(by_mma, n, m, d):
    check_statistic(sk, Case(n, m, d, torch.bfloat16, biases=True), "logsumexp", (0, 1), "cuda")


def test_a_device_that_is_not_hopper(host_library):
    x, y, scale = torch.randn(140, 8).bfloat16(), torch.randn(150, 8).bfloat16(), torch.ones(())
    rows, workspace = torch.empty(140), torch.empty(host_library.simmim_cuda_workspace(140, 150) // 4)
    struct = library.ProblemStruct(
        *(140, 150, 8, x.data_ptr(), y.data_ptr(), 8, 8, scale.data_ptr()), lo=-torch.inf, hi=torch.inf, device=1
    )

    def call(variant):
        struct.variant = variant
        outputs = (rows.data_ptr(), None, workspace.data_ptr())
        return host_library.simmim_cuda_statistics(ctypes.byref(struct), *outputs)

    before = host_library.simmim_host_mma_launches()
    assert call(-1) == 0
    assert host_library.simmim_host_mma_launches() == before + 1
    assert_close(rows, (x.double() @ y.double().T).logsumexp(1))
    assert call(0) == -1
    assert b"compute capability 9.0" in host_library.simmim_cuda_message()


@pytest.mark.parametrize(
    ("architectures", "runs_on"),
    [
        ("sm_80 sm_90a compute_80", {(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}),
        ("sm_90a", {(9, 0)}),
        ("sm_86 compute_100", {(8, 6), (8, 9), (10, 0), (12, 0)}),
    ],
)
def test_what_code_there_is_for_a_device(monkeypatch, architectures, runs_on):
    found = SimpleNamespace(simmim_cuda_architectures=architectures.encode)
    monkeypatch.setattr(library, "loaded", lambda: found)
    every = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
    assert {each for each in every if library.has_code_for(each)} == runs_on
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    cuda._unfit.cache_clear()
    reason = cuda._cannot_run_on(torch.device("cuda", 0))
    assert reason == f"the library has code for {architectures.replace(' ', ', ')}; cuda:0 has compute capability 7.5"


def test_which_gpus_are_labelled(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "not verified on hardware" in cuda.not_by_default(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert cuda.not_by_default(torch.device("cuda", 0)) is None


@pytest.mark.parametrize("variant", range(3))
def test_every_variant(on_host, host_library, monkeypatch, variant):
    assert len(host_library.simmim_cuda_variants().split(b";")) == 4
    monkeypatch.setattr(calls, "VARIANT", variant)
    check_statistic(sk, Case(300, 290, 72, torch.bfloat16), "logsumexp", (0, 1), "cuda")


def test_the_library_says_what_it_refuses(host_library):
    struct = library.ProblemStruct(n=1, m=1, d=12)
    assert host_library.simmim_cuda_statistics(ctypes.byref(struct), None, None, None) == -1
    assert b"multiples of 16 bytes" in host_library.simmim_cuda_message()


def test_the_library_says_what_it_refuses_of_cross_entropies(host_library):
    def of_entropies(problem=None, **entropies):
        right = {"n": 8, "m": 8, "d": 8, "x_row": 8, "y_row": 8, "joint": 1, "variant": -1}
        structs = library.ProblemStruct(**right | (problem or {})), library.EntropiesStruct(**entropies)
        return host_library.simmim_cuda_cross_entropies(*structs, None)

    def of_ends(rows=None, **gradients):
        right = {"d": 8, "scale": 16}
        return host_library.simmim_cuda_finish(
            library.GradientsStruct(**right | gradients, rows=library.EndsStruct(**rows or {}))
        )

    lines = {"count": 3, "totals": 16}
    refused = {
        "leave joint pairs out": lambda: of_entropies({"joint": 0}, rows=16, scores=16),
        "rows or columns": lambda: of_entropies(scores=16),
        "on the diagonal": lambda: of_entropies({"positives": 16}, columns=16, scores=16),
        "as many columns as rows": lambda: of_entropies({"n": 9}, rows=16, scores=16),
        "room for the joint pairs": lambda: of_entropies(rows=16),
        "a value needs terms": lambda: of_entropies(rows=16, scores=16, value=16),
        "comes with those": lambda: of_entropies(rows=16, scores=16, joint_gradient=16),
        "gradients need the scale": lambda: of_ends(scale=0),
        "multiple of 16 bytes": lambda: of_ends(d=12),
        "no such type": lambda: of_ends(operand=3),
        "of the scale needs dots": lambda: of_ends(scale_gradient=16),
        "need totals": lambda: of_ends({"count": 3, "gradient": 16}),
        "totals and gradients must be aligned": lambda: of_ends({**lines, "gradient": 18}),
        "dots need operands": lambda: of_ends({**lines, "dots": 16, "own": 18, "own_row": 8}),
        "of the other side": lambda: of_ends({**lines, "joint": 16, "joints": 3, "other": 16, "other_row": 4}),
        "counts of lines": lambda: of_ends({"count": -1}),
    }
    for reason, call in refused.items():
        assert call() == -1, reason
        assert reason in host_library.simmim_cuda_message().decode()


def test_supports_says_why_not(on_host):
    x = torch.randn(4, 8)
    reasons = {
        "torch.float64 operands": lambda: sk.DotCritic()(x.double(), x.double()).logsumexp(1, backend="cuda"),
        "TF32 alone": lambda: sk.DotCritic()(x, x).logsumexp(1, backend="cuda"),
        "would not hold": lambda: sk.DotCritic()(x.half(), x.half()).sum(1, "square", backend="cuda"),
        "concatenated_mlp": lambda: sk.MLPCritic(8, 8, hidden=4)(x, x).logsumexp(1, backend="cuda"),
    }
    for reason, call in reasons.items():
        with pytest.raises(CannotRun, match=reason):
            call()


def test_it_is_not_the_default(on_host):
    assert select(Case(4, 4, 8, torch.bfloat16).scores(sk)._problem) != "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_unavailable_without_a_library_or_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_LIBRARY", tmp_path / "none.so")
    library._load.cache_clear()
    try:
        assert "not built" in cuda.unavailable()
        (tmp_path / "none.so").write_text("no library")
        library._load.cache_clear()
        assert "cannot be loaded" in cuda.unavailable()
    finally:
        library._load.cache_clear()
    monkeypatch.setattr(cuda, "why_not", lambda: None)
    assert "needs an NVIDIA GPU" in cuda.unavailable()
    assert "operands are on cpu" in cuda.supports(Case(4, 4, 8, torch.bfloat16).scores(sk)._problem)


@pytest.mark.parametrize(
    ("driver", "said"), [(0, "there is no driver"), (12040, "the driver is for 12.4"), (13000, None)]
)
def test_the_driver_that_a_library_needs(monkeypatch, driver, said):
    found = SimpleNamespace(simmim_cuda_runtime=lambda: 13050, simmim_cuda_driver=lambda: driver)
    monkeypatch.setattr(library, "loaded", lambda: found)
    reason = library.without_driver()
    if said is None:
        assert reason is None
    else:
        assert reason == f"the CUDA library, built with CUDA 13.5, needs a driver for CUDA 13.0 or later: {said}"


def test_structs_follow_the_header(tmp_path):
    """Offsets and sizes as the compiler sees them."""
    structs = {
        "simmim_cuda_problem": library.ProblemStruct,
        "simmim_cuda_gradient": library.GradientStruct,
        "simmim_cuda_entropies": library.EntropiesStruct,
        "simmim_cuda_ends": library.EndsStruct,
        "simmim_cuda_gradients": library.GradientsStruct,
    }
    wanted = [f"offsetof({struct}, {name})" for struct, kind in structs.items() for name, *_ in kind._fields_]
    wanted += [f"sizeof({struct})" for struct in structs]
    source = tmp_path / "offsets.c"
    prints = "".join(f'printf("%zu\\n", {each});' for each in wanted)
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "simmim_cuda.h"\nint main(void) {{ {prints} return 0; }}'
    )
    program = tmp_path / "offsets"
    subprocess.run(["cc", f"-I{SOURCES}", str(source), "-o", str(program)], check=True)
    found = [int(line) for line in subprocess.run([str(program)], capture_output=True, text=True).stdout.split()]
    kinds = structs.values()
    assert found == [
        *(getattr(kind, name).offset for kind in kinds for name, *_ in kind._fields_),
        *map(ctypes.sizeof, kinds),
    ]


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_the_library_compiles_without_spills(tmp_path):
    output = tmp_path / "_cuda.so"
    result = subprocess.run(
        ["bash", str(SOURCES / "build.sh"), str(output), "-Xptxas", "-v", "-DSIMMIM_CUDA_BFLOAT16_ALONE"],
        env={**os.environ, "NVCC": NVCC, "ARCHITECTURES": "sm_80 sm_90a compute_80"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    # And what merges; for sm_80 Hopper's are empty.
    assert len(found) == 2 * (KERNELS + NARROW + MMA_KERNELS + 2 + LINES)
    assert set(itertools.chain(*found)) == {"0"}, result.stderr
    built = ctypes.CDLL(str(output))
    assert built.simmim_cuda_interface() == library._INTERFACE
    library.declare(built)
    assert built.simmim_cuda_architectures() == b"sm_80 sm_90a compute_80"
    # Each kernel has the matrix instructions that were meant, 2 x 64 rows in 4 steps, and the copy engine's loads; or
    # those of a warp, 2 x 16 blocks in 2 steps, and asynchronous copies.
    disassembler = Path(pytest.importorskip("triton").__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

    def code_for(architecture):
        command = [str(disassembler), "-arch", architecture, "-sass", str(output)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    of_hopper, of_ampere = map(code_for, ("sm_90a", "sm_80"))
    # Narrow ones have 64 rows, and of 64 and 128 columns 4 and 8 steps; and 8 for their products of weights.
    assert of_hopper.count(PRODUCT) == 8 * KERNELS + 4 + (8 + 8)
    assert of_hopper.count("HGMMA.64x64x16.F32.BF16") == 8
    assert of_hopper.count("UTMALDG.2D") >= 2 * KERNELS
    for code in (of_hopper, of_ampere):
        assert code.count(MMA_PRODUCT) == 64 * MMA_KERNELS
        assert code.count("LDGSTS.E.BYPASS.128") >= 8 * MMA_KERNELS
