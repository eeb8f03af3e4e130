"""The operator as PyTorch sees it: opcheck, compile, functional transforms, autocast, second derivatives."""

import shutil
import threading

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from truth import BACKENDS, EVERY_BACKEND, WIDEST, Case, assert_close, gradients, weighted

import simmim_kernels as sk

CASES = {
    "plain": {},
    "biases and ids": {"biases": True, "ids": 1},
    "groups": {"biases": True, "groups": 1, "seed": 2},
    "marginal": {"joint": "left_out", "positives": True, "clamp": (-0.5, 0.5)},
}


def problem(case: Case, **changes):
    return case.scores(sk)._problem.replace(**changes)


def mlp_case():
    critic = sk.MLPCritic(3, 2, hidden=6, layers=2).double()
    x, y = torch.randn(5, 3).double().requires_grad_(), torch.randn(7, 2).double().requires_grad_()
    return critic, x, y


STATISTICS = (("logsumexp", "both"), ("softplus", "rows"), ("square", "columns"))


@pytest.mark.parametrize("case", range(len(CASES)), ids=list(CASES))
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_opcheck(case, backend):
    """What is checked is the operator; each backend and each case meets all statistics."""
    options = list(CASES.values())[case]
    fn, dims = STATISTICS[(case + EVERY_BACKEND.index(backend)) % 3]
    p = problem(Case(6, 9, 4, WIDEST[backend], **options), fn=fn, dims=dims, wants_joint=fn == "logsumexp")
    p = p.replace(wants_entropy=fn == "logsumexp" and p.wants_rows)
    opcheck(torch.ops.simmim_kernels.statistic.default, (*p.arguments(), backend))
    detached = p.replace(
        **{k: v.detach() for k, v in vars(p).items() if isinstance(v, torch.Tensor)},
        parameters=[t.detach() for t in p.parameters],
    )
    opcheck(torch.ops.simmim_kernels.statistic.default, (*detached.arguments(), backend))
    statistics = torch.ops.simmim_kernels.statistic(*detached.arguments(), backend)
    needs = [t is not None for t in p.differentiable]
    upstream = [torch.ones_like(t) for t in statistics[:3]]
    opcheck(
        torch.ops.simmim_kernels.statistic_backward.default,
        (*detached.arguments(), backend, *statistics[:2], *upstream, needs),
    )
    if fn != "logsumexp":
        opcheck(torch.ops.simmim_kernels.total.default, (*detached.replace(dims="rows").arguments(), backend, needs))


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_total_gives_its_gradients_as_often_as_asked(backend):
    """They are made in the forward and wait for their factor: a second backward must find them as they were."""
    case = Case(6, 9, 4, WIDEST[backend], biases=True)
    total = case.scores(sk).sum((0, 1), backend=backend)
    first = torch.autograd.grad(total, case.tensors.values(), retain_graph=True)
    again = torch.autograd.grad(3 * total, case.tensors.values())
    for a, b in zip(first, again, strict=True):
        assert_close(b, 3 * a.double())


def test_a_total_whose_gradients_are_wanted_later_than_made():
    """The vector-Jacobian product asks for y's gradient, although y did not require one when the total was made."""
    case = Case(6, 9, 4)
    x, y = (case.tensors[name].detach() for name in "xy")
    value, pull_back = torch.func.vjp(lambda x, y: sk.DotCritic()(x, y).sum((0, 1), backend="tiled"), x, y)
    wide = [t.clone().requires_grad_() for t in (x, y)]
    want = F.softplus(wide[0] @ wide[1].T).sum()
    assert_close(value, want.detach())
    for a, b in zip(pull_back(torch.ones_like(value)), torch.autograd.grad(want, wide), strict=True):
        assert_close(a, b)


def test_calling_the_operator_itself_gives_gradients():
    case = Case(6, 9, 4)
    rows, *_ = torch.ops.simmim_kernels.statistic(*problem(case).arguments(), "tiled")
    wide = case.upcast()
    want = gradients(case.statistic(wide, "logsumexp", 1).sum(), wide)
    for name, got in gradients(rows.sum(), case.tensors).items():
        assert_close(got, want[name], name=name)


