"""The native backend: every instruction set that this machine runs against dense float64, threads, forks and memory."""

import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
import torch.utils.checkpoint
import torch.utils.data
from truth import (
    ENTROPIES,
    NEGATED,
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
from simmim_kernels.backends import BACKENDS, select
from simmim_kernels.backends.native.library import (
    NOT_CHECKED,
    built_for,
    has_openmp,
    in_use,
    instruction_sets,
    loaded,
    openmp_threads,
    why_not,
)
from simmim_kernels.comparison.measure import extra_bytes, forward_backward

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"the native library: {why_not()}")

ALL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("dim", [1, 0, (0, 1)], ids=str)
@pytest.mark.parametrize("fn", ["logsumexp", "softplus", "square", "identity"])
def test_options(fn, dim, options, instruction_set, threads):
    check_statistic(sk, Case(37, 53, 5, **options), fn, dim, "native")


@pytest.mark.parametrize("options", NEGATED.values(), ids=list(NEGATED))
@pytest.mark.parametrize("mirrored", [False, True], ids=["", "mirrored"])
@pytest.mark.parametrize("dim", [1, (0, 1)], ids=str)
def test_negated_joint_pairs(dim, mirrored, options, instruction_set, threads):
    case = Case(37, 37 if mirrored else 53, 5, torch.float32, mirrored=mirrored, **options)
    check_statistic(sk, case, "softplus", dim, "native")


@pytest.mark.parametrize("dim", [1, 0, (0, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_log1mexp_of_negative_scores(dim, dtype, instruction_set):
    case = Case(37, 53, 5, dtype, biases=True, scale=0.3, joint="left_out")
    with torch.no_grad():
        case.tensors["row_bias"] -= float(case.dense(case.tensors).max()) + 0.05
    check_statistic(sk, case, "log1mexp", dim, "native")


SIZES = (1, 2, 3, 17, 63, 64, 65, 95, 97, 129, 255)
WIDTHS = (1, 3, 7, 16, 33, 64, 128)


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize(("n", "m"), [*zip(SIZES, SIZES, strict=True), *itertools.pairwise(SIZES), (129, 17), (64, 3)])
def test_shapes_and_dtypes(n, m, dtype, instruction_set, threads):
    d = WIDTHS[(n + m) % len(WIDTHS)]
    for fn, dim in (("logsumexp", 1), ("logsumexp", 0), ("softplus", (0, 1))):
        check_statistic(sk, Case(n, m, d, dtype), fn, dim, "native")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(200, 2100, 40), (100, 1000, 700), (1000, 129, 1024), (300, 961, 64)])
def test_several_panels(n, m, d, dtype, instruction_set, threads):
    check_statistic(sk, Case(n, m, d, dtype, biases=True, ids=1), "logsumexp", 0, "native")
    check_statistic(sk, Case(n, m, d, dtype, joint="left_out" if m >= n else "counted"), "softplus", (0, 1), "native")


@pytest.mark.parametrize("joint", ["left_out", "kept"])
@pytest.mark.parametrize("fn", ["logsumexp", "softplus"])
def test_joint_pairs_at_the_edges_of_panels(fn, joint, instruction_set, threads):
    """Of 960 columns each. Every joint pair is one that the ids leave out."""
    case = Case(7, 1921, 5, positives=True, ids=1, joint=joint)
    case.column = torch.tensor([0, 959, 960, 1919, 1920, 1, 961])
    case.col_ids[0, case.column] = case.row_ids[0]
    for dim in (0, 1):
        check_statistic(sk, case, fn, dim, "native")


@pytest.mark.parametrize("options", ENTROPIES.values(), ids=list(ENTROPIES))
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 3), (5, 9, 1), (97, 97, 33), (130, 1100, 16)])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "made again"])
def test_cross_entropies(n, m, d, kept, options, instruction_set, threads, monkeypatch):
    """The joint pairs' own cross entropies and their gradients, in one call each, across strips and panels."""
    monkeypatch.setattr(BACKENDS["native"], "KEPT_SCORES", 2**20 if kept else 0)
    case = Case(n, m, d, **options)
    wide, rows = case.upcast(), torch.arange(n)
    column = rows if case.column is None else case.column
    s = case.dense(wide)
    joint, s = s[rows, column], s.masked_fill(case.mask(), -torch.inf)
    scores = case.scores(sk)
    got, want = [scores.cross_entropy(1, backend="native")], [s.logsumexp(1) - joint]
    if case.column is None:
        got, want = [*got, *scores.cross_entropies(backend="native")], [*want, *want, s.logsumexp(0)[:n] - joint]
    for found, true in zip(got, want, strict=True):
        assert_close(found.detach(), true.detach())
    # Twice, since what was kept for a backward must survive it.
    truth = gradients(sum(weighted(value) for value in want), wide)
    for _ in range(2):
        leaves = list(case.tensors.values())
        found = torch.autograd.grad(sum(weighted(value) for value in got), leaves, retain_graph=True)
        for name, gradient in zip(case.tensors, found, strict=True):
            assert_close(gradient, truth[name], name=name)


