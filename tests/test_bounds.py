"""Every bound against its formula on the dense matrix, in all dtypes, value and gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from truth import BACKENDS, assert_close, lme, off_diagonal

import simmim_kernels as sk

N = 9


def rows_off(s):
    return s.masked_fill(torch.eye(len(s), dtype=torch.bool), -math.inf).logsumexp(1) - math.log(len(s) - 1)


def interpolated(s, alpha, a):
    n = len(s)
    b = torch.stack(
        [
            torch.stack(
                [alpha * (s[i].exp().sum() - s[i, j].exp()) / (n - 1) + (1 - alpha) * a[i].exp() for j in range(n)]
            )
            for i in range(n)
        ]
    )
    ratio = off_diagonal(s.diagonal()[:, None] - b.log()).mean()
    return 1 + ratio - off_diagonal(s.exp() / b.diagonal()[:, None]).mean()


def js_objective(s):
    return -F.softplus(-s.diagonal()).mean() - F.softplus(off_diagonal(s)).mean()


def baseline(dtype):
    return torch.linspace(-0.5, 0.8, N, dtype=dtype, requires_grad=True)


# name -> (parameters from the baseline, value on dense s, objective whose gradient it has)
BOUNDS = {
    "infonce": (lambda a: {}, lambda s, a: (s.diagonal() - s.logsumexp(1)).mean() + math.log(N), None),
    "dv": (lambda a: {}, lambda s, a: s.diagonal().mean() - lme(off_diagonal(s)), None),
    "nwj": (lambda a: {}, lambda s, a: s.diagonal().mean() - (off_diagonal(s) - 1).exp().mean(), None),
    "tuba": (
        lambda a: {"log_baseline": a},
        lambda s, a: 1 + (s.diagonal() - a).mean() - off_diagonal((s - a[:, None]).exp()).mean(),
        None,
    ),
    "js": (lambda a: {}, lambda s, a: 1 + s.diagonal().mean() - off_diagonal(s.exp()).mean(), js_objective),
    "js_divergence": (lambda a: {}, lambda s, a: js_objective(s), None),
    "smile": (
        lambda a: {"tau": 0.5},
        lambda s, a: s.diagonal().mean() - lme(off_diagonal(s).clamp(-0.5, 0.5)),
        js_objective,
    ),
    "interpolated": (lambda a: {"alpha": 0.4, "log_baseline": a}, lambda s, a: interpolated(s, 0.4, a), None),
    "flo": (lambda a: {"u": a}, lambda s, a: 1 - (a + (rows_off(s) - s.diagonal() - a).exp()).mean(), None),
    "leave_one_out": (lambda a: {}, lambda s, a: (s.diagonal() - rows_off(s)).mean(), None),
    "club": (lambda a: {}, lambda s, a: s.diagonal().mean() - s.mean(), None),
}


def features(dtype):
    g = torch.Generator().manual_seed(3)
    return [torch.randn(N, 5, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("name", list(BOUNDS))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bound(name, dtype, backend):
    parameters, value, objective = BOUNDS[name]
    low = torch.float64 if dtype == torch.float64 else torch.float32
    x, y = features(dtype)
    a = baseline(low)
    with sk.use_backend(backend):
        got = getattr(sk.bounds, name)(sk.DotCritic(0.4)(x, y), **parameters(a))

    def evaluate(kind):
        leaves = [t.detach().to(kind).requires_grad_() for t in (x, y, a)]
        s = 0.4 * leaves[0] @ leaves[1].T
        return value(s, leaves[2]), torch.autograd.grad(
            (objective(s) if objective else value(s, leaves[2])), leaves, allow_unused=True
        )

    want, truth = evaluate(torch.float64)
    dense, dense_gradients = evaluate(dtype) if dtype.itemsize == 2 else (None, (None,) * 3)
    assert got.dtype == low
    assert_close(got.detach(), want.detach(), None if dense is None else dense.detach(), "value")
    found = torch.autograd.grad(got, (x, y, a), allow_unused=True)
    for i, (f, t, d) in enumerate(zip(found, truth, dense_gradients, strict=True)):
        assert (f is None) == (t is None)
        if f is not None:
            assert_close(f, t, d, f"gradient {i}")


def scores(n=N, m=N, scale=0.4, seed=5):
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, 5, generator=g, dtype=torch.float64) for k in (n, m))
    return sk.DotCritic(scale)(x, y)


def test_symmetric_infonce():
    s = scores()
    d = s.dense()
    want = d.diagonal().mean() - (d.logsumexp(1).mean() + d.logsumexp(0).mean()) / 2 + math.log(N)
    assert_close(sk.bounds.infonce(s, symmetric=True), want)
    with pytest.raises(ValueError, match="square"):
        sk.bounds.infonce(scores(5, 7), symmetric=True)


def test_rectangular_scores_and_positives():
    x, y = torch.randn(6, 3).double(), torch.randn(11, 3).double()
    positives = torch.tensor([10, 3, 3, 0, 7, 5])
    s = x @ y.T
    got = sk.DotCritic()(x, y, positives=positives)
    joint = s[torch.arange(6), positives]
    mask = torch.ones(6, 11, dtype=torch.bool)
    mask[torch.arange(6), positives] = False
    assert_close(sk.bounds.infonce(got), (joint - s.logsumexp(1)).mean() + math.log(11))
    assert_close(sk.bounds.dv(got), joint.mean() - lme(s[mask]))


def test_nwj_is_tuba_with_log_baseline_one():
    assert_close(sk.bounds.tuba(scores(), 1.0), sk.bounds.nwj(scores()))


def test_flo_with_its_optimal_u_is_leave_one_out_infonce():
    s = scores()
    u = s.marginal.logmeanexp(1) - s.joint
    assert_close(sk.bounds.flo(s, u), sk.bounds.leave_one_out(s))


def test_interpolated_ends():
    s, a = scores(), torch.linspace(-1, 1, N).double()
    assert_close(sk.bounds.interpolated(s, 0.0, a), sk.bounds.tuba(s, a))
    assert_close(sk.bounds.interpolated(s, 1.0, a), interpolated(s.dense(), 1.0, a))


def test_interpolated_stays_finite_where_exponentials_overflow():
    x = torch.randn(N, 5).double()
    big = sk.DotCritic(1000.0)(x / x.norm(dim=1, keepdim=True), x / x.norm(dim=1, keepdim=True))
    assert torch.isfinite(sk.bounds.interpolated(big, 0.5, 500.0))


def test_bounds_respect_exclusions():
    s = scores()
    ids = torch.tensor([0, 0, 1, 1, 2, 2, 3, 4, 5])
    got = s.exclude(ids, ids, keep_joint=True)
    out = (ids[:, None] == ids) & ~torch.eye(N, dtype=torch.bool)
    off = s.dense()[~(out | torch.eye(N, dtype=torch.bool))]
    j = s.joint
    assert_close(sk.bounds.dv(got), j.mean() - lme(off))
    assert_close(sk.bounds.js_divergence(got), F.logsigmoid(j).mean() - F.softplus(off).mean())
    d = s.dense()[~out]
    assert_close(sk.bounds.club(got), j.mean() - d.mean())


def test_bounds_of_clamped_scores():
    """A baseline is taken from the clamped score, not clamped with it."""
    s, a = scores(), torch.linspace(-1, 1, N).double()
    d = s.dense().clamp(-0.3, 0.4)
    want = 1 + (d.diagonal() - a).mean() - off_diagonal((d - a[:, None]).exp()).mean()
    assert_close(sk.bounds.tuba(s.clamp(-0.3, 0.4), a), want)
    assert_close(sk.bounds.interpolated(s.clamp(-0.3, 0.4), 0.0, a), want)
    want = 1 - (a + (rows_off(d) - d.diagonal() - a).exp()).mean()
    assert_close(sk.bounds.flo(s.clamp(-0.3, 0.4), a), want)
    with pytest.raises(ValueError, match=r"scores must not be clamped here, got scores clamped to \[-0.3, 0.4\]"):
        sk.bounds.interpolated(s.clamp(-0.3, 0.4), 0.5, a)


def test_one_pair():
    one = scores(1, 1)
    assert abs(sk.bounds.infonce(one)) < 1e-15
    for name in ("dv", "nwj", "js", "smile", "leave_one_out", "js_divergence"):
        with pytest.raises(ValueError, match="at least two columns"):
            getattr(sk.bounds, name)(one)


def test_readouts_agree_with_the_bounds():
    s = scores()
    got = sk.bounds.readouts(s, tau=0.7)
    want = {
        "infonce": sk.bounds.infonce(s),
        "nwj": sk.bounds.nwj(s),
        "dv": sk.bounds.dv(s),
        "js": sk.bounds.js(s),
        "smile": sk.bounds.smile(s, tau=0.7),
        "plug_in": s.joint.mean(),
        "ceiling": torch.tensor(math.log(N), dtype=torch.float64),
    }
    assert set(got) == set(want)
    for name in want:
        assert_close(got[name], want[name], name=name)


def gaussian_pair(n, d, information, seed=0):
    """Correlated Gaussians with a known information in nats, and the log density ratio as scores."""
    rho = math.sqrt(1 - math.exp(-2 * information / d))
    g = torch.Generator().manual_seed(seed)
    x, e = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    y = rho * x + math.sqrt(1 - rho**2) * e
    # log p(x, y) / p(x)p(y), affine in <x, y>.
    v = 1 - rho**2
    bias = -(rho**2) / (2 * v)
    return sk.PairwiseScores(
        x, y, scale=rho / v, row_bias=bias * x.square().sum(1) - d / 2 * math.log(v), col_bias=bias * y.square().sum(1)
    )


def test_known_truth_with_the_optimal_critic():
    """I = 2 nats in 20 dimensions, N = 2048: what each bound must read (Poole et al. 2019, sec. 3)."""
    s = gaussian_pair(2048, 20, 2.0)
    for name, parameters in (("infonce", {}), ("dv", {}), ("js", {}), ("tuba", {"log_baseline": 0.0})):
        assert float(getattr(sk.bounds, name)(s, **parameters)) == pytest.approx(2.0, abs=0.1), name
    # Read by nwj, whose optimal critic is 1 + log ratio, the log ratio gives I - 1/e.
    assert float(sk.bounds.nwj(s)) == pytest.approx(2.0 - math.exp(-1), abs=0.1)
    assert float(sk.bounds.nwj(s._shifted(torch.ones(2048, dtype=torch.float64)))) == pytest.approx(2.0, abs=0.1)
    assert float(sk.bounds.infonce(gaussian_pair(64, 20, 8.0))) < math.log(64)


CLASSES = 13
TARGET = torch.tensor([0, 3, 3, 12, 2, 2, 7, 1, 2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("prior", [False, True])
def test_barber_agakov(prior, dtype, backend):
    """The entropy of the classes less the cross entropy."""
    g = torch.Generator().manual_seed(2)
    low = torch.float64 if dtype == torch.float64 else torch.float32
    x, weight, bias = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((N, 5), (CLASSES, 5), (13,)))
    leaves = [x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), bias.to(low).requires_grad_()]
    p = torch.linspace(0, 1, CLASSES, dtype=torch.float64)
    p = p / p.sum() if prior else torch.bincount(TARGET, minlength=CLASSES).double() / N

    def evaluate(kind):
        wide = [t.detach().to(kind).requires_grad_() for t in leaves]
        value = -torch.xlogy(p, p).sum() - F.cross_entropy(F.linear(*wide), TARGET)
        return value, torch.autograd.grad(value, wide)

    with sk.use_backend(backend):
        scores = sk.PairwiseScores(leaves[0], leaves[1], col_bias=leaves[2], positives=TARGET)
        got = sk.bounds.barber_agakov(scores, p.to(low)) if prior else sk.bounds.barber_agakov(scores)
        found = torch.autograd.grad(got, leaves)
    want, truth = evaluate(torch.float64)
    dense, dense_gradients = evaluate(dtype) if dtype.itemsize == 2 else (None, (None,) * 3)
    assert got.dtype == low
    assert_close(got.detach(), want.detach(), None if dense is None else dense.detach(), "value")
    for i, (f, t, d) in enumerate(zip(found, truth, dense_gradients, strict=True)):
        assert_close(f, t, d, f"gradient {i}")


def test_barber_agakov_of_the_diagonal_is_infonce():
    assert_close(sk.bounds.barber_agakov(scores()), sk.bounds.infonce(scores()))


def test_barber_agakov_with_the_true_posterior_is_the_information():
    """A fair bit through a symmetric channel that flips it once in ten: log 2 - H(0.1)."""
    said = torch.arange(1000) % 2
    heard = said.where(torch.arange(1000) % 10 != 0, 1 - said)
    log_p = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).log()
    s = sk.PairwiseScores(F.one_hot(heard).double(), log_p, positives=said)
    want = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    assert float(sk.bounds.barber_agakov(s)) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("prior", "kind", "message"),
    [
        (torch.ones(4) / 4, ValueError, r"prior must have shape \(9,\)"),
        ([1.0], TypeError, "prior must be a tensor of shape"),
        (torch.ones(N), ValueError, "prior must be probabilities, at least 0 and with sum 1; got sum 9"),
        (torch.tensor([2.0, -1.0] + [0.0] * 7), ValueError, "prior must be probabilities"),
        (torch.full((N,), torch.nan), ValueError, "prior must be probabilities"),
        (torch.ones(N, dtype=torch.long), TypeError, "prior must have a floating dtype"),
    ],
)
def test_barber_agakov_refuses_what_is_no_prior(prior, kind, message):
    with pytest.raises(kind, match=message):
        sk.bounds.barber_agakov(scores(), prior)


def test_label_entropy():
    label = torch.tensor([1, 1, -100, 0, 3])
    assert float(sk.bounds.label_entropy(label, 5)) == pytest.approx(-0.5 * math.log(0.5) - 0.5 * math.log(0.25))
    assert sk.bounds.label_entropy(torch.full((3,), 7), 5, ignore_index=7) == 0
    assert sk.bounds.label_entropy(label, 5, dtype=torch.float64).dtype == torch.float64


def entropies(logits):
    """H(mean p) and mean H(p), dense."""
    p = logits.softmax(1)
    return -torch.xlogy(p.mean(0), p.mean(0)).sum(), -torch.xlogy(p, p).sum(1).mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_information_of_predictions(dtype):
    logits = (3 * torch.randn(N, 4, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    wide = logits.detach().double().requires_grad_()
    marginal, conditional = entropies(wide)
    for function, want in (("prediction_information", marginal - conditional), ("conditional_entropy", conditional)):
        got = getattr(sk.bounds, function)(logits)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(got.detach(), want.detach(), name=function)
        (found,), (truth,) = (torch.autograd.grad(v, t, retain_graph=True) for v, t in ((got, logits), (want, wide)))
        # The gradient of half-precision logits is rounded once, to their dtype.
        assert found.dtype == dtype
        rounding = torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
        assert (found.double() - truth).abs().max() <= rounding * truth.abs().max()


def test_information_of_predictions_has_the_right_derivatives():
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for function in (sk.bounds.prediction_information, sk.bounds.conditional_entropy):
        torch.autograd.gradcheck(function, logits)
        torch.autograd.gradgradcheck(function, logits)


def test_information_of_sure_predictions():
    """Far apart and ruled out classes: exact, with gradients. One answer to everything has no information."""
    sure = (1e4 * torch.eye(3)).repeat(4, 1).requires_grad_()
    ruled_out = torch.cat([sure, torch.full((12, 1), -math.inf)], dim=1)
    for logits in (sure, ruled_out):
        value = sk.bounds.prediction_information(logits)
        assert float(value.detach()) == pytest.approx(math.log(3), abs=1e-6)
        assert sk.bounds.conditional_entropy(logits) == 0
        assert torch.isfinite(torch.autograd.grad(value, sure)[0]).all()
    same = sure[:1].repeat(12, 1)
    assert abs(sk.bounds.prediction_information(same)) < 1e-6
    assert sk.bounds.conditional_entropy(same) == 0
    with pytest.raises(ValueError, match="logits must have shape"):
        sk.bounds.prediction_information(torch.zeros(3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", list(BOUNDS))
def test_what_is_not_finite_is_not_hidden(name, bad, backend):
    """Wherever a bound is NaN or infinite of dense scores, so is ours, whatever the infinity came from."""
    parameters, value, _ = BOUNDS[name]
    x, y = (t.detach() for t in features(torch.float64))
    clean = {"x": x, "y": y, "row_bias": torch.zeros(N).double(), "col_bias": torch.zeros(N).double()}
    clean |= {"scale": torch.tensor(0.4).double()}
    a = baseline(torch.float64).detach()
    for key in clean:
        t = {k: v.clone() for k, v in clean.items()}
        t[key][(1, 2)[: t[key].dim()]] = bad
        want = value(t["scale"] * (t["x"] @ t["y"].T) + t["row_bias"][:, None] + t["col_bias"], a)
        biases = {"row_bias": t["row_bias"], "col_bias": t["col_bias"]}
        with sk.use_backend(backend):
            got = getattr(sk.bounds, name)(
                sk.PairwiseScores(t["x"], t["y"], scale=t["scale"], **biases), **parameters(a)
            )
        if want.isfinite():
            torch.testing.assert_close(got, want, msg=key)
        else:
            assert not got.isfinite(), key