@pytest.mark.parametrize("option", range(len(CASES)), ids=list(CASES))
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_second_derivatives(option, backend, small_tiles, monkeypatch):
    """Second derivatives are the operator's own, whatever the backend: each case meets them on one of these."""
    from simmim_kernels.operator import second_derivatives

    monkeypatch.setitem(second_derivatives._TILE, "inner_product", 4)
    case = Case(5, 7, 3, **list(CASES.values())[option])
    names = list(case.tensors)

    def f(*tensors):
        case.tensors = dict(zip(names, tensors, strict=True))
        scores = case.scores(sk)
        values = *scores.logsumexps(backend=backend), *scores.cross_entropies(backend=backend)
        return *values, scores.sum(1, fn="softplus", backend=backend), scores.sum((0, 1), "square", backend)

    inputs = tuple(case.tensors.values())
    assert torch.autograd.gradcheck(f, inputs)
    if option % len(BACKENDS) == BACKENDS.index(backend):
        assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_gradcheck_of_the_mlp(backend, small_tiles):
    critic, x, y = mlp_case()

    def f(x, y, *parameters):
        scores = torch.func.functional_call(
            critic, dict(zip(dict(critic.named_parameters()), parameters, strict=True)), (x, y)
        )
        return scores.logsumexp(1, backend=backend), scores.sum(0, fn="softplus", backend=backend)

    assert torch.autograd.gradcheck(f, (x, y, *critic.parameters()))
    assert torch.autograd.gradgradcheck(f, (x, y, *critic.parameters()), atol=1e-4)


def losses():
    x, y = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    mlp = sk.MutualInformation(sk.MLPCritic(4, 4, hidden=5).double(), bound="smile")
    return {
        "clip": (lambda x, y: sk.clip_loss(x, y, 3.0), (x, y)),
        "siglip": (lambda x, y: sk.siglip_loss(x, y, 3.0, -1.0), (x, y)),
        "info_nce": (lambda x, y: sk.info_nce_loss(x, y, symmetric=True), (x, y)),
        "nt_xent": (sk.nt_xent_loss, (x, y)),
        "dcl": (sk.dcl_loss, (x, y)),
        "supcon": (lambda x, y: sk.supcon_loss(x, labels) + 0 * y.sum(), (x, y)),
        "linear": (lambda x, y: sk.linear_cross_entropy(x, y, labels), (x, y)),
        "linear, smoothed": (
            lambda x, y: sk.linear_cross_entropy(x, y, labels, class_weight=labels + 1.0, label_smoothing=0.1),
            (x, y),
        ),
        "mlp": (mlp, (x, y)),
        "interpolated": (lambda x, y: sk.bounds.interpolated(sk.DotCritic(0.2)(x, y), 0.5, 1.0), (x, y)),
    }


@pytest.mark.parametrize("name", list(losses()))
def test_compile_fullgraph_with_dynamic_shapes(name):
    torch._dynamo.reset()
    f, (x, y) = losses()[name]
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    sizes = ((6, 6),) if name in ("supcon", "linear", "linear, smoothed") else ((6, 6), (9, 9))
    for n, m in sizes:
        x, y = (torch.randn(k, 4).double().requires_grad_() for k in (n, m))
        got, want = compiled(x, y), f(x, y)
        assert_close(got.detach(), want.detach())
        for a, b in zip(torch.autograd.grad(got, (x, y)), torch.autograd.grad(want, (x, y)), strict=True):
            assert_close(a, b)


UNSEEN = {
    "clip": lambda x, y, labels: sk.clip_loss(x, y, 3.0),
    "siglip": lambda x, y, labels: sk.siglip_loss(x, y, 3.0, -1.0),
    "info_nce": lambda x, y, labels: sk.info_nce_loss(x, x + y, y),
    "nt_xent": lambda x, y, labels: sk.nt_xent_loss(x, y),
    "dcl": lambda x, y, labels: sk.dcl_loss(x, y),
    "supcon": lambda x, y, labels: sk.supcon_loss(x + y, labels),
    "linear": lambda x, y, labels: sk.linear_cross_entropy(x, y, labels, label_smoothing=0.1),
    "barber_agakov": lambda x, y, labels: sk.bounds.barber_agakov(sk.DotCritic()(x, y, labels)),
    "interpolated": lambda x, y, labels: sk.bounds.interpolated(sk.CosineCritic()(x, y), 0.5, 1.0),
    "smile": lambda x, y, labels: sk.bounds.smile(sk.GaussianCritic()(x, y)),
}