@pytest.mark.parametrize("dtype", ALL[1:], ids=str)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "made again"])
def test_cross_entropies_of_every_dtype(dtype, kept, instruction_set, threads, monkeypatch):
    monkeypatch.setattr(BACKENDS["native"], "KEPT_SCORES", 2**20 if kept else 0)
    case = Case(130, 1100, 33, dtype)
    wide = case.upcast()
    s = case.dense(wide)
    joint = s.diagonal()
    want = (s.logsumexp(1) - joint, s.logsumexp(0)[:130] - joint)
    got = case.scores(sk).cross_entropies(backend="native")
    for found, true in zip(got, want, strict=True):
        assert_close(found.detach(), true.detach())
    truth = gradients(sum(weighted(value) for value in want), wide)
    for name, gradient in gradients(sum(weighted(value) for value in got), case.tensors).items():
        # One rounding to the dtype, and one of the weights where products of bfloat16 are made of those.
        allowed = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        assert (gradient.double() - truth[name]).norm() <= allowed * truth[name].norm(), name


def test_second_derivatives_of_cross_entropies():
    case = Case(5, 7, 3, biases=True)

    def entropies(x, y, scale, row_bias, col_bias):
        scores = sk.PairwiseScores(x, y, scale=scale, row_bias=row_bias, col_bias=col_bias)
        return scores.cross_entropies(backend="native")

    tensors = tuple(case.tensors[name] for name in ("x", "y", "scale", "row_bias", "col_bias"))
    assert torch.autograd.gradcheck(entropies, tensors)
    assert torch.autograd.gradgradcheck(entropies, tensors)
    assert torch.autograd.gradgradcheck(lambda x: entropies(x, x, *tensors[2:3], None, None), (case.tensors["x"],))


@pytest.mark.parametrize("reentrant", [True, False])
def test_cross_entropies_under_a_checkpoint(reentrant):
    x, y = (torch.randn(70, 5, requires_grad=True) for _ in range(2))

    def loss(x, y):
        with sk.use_backend("native"):
            return sk.clip_loss(x.tanh(), y.tanh(), 3.0)

    want = torch.autograd.grad(loss(x, y), (x, y))
    torch.utils.checkpoint.checkpoint(loss, x, y, use_reentrant=reentrant).backward()
    assert torch.equal(x.grad, want[0])
    assert torch.equal(y.grad, want[1])


def test_a_checkpoint_frees_what_it_makes_anew():
    x, made = torch.randn(70, 5, requires_grad=True), []

    def loss(x):
        z = x.tanh()
        made.append(weakref.ref(z))
        with sk.use_backend("native"):
            return sk.clip_loss(z, z * 2, 3.0)

    value = torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False)
    assert made[0]() is None
    assert torch.equal(*torch.autograd.grad(value, x), *torch.autograd.grad(loss(x), x))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_cross_entropies_under_saved_tensor_hooks(reduction):
    """All that waits for a backward passes through them, scores that are kept included."""
    x, y = (torch.randn(70, 5, requires_grad=True) for _ in range(2))
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor.tolist(), tensor.dtype, tensor.shape

    def unpack(packed):
        values, dtype, shape = packed
        return torch.tensor(values, dtype=dtype).reshape(shape)

    with sk.use_backend("native"):
        want = torch.autograd.grad(sk.clip_loss(x, y, 3.0, reduction=reduction).sum(), (x, y))
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            loss = sk.clip_loss(x, y, 3.0, reduction=reduction)
    assert (max(sizes) >= 70 * 70) == (reduction == "none")  # the mean has its gradients already
    for got, gradient in zip(torch.autograd.grad(loss.sum(), (x, y)), want, strict=True):
        assert torch.equal(got, gradient)


def test_what_a_backward_needs_must_not_change_meanwhile():
    x, y = (torch.randn(70, 5, requires_grad=True) for _ in range(2))
    z = x * 2
    with sk.use_backend("native"):
        loss = sk.clip_loss(z, y, 1.0)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("spread", SPREADS, ids=lambda s: f"scores to {s}")
@pytest.mark.parametrize("columns_differ", [False, True])
def test_rows_and_columns_of_very_different_size(spread, columns_differ, dtype, instruction_set):
    check_spread(sk, spread, columns_differ, dtype, "native")


def test_panels_and_strips_of_very_different_size(instruction_set):
    """One reference serves within a panel and within a strip, but not for their neighbours."""
    case = Case(200, 1000, 5, biases=True)
    with torch.no_grad():
        case.tensors["row_bias"][96:] += 1000
        case.tensors["col_bias"][960:] -= 1000
    for dim in (0, 1):
        check_statistic(sk, case, "logsumexp", dim, "native")


@pytest.mark.parametrize("fn", list(POINTWISE))
def test_pointwise_functions_over_their_range(fn, instruction_set):
    check_pointwise(sk, fn, "native", 1e-6)


def test_it_is_the_default_on_the_cpu():
    assert select(Case(4, 4, 3).scores(sk)._problem) == "native"


def test_the_instruction_set_in_use(instruction_set):
    assert in_use() == instruction_set


def test_instruction_sets_are_among_those_of_the_build():
    assert [name for name in built_for() if name in instruction_sets()] == list(instruction_sets())
    assert built_for()[-1] == instruction_sets()[-1] == "portable"
    assert in_use() == next(name for name in instruction_sets() if name != NOT_CHECKED)


def test_openmp_is_pytorchs(threads):
    assert openmp_threads() == (threads if has_openmp() else 1)


def test_an_instruction_set_that_is_not_there():
    assert loaded().simmim_choose(b"abacus") == -1


def loss_and_gradients(threads: int):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(500, 33, generator=g).requires_grad_() for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with sk.use_backend("native"):
            loss = sk.clip_loss(x, y, 0.3)
            return loss.detach(), *torch.autograd.grad(loss, (x, y))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_same_bits_run_to_run(number):
    first, *others = (loss_and_gradients(number) for _ in range(4))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


OVERSUBSCRIBED = """
import sys
import torch
import simmim_kernels as sk

def found(threads, dtype):
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(300, 40, generator=g, dtype=dtype).requires_grad_() for _ in range(2))
    all_of_them = []
    with sk.use_backend("native"):
        for loss in (sk.clip_loss(x, y, 0.3), sk.siglip_loss(x, y, 0.3, -5.0)):
            all_of_them += [loss.detach(), *torch.autograd.grad(loss, (x, y))]
    return all_of_them

many, results = int(sys.argv[1]), {}
for dtype in (torch.float32, torch.float64):
    results[dtype] = found(1, dtype), found(many, dtype), found(many, dtype)
torch.save(results, sys.argv[2])
"""


def test_more_threads_than_cores(tmp_path):
    """In a process of its own, whose pool of threads ends with it."""
    file = tmp_path / "results"
    environment = {**os.environ, "OMP_NUM_THREADS": "16"}
    subprocess.run([sys.executable, "-c", OVERSUBSCRIBED, "16", file], env=environment, timeout=120, check=True)
    for dtype, (one, many, again) in torch.load(file).items():
        for want, got, same in zip(one, many, again, strict=True):
            assert torch.equal(got, same)
            assert (got - want).norm() <= {torch.float32: 1e-6, torch.float64: 1e-13}[dtype] * want.norm()


def test_several_python_threads_at_once():
    want, found = loss_and_gradients(1), {}
    calls = [threading.Thread(target=lambda k=k: found.update({k: loss_and_gradients(1)})) for k in range(6)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert len(found) == 6
    for got in found.values():
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def _in_child(queue, threads):
    queue.put([t.tolist() for t in loss_and_gradients(threads)])


@pytest.mark.parametrize(("method", "threads"), [("fork", 1), ("spawn", 2)])
def test_in_a_worker(method, threads):
    """The parent's threads do not exist in a forked one, which therefore runs on one; a spawned one makes its own."""
    want = [t.tolist() for t in loss_and_gradients(threads)]
    loss_and_gradients(2)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue, threads))
    child.start()
    try:
        got = queue.get(timeout=60)
        child.join(timeout=60)
        assert child.exitcode == 0
    finally:
        child.kill()
    assert got == want


class _Losses(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.get_num_threads(), *loss_and_gradients(torch.get_num_threads())


def test_in_a_data_loaders_worker():
    """It sets PyTorch's threads to one by itself, which is what the kernels then run on."""
    want = loss_and_gradients(1)
    loss_and_gradients(2)
    loader = torch.utils.data.DataLoader(
        _Losses(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60
    )
    found = list(loader)
    assert len(found) == 2
    for threads, *got in found:
        assert threads == 1
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_pytorch_allocates_only_the_results():
    """The kernels' own workspace is theirs: a few MB a thread, whatever N."""
    x, y = (torch.randn(4096, 8, requires_grad=True) for _ in range(2))

    def step():
        with sk.use_backend("native"):
            forward_backward(lambda x, y: sk.clip_loss(x, y, 0.1), (x, y))

    assert extra_bytes(step) < 4 * 2**20


def test_a_planted_error_is_seen(monkeypatch):
    backward = BACKENDS["native"].backward

    def double(*arguments):
        dx, *rest = backward(*arguments)
        dx[3, 1] *= 1.001
        return [dx, *rest]

    monkeypatch.setattr(BACKENDS["native"], "backward", double)
    with pytest.raises(AssertionError, match="x: error"):
        check_statistic(sk, Case(37, 53, 5), "logsumexp", 1, "native")


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_vector_math(instruction_set, setup_py, tmp_path):
    """exp and its kin, as the kernels compile them: every 1001st float32 and the borders of every range, in ulp.

    By hand, a stride of 1 goes through all of them in 11 minutes; csrc/cpu/tests/vector_math_test.cpp has the bounds.
    """
    root = Path(__file__).parents[1]
    every = {each.name: each for sets in setup_py.INSTRUCTION_SETS.values() for each in sets}
    chosen, program = every[instruction_set], tmp_path / "vector_math_test"
    command = ["c++", *setup_py.FLAGS.split(), *chosen.options]
    command += ["-I", root / "csrc/cpu", root / "csrc/cpu/tests/vector_math_test.cpp", "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run([program, "1001"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