@pytest.mark.parametrize("n", [6, 300])
@pytest.mark.parametrize("name", UNSEEN)
def test_fake_tensors(name, n):
    """Shapes and dtypes without values, as those ask for who plan memory or split a model: nothing looks at a value."""
    with FakeTensorMode():
        x, y = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
        value = UNSEEN[name](x, y, torch.randint(0, 3, (n,)))
        found = torch.autograd.grad(value, (x, y))
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert [gradient.shape for gradient in found] == [x.shape, y.shape]


@pytest.mark.parametrize("reentrant", [False, True])
def test_totals_under_a_checkpoint(reentrant):
    """A checkpoint without reentry makes saved tensors anew at every look, and refuses a second one."""
    x, y = (torch.randn(40, 4, requires_grad=True) for _ in range(2))

    def objective(x, y):
        scores = sk.DotCritic()(x, y)
        return sk.siglip_loss(x, y, 2.0, -1.0) + sk.bounds.js(scores) + sk.bounds.club(scores) + sk.bounds.smile(scores)

    want = torch.autograd.grad(objective(x, y), (x, y))
    torch.utils.checkpoint.checkpoint(objective, x, y, use_reentrant=reentrant).backward()
    assert_close(x.grad, want[0].double())
    assert_close(y.grad, want[1].double())


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compile_with_inductor():
    torch._dynamo.reset()
    f = torch.compile(lambda x, y, t: sk.clip_loss(F.normalize(x, dim=1), F.normalize(y, dim=1), t), fullgraph=True)
    x, y = (torch.randn(20, 8).requires_grad_() for _ in range(2))
    t = torch.tensor(5.0, requires_grad=True)
    want = sk.clip_loss(F.normalize(x, dim=1), F.normalize(y, dim=1), t)
    for a, b in zip(torch.autograd.grad(f(x, y, t), (x, y, t)), torch.autograd.grad(want, (x, y, t)), strict=True):
        assert_close(a, b.double())


def test_compiled_code_runs_on_the_backend_chosen():
    torch._dynamo.reset()
    seen = []

    def spy(gm, inputs):
        seen.append({a for node in gm.graph.nodes for a in node.args if a in EVERY_BACKEND})
        return gm.forward

    x = torch.randn(6, 4)
    f = torch.compile(lambda x: sk.DotCritic()(x, x).logsumexp(1), fullgraph=True, backend=spy)
    for name in EVERY_BACKEND:
        with sk.use_backend(name):
            f(x)
    assert seen == [{name} for name in EVERY_BACKEND]


@pytest.mark.parametrize("name", list(losses()))
def test_func_grad_agrees_with_autograd(name):
    f, (x, y) = losses()[name]
    got = torch.func.grad(f, argnums=(0, 1))(x, y)
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    for a, b in zip(got, torch.autograd.grad(f(x, y), (x, y)), strict=True):
        assert_close(a, b)


def test_func_hessian_vector_product():
    x, y, v = (torch.randn(5, 3).double() for _ in range(3))

    def f(x):
        return sk.clip_loss(x, y, 2.0)

    got = torch.func.grad(lambda x: (torch.func.grad(f)(x) * v).sum())(x)

    def dense(x):
        s = 2.0 * x @ y.T
        label = torch.arange(5)
        return (F.cross_entropy(s, label) + F.cross_entropy(s.T, label)) / 2

    want = torch.func.grad(lambda x: (torch.func.grad(dense)(x) * v).sum())(x)
    assert_close(got, want)


def test_vmap_and_per_example_gradients():
    x, y = torch.randn(3, 6, 4).double(), torch.randn(3, 6, 4).double()

    def f(x, y):
        return sk.DotCritic()(x, y).cross_entropy(1).sum()

    assert_close(torch.vmap(f)(x, y), torch.stack([f(a, b) for a, b in zip(x, y, strict=True)]))
    got = torch.vmap(torch.func.grad(f), in_dims=(0, None))(x, y[0])
    assert_close(got, torch.stack([torch.func.grad(f)(a, y[0]) for a in x]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_rounds_the_operands_as_matmul_does_and_nothing_else(dtype):
    x, y = torch.randn(40, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        scores = sk.DotCritic()(x, y)
        got, joint = scores.logsumexp(1), scores.joint
    assert got.dtype == joint.dtype == torch.float32
    s = x.to(dtype).double() @ y.to(dtype).double().T
    assert_close(got.detach(), s.logsumexp(1).detach())
    assert_close(joint.detach(), s.diagonal().detach())
    with torch.autocast("cpu", dtype=dtype):
        weighted(got).backward()
    assert x.grad.dtype == torch.float32
    want = torch.autograd.grad(weighted(s.logsumexp(1)), x)[0].double()
    assert (x.grad - want).abs().max() <= 2 * torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("value", ["logsumexp", "cross entropies", "joint", "total"])
def test_a_backward_inside_autocast_is_none_of_its_business(value, backend):
    """The operands were float32 when the scores were made, and so are the products of their gradients."""
    case = Case(40, 50, 16, torch.float32, biases=True)

    def of(scores):
        if value == "cross entropies":
            return weighted(torch.stack(scores.cross_entropies(backend)))
        if value == "total":
            return scores.marginal.sum((0, 1), fn="softplus", backend=backend)
        return weighted(scores.joint if value == "joint" else scores.logsumexp(1, backend=backend))

    got = of(case.scores(sk))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(got, case.tensors)
    wide = case.upcast()
    s = case.dense(wide)
    joint = s.diagonal()
    want = {
        "cross entropies": lambda: weighted(torch.stack([s.logsumexp(1) - joint, s.logsumexp(0)[:40] - joint])),
        "total": lambda: F.softplus(s).sum() - F.softplus(joint).sum(),
        "joint": lambda: weighted(joint),
        "logsumexp": lambda: weighted(s.logsumexp(1)),
    }[value]()
    for name, truth in gradients(want, wide).items():
        assert_close(found[name], truth, name=name)


def test_critics_under_autocast():
    """Each within the rounding of its operands, also where one operand is half already."""
    x, y = torch.randn(20, 6, requires_grad=True), torch.randn(30, 6)
    critics = [
        sk.DotCritic(),
        sk.CosineCritic(0.5),
        sk.GaussianCritic(2.0),
        sk.BilinearCritic(6, 6),
        sk.MLPCritic(6, 6),
    ]
    for critic in critics:
        want = critic(x, y).dense()
        for other in (y, y.bfloat16()):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                scores = critic(x, other)
                got = scores.logsumexp(1)
            assert (scores.dense() - want).abs().max() < 0.03 * want.abs().max()
            assert torch.isfinite(torch.autograd.grad(got.sum(), x)[0]).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sk.clip_loss(x[:20], y[:20].bfloat16(), 2.0)
        with pytest.raises(TypeError, match="must have one dtype"):
            sk.clip_loss(x[:20], y[:20].double(), 2.0)


def test_float64_stays_float64_under_autocast():
    x = torch.randn(8, 4).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = sk.DotCritic()(x, x).logsumexp(1)
    assert_close(got, (x @ x.T).logsumexp(1))


def test_runs_are_bit_identical():
    x, y = torch.randn(700, 20, requires_grad=True), torch.randn(1100, 20, requires_grad=True)

    def step():
        rows, columns = sk.DotCritic()(x, y).logsumexps()
        return rows, columns, *torch.autograd.grad(rows.sum() + columns.sum(), (x, y))

    for first, second in zip(step(), step(), strict=True):
        assert torch.equal(first, second)


def test_several_threads_at_once(small_tiles):
    x, y = torch.randn(60, 5).double(), torch.randn(70, 5).double()
    want = (x @ y.T).logsumexp(1)
    wrong = []

    def work(name):
        with sk.use_backend(name):
            for _ in range(20):
                a = x.clone().requires_grad_()
                got = sk.DotCritic()(a, y).logsumexp(1)
                got.sum().backward()
                if (got - want).abs().max() > 1e-10 or not torch.isfinite(a.grad).all():
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in BACKENDS * 2]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_gradients_that_no_one_needs_are_not_made():
    x, y = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    value = sk.DotCritic()(x, y).logsumexp(1).sum()
    value.backward()
    assert x.grad is not None
    assert y.grad is None
    assert not sk.DotCritic()(x.detach(), y).logsumexp(1).requires_grad
