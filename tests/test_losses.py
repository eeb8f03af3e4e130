"""Every loss against the formula of the library that it stands in for, dense, value and gradient."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from truth import BACKENDS, TOLERANCE, assert_close, normalised

import simmim_kernels as sk

N, D = 11, 6
LABELS = torch.tensor([0, 3, 0, 1, 1, 0, 7, 2, 2, 9, 1])
TARGET = torch.tensor([0, 3, -100, 10, 2, 2, -100, 1, 12, 0, 5])
# Multiples of 1/8: the same in every dtype.
CLASS_WEIGHT = torch.arange(13) / 8


def cross_entropy(s, label, reduction):
    return F.cross_entropy(s, label, reduction=reduction)


def clip(t, reduction):
    s, label = t["scale"] * t["x"] @ t["y"].T, torch.arange(N)
    return (cross_entropy(s, label, reduction) + cross_entropy(s.T, label, reduction)) / 2


def siglip(t, reduction):
    z = 2 * torch.eye(N, dtype=t["x"].dtype) - 1
    rows = -F.logsigmoid(z * (t["scale"] * t["x"] @ t["y"].T + t["bias"])).sum(1)
    return rows if reduction == "none" else rows.sum() / (N if reduction == "mean" else 1)


def info_nce(t, reduction):
    x, y = normalised(t["x"], t["y"])
    return cross_entropy(x @ y.T / t["temperature"], torch.arange(N), reduction)


def info_nce_both_ways(t, reduction):
    x, y = normalised(t["x"], t["y"])
    s, label = x @ y.T / t["temperature"], torch.arange(N)
    return (cross_entropy(s, label, reduction) + cross_entropy(s.T, label, reduction)) / 2


def info_nce_with_negatives(t, reduction):
    """The package info-nce-pytorch, negative_mode="unpaired"."""
    x, y, z = normalised(t["x"], t["y"], t["negatives"])
    logits = torch.cat([(x * y).sum(1, keepdim=True), x @ z.T], dim=1) / t["temperature"]
    return cross_entropy(logits, torch.zeros(N, dtype=torch.long), reduction)


def nt_xent(t, reduction):
    z = F.normalize(torch.cat([t["x"], t["y"]]), dim=1)
    s = (z @ z.T / t["temperature"]).masked_fill(torch.eye(2 * N, dtype=torch.bool), -math.inf)
    return cross_entropy(s, torch.arange(2 * N).roll(N), reduction)


def supcon(t, reduction):
    """SupContrast's L_out, over the anchors with a positive."""
    x = F.normalize(t["x"], dim=1)
    eye = torch.eye(N, dtype=torch.bool)
    s = (x @ x.T / t["temperature"]).masked_fill(eye, -math.inf)
    same = (LABELS[:, None] == LABELS) & ~eye
    log_p = (s - s.logsumexp(1, keepdim=True)).masked_fill(~same, 0)
    has = same.any(1)
    rows = torch.where(has, -log_p.sum(1) / same.sum(1).clamp(min=1), 0)
    return rows if reduction == "none" else rows.sum() / (has.sum() if reduction == "mean" else 1)


def dcl(t, reduction):
    """lightly 1.6's DCLLoss."""

    def one(a, b):
        eye = torch.eye(N, dtype=torch.bool)
        s_aa, s_ab = a @ a.T / t["temperature"], a @ b.T / t["temperature"]
        negatives = torch.cat([s_aa.masked_fill(eye, -math.inf), s_ab.masked_fill(eye, -math.inf)], dim=1)
        return negatives.logsumexp(1) - s_ab.diagonal()

    x, y = normalised(t["x"], t["y"])
    rows = (one(x, y) + one(y, x)) / 2
    return rows if reduction == "none" else getattr(rows, reduction)()


def linear(t, reduction):
    return F.cross_entropy(F.linear(t["x"], t["weight"], t["class_bias"]), TARGET, reduction=reduction)


def linear_weighted(t, reduction):
    s = F.linear(t["x"], t["weight"])
    return F.cross_entropy(s, TARGET, CLASS_WEIGHT.to(s.dtype), reduction=reduction)


def linear_smoothed(t, reduction):
    s = F.linear(t["x"], t["weight"], t["class_bias"])
    return F.cross_entropy(s, TARGET, reduction=reduction, label_smoothing=0.3)


def linear_weighted_and_smoothed(t, reduction):
    s = F.linear(t["x"], t["weight"], t["class_bias"])
    return F.cross_entropy(s, TARGET, CLASS_WEIGHT.to(s.dtype), reduction=reduction, label_smoothing=0.1)


# name -> (ours, dense)
LOSSES = {
    "clip": (lambda t, r: sk.clip_loss(t["x"], t["y"], t["scale"], reduction=r), clip),
    "siglip": (lambda t, r: sk.siglip_loss(t["x"], t["y"], t["scale"], t["bias"], reduction=r), siglip),
    "info_nce": (lambda t, r: sk.info_nce_loss(t["x"], t["y"], temperature=t["temperature"], reduction=r), info_nce),
    "info_nce, symmetric": (
        lambda t, r: sk.info_nce_loss(t["x"], t["y"], None, t["temperature"], r, True),
        info_nce_both_ways,
    ),
    "info_nce, negatives": (
        lambda t, r: sk.info_nce_loss(t["x"], t["y"], t["negatives"], t["temperature"], r),
        info_nce_with_negatives,
    ),
    "nt_xent": (lambda t, r: sk.nt_xent_loss(t["x"], t["y"], t["temperature"], reduction=r), nt_xent),
    "supcon": (lambda t, r: sk.supcon_loss(t["x"], LABELS, t["temperature"], reduction=r), supcon),
    "dcl": (lambda t, r: sk.dcl_loss(t["x"], t["y"], t["temperature"], reduction=r), dcl),
    "linear_cross_entropy": (
        lambda t, r: sk.linear_cross_entropy(t["x"], t["weight"], TARGET, t["class_bias"], reduction=r),
        linear,
    ),
    "linear_cross_entropy, class weights": (
        lambda t, r: sk.linear_cross_entropy(t["x"], t["weight"], TARGET, reduction=r, class_weight=CLASS_WEIGHT),
        linear_weighted,
    ),
    "linear_cross_entropy, smoothed": (
        lambda t, r: sk.linear_cross_entropy(
            t["x"], t["weight"], TARGET, t["class_bias"], reduction=r, label_smoothing=0.3
        ),
        linear_smoothed,
    ),
    "linear_cross_entropy, class weights and smoothed": (
        lambda t, r: sk.linear_cross_entropy(
            t["x"], t["weight"], TARGET, t["class_bias"], -100, r, CLASS_WEIGHT, label_smoothing=0.1
        ),
        linear_weighted_and_smoothed,
    ),
}


def tensors(dtype):
    g = torch.Generator().manual_seed(1)
    low = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    made = {
        "x": normal(N, D),
        "y": normal(N, D),
        "negatives": normal(17, D),
        "weight": normal(13, D),
        "class_bias": normal(13).to(low),
        "scale": torch.tensor(1.7, dtype=low),
        "bias": torch.tensor(-0.6, dtype=low),
        "temperature": torch.tensor(0.4, dtype=low),
    }
    return {k: v.requires_grad_() for k, v in made.items()}


def value_and_gradients(f, leaves, reduction):
    value = f(leaves, reduction)
    weight = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    return value.detach(), torch.autograd.grad((value * weight).sum(), list(leaves.values()), allow_unused=True)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss(name, reduction, dtype, backend, small_tiles):
    ours, dense = LOSSES[name]
    leaves = tensors(dtype)
    with sk.use_backend(backend):
        value, found = value_and_gradients(ours, leaves, reduction)
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    want, truth = value_and_gradients(dense, wide, reduction)
    own, own_gradients = None, [None] * len(leaves)
    if dtype.itemsize == 2:
        own, own_gradients = value_and_gradients(
            dense, {k: v.detach().to(dtype).requires_grad_() for k, v in leaves.items()}, reduction
        )
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(value, want, own, "value")
    for key, f, t, o in zip(leaves, found, truth, own_gradients, strict=True):
        assert (f is None) == (t is None), key
        if f is not None:
            assert f.dtype == leaves[key].dtype
            assert_close(f, t, o, key)


def test_modules_are_the_functions():
    x, y = torch.randn(N, D), torch.randn(N, D)
    weight, bias = torch.randn(13, D), torch.randn(13)
    t, b = torch.tensor(3.0), torch.tensor(-1.0)
    pairs = [
        (sk.InfoNCELoss(0.3, "sum", symmetric=True)(x, y), sk.info_nce_loss(x, y, None, 0.3, "sum", True)),
        (sk.InfoNCELoss(0.3)(x, y, weight), sk.info_nce_loss(x, y, weight, 0.3)),
        (sk.ClipLoss("none")(x, y, t), sk.clip_loss(x, y, t, reduction="none")),
        (sk.SigLipLoss()(x, y, t, b), sk.siglip_loss(x, y, t, b)),
        (sk.SigLipLoss()(x, y, t), sk.siglip_loss(x, y, t)),
        (sk.NTXentLoss(0.2)(x, y), sk.nt_xent_loss(x, y, 0.2)),
        (sk.SupConLoss(0.2)(x, LABELS), sk.supcon_loss(x, LABELS, 0.2)),
        (sk.DCLLoss(0.2, "sum")(x, y), sk.dcl_loss(x, y, 0.2, "sum")),
        (
            sk.LinearCrossEntropyLoss(reduction="sum")(x, weight, TARGET, bias),
            sk.linear_cross_entropy(x, weight, TARGET, bias, reduction="sum"),
        ),
        (
            sk.LinearCrossEntropyLoss(5, class_weight=CLASS_WEIGHT, label_smoothing=0.2)(
                x, weight, TARGET.clamp(min=0)
            ),
            sk.linear_cross_entropy(
                x, weight, TARGET.clamp(min=0), None, 5, class_weight=CLASS_WEIGHT, label_smoothing=0.2
            ),
        ),
    ]
    for got, want in pairs:
        assert torch.equal(got, want)
    assert "temperature=0.2" in repr(sk.NTXentLoss(0.2))


def test_class_weights_belong_to_their_module():
    loss = sk.LinearCrossEntropyLoss(class_weight=CLASS_WEIGHT)
    assert torch.equal(loss.state_dict()["class_weight"], CLASS_WEIGHT)
    assert loss.double().class_weight.dtype == torch.float64
    assert sk.LinearCrossEntropyLoss().state_dict() == {}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "classes", "d"), [(1, 1, 1), (1, 17, 3), (65, 127, 33), (129, 2, 7)])
def test_linear_cross_entropy_is_that_of_torch(n, classes, d, weighted, smoothing, reduction, small_tiles):
    """F.linear_cross_entropy has been there since torch 2.13."""
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has no F.linear_cross_entropy")
    g = torch.Generator().manual_seed(n)
    leaves = [
        torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()
        for shape in ((n, d), (classes, d), (classes,))
    ]
    target = torch.randint(0, classes, (n,), generator=g)
    target[1::5] = 7000
    weight = torch.rand(classes, generator=g, dtype=torch.float64) if weighted else None
    x, w, b = leaves
    got = sk.linear_cross_entropy(x, w, target, b, 7000, reduction, weight, smoothing)
    options = {"weight": weight, "label_smoothing": smoothing, "ignore_index": 7000, "reduction": reduction}
    want = F.linear_cross_entropy(x, w, target, linear_bias=b, **options)
    upstream = torch.linspace(0.5, 1.5, want.numel(), dtype=torch.float64).reshape(want.shape)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    for found, truth in zip(*(torch.autograd.grad(v, leaves, upstream) for v in (got, want)), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_cross_entropy_has_the_right_derivatives(smoothing):
    leaves = [tensors(torch.float64)[name] for name in ("x", "weight", "class_bias")]

    def loss(x, weight, bias):
        return sk.linear_cross_entropy(x, weight, TARGET, bias, class_weight=CLASS_WEIGHT, label_smoothing=smoothing)

    torch.autograd.gradcheck(loss, leaves)
    torch.autograd.gradgradcheck(loss, leaves)


def test_linear_cross_entropy_under_autocast():
    """As the linear layer's product would be: in bfloat16, smoothing included, with the loss in float32."""
    t = {name: value.detach() for name, value in tensors(torch.float32).items()}
    arguments = (TARGET, t["class_bias"])
    with torch.autocast("cpu", torch.bfloat16):
        got = sk.linear_cross_entropy(t["x"], t["weight"], *arguments, label_smoothing=0.3)
    want = sk.linear_cross_entropy(t["x"].bfloat16(), t["weight"].bfloat16(), *arguments, label_smoothing=0.3)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_rows_have_no_gradient(weighted, smoothing):
    t = tensors(torch.float64)
    weight = CLASS_WEIGHT if weighted else None
    for target in (TARGET, torch.full((N,), -100)):
        for reduction in ("mean", "sum"):
            loss = sk.linear_cross_entropy(
                t["x"], t["weight"], target, None, -100, reduction, weight, label_smoothing=smoothing
            )
            dx, dweight = torch.autograd.grad(loss, (t["x"], t["weight"]))
            assert (dx[target == -100] == 0).all()
            assert torch.isfinite(dx).all()
            assert torch.isfinite(dweight).all()
        if (target == -100).all():
            assert (dweight == 0).all()
            assert loss == 0


def test_rows_whose_class_weighs_nothing_have_no_mean():
    t = tensors(torch.float64)
    weight = torch.ones(13, dtype=torch.float64)
    weight[4] = 0
    target = torch.full((N,), 4)
    arguments = (t["x"], t["weight"], target, None, -100)
    assert sk.linear_cross_entropy(*arguments, "mean", weight).isnan()
    assert F.cross_entropy(t["x"] @ t["weight"].T, target, weight).isnan()
    assert sk.linear_cross_entropy(*arguments, "sum", weight) == 0


def test_info_nce_module_learns_a_temperature():
    temperature = torch.nn.Parameter(torch.tensor(0.2))
    loss = sk.InfoNCELoss(temperature)
    assert list(loss.parameters()) == [temperature]
    loss(torch.randn(N, D), torch.randn(N, D)).backward()
    assert temperature.grad.abs() > 0


def test_siglip_keeps_its_digits_when_it_is_small():
    x = torch.eye(20)
    got = sk.siglip_loss(x, x, 60.0, -30.0)
    want = 20 * math.log1p(math.exp(-30.0))
    assert float(got) == pytest.approx(want, rel=1e-5)


def test_rows_without_a_positive_contribute_nothing():
    x = torch.randn(5, 3, requires_grad=True)
    alone = sk.supcon_loss(x, torch.arange(5))
    assert alone == 0
    alone.backward()
    assert (x.grad == 0).all()
    assert sk.supcon_loss(x[:1], torch.zeros(1, dtype=torch.long)) == 0
    ignored = torch.full((5,), -100)
    assert sk.linear_cross_entropy(x, torch.randn(7, 3), ignored, reduction="sum") == 0
    assert sk.linear_cross_entropy(x, torch.randn(7, 3), ignored).isnan()


def test_nt_xent_of_one_pair_is_zero():
    assert sk.nt_xent_loss(torch.randn(1, 3), torch.randn(1, 3)).abs() < 1e-6


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["clip", "info_nce", "nt_xent", "linear_cross_entropy"])
def test_half_precision_gradients_of_a_converged_model(name, dtype, backend, hold):
    """Joint pairs hold all but some 1e-4 of their rows: gradients are what is left, not differences of roundings."""
    backend = hold() if backend == "held" else backend
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(N, 64, generator=g), dim=1)
    y = F.normalize(x + 0.05 * torch.randn(N, 64, generator=g), dim=1)
    classes = F.normalize(torch.randn(13, 64, generator=g), dim=1)
    if name == "linear_cross_entropy":
        x = 12 * (classes[TARGET.clamp(min=0)] + 0.05 * torch.randn(N, 64, generator=g))
    leaves = {k: v.to(dtype).requires_grad_() for k, v in {"x": x, "y": y, "weight": classes}.items()}
    constants = {"scale": torch.tensor(12.0), "temperature": torch.tensor(1 / 12), "class_bias": torch.zeros(13)}
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    ours, dense = LOSSES[name]
    used = ("x", "weight" if name == "linear_cross_entropy" else "y")
    with contextlib.nullcontext() if backend is None else sk.use_backend(backend):
        value = ours(leaves | constants, "sum")
    want = dense(wide | {k: v.double() for k, v in constants.items()}, "sum")
    assert want < 0.02
    # Scaled up, so that no float16 gradient is denormal.
    found, truth = (torch.autograd.grad(2**10 * v, [t[k] for k in used]) for v, t in ((value, leaves), (want, wide)))
    for got, true in zip(found, truth, strict=True):
        assert (got.double() - true).norm() <= 2 * torch.finfo(dtype).eps * true.norm()


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
@pytest.mark.parametrize("left", [1e-3, 1e-5, 3e-7])
@pytest.mark.parametrize("name", ["clip", "info_nce", "info_nce, symmetric", "nt_xent", "linear_cross_entropy"])
def test_a_converged_model_keeps_its_digits(name, left, backend, hold):
    """In float32 what is left of a loss, and its gradients, are right to the rounding of the scores: s eps each."""
    backend = hold() if backend == "held" else backend
    g = torch.Generator().manual_seed(0)
    classes = F.normalize(torch.randn(13, 64, generator=g), dim=1)
    x = classes[TARGET.clamp(min=0)] if name == "linear_cross_entropy" else F.normalize(torch.randn(N, 64, generator=g))
    y = x + 0.02 * torch.randn(N, 64, generator=g)
    leaves = {k: v.requires_grad_() for k, v in {"x": x, "y": F.normalize(y, dim=1), "weight": classes}.items()}
    wide = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    ours, dense = LOSSES[name]

    def options(scale, dtype):
        numbers = {"scale": scale, "temperature": 1 / scale, "class_bias": 0 * scale.new_ones(13)}
        numbers = {k: v.to(dtype) for k, v in numbers.items()}
        return numbers | ({"weight": scale.to(dtype) * leaves["weight"].detach().to(dtype)} if "linear" in name else {})

    scale = torch.tensor(1.0)
    while dense(wide | options(scale, torch.float64), "sum") > left:
        scale = scale * 1.02
    used = ("x",) if name == "linear_cross_entropy" else ("x", "y")
    with contextlib.nullcontext() if backend is None else sk.use_backend(backend):
        value = ours(leaves | options(scale, torch.float32), "sum")
    want = dense(wide | options(scale, torch.float64), "sum")
    found, truth = (torch.autograd.grad(v, [t[k] for k in used]) for v, t in ((value, leaves), (want, wide)))
    allowed = 4 * float(scale) * torch.finfo(torch.float32).eps
    assert value >= 0
    assert abs(value.double() - want) <= allowed * want
    for got, true in zip(found, truth, strict=True):
        assert (got.double() - true).norm() <= allowed * true.norm()


def supcon_of_terms(features, labels, temperature):
    """The losses of anchors with a positive, by two terms that do not cancel: to s eps each near a minimum."""
    x = F.normalize(features, dim=1)
    s, same = x @ x.T / temperature, labels[:, None] == labels
    positive = same & ~torch.eye(len(x), dtype=torch.bool)
    negatives = s.masked_fill(same, -math.inf).logsumexp(1)
    masked, mean = s.masked_fill(~positive, -math.inf), (s * positive).sum(1) / positive.sum(1)
    return F.softplus(negatives - masked.logsumexp(1)) + (masked - mean[:, None]).logsumexp(1)


def features_of_classes(positives, narrow, classes=7, d=64):
    """Shuffled rows `narrow` away from the directions of `classes`, each with so many positives; not normalised."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat(positives + 1)
    labels = labels[torch.randperm(len(labels), generator=g)]
    centres = F.normalize(torch.randn(classes, d, generator=g), dim=1)
    return 3 * (centres[labels] + narrow * torch.randn(len(labels), d, generator=g) / d**0.5), labels


def weighted_gradient(values, leaf):
    weight = torch.linspace(0.5, 1.5, len(values), dtype=torch.float64)
    # Scaled up, so that no float16 gradient is denormal.
    return torch.autograd.grad((2**12 * weight * values.double()).sum(), leaf)[0].double() / 2**12


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
@pytest.mark.parametrize("kind", ["float64", "float32", "bfloat16", "float16", "autocast"])
@pytest.mark.parametrize("left", [1e-3, 1e-5, 3e-7])
@pytest.mark.parametrize("positives", [1, 3])
def test_supcon_of_a_converged_model(positives, left, kind, backend, hold):
    """What is left above log K, and its gradient, to the rounding of scores: s eps, in half precision the operands'.

    The truth is of the features as they are given, which autocast has in float32. Several positives have weights that
    all but agree, each to a rounding: an error of eps s in the gradient for every unit of the class's width.
    """
    backend = hold() if backend == "held" else backend
    dtype = torch.float32 if kind == "autocast" else getattr(torch, kind)
    width = 0.003
    features, labels = features_of_classes(positives, width)
    leaf = features.to(dtype).requires_grad_()
    wide = leaf.detach().double().requires_grad_()
    least = math.log(positives)
    temperature = 1.0
    while supcon_of_terms(wide, labels, temperature).mean() - least > left:
        temperature /= 1.02
    want = supcon_of_terms(wide, labels, temperature)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast")
    with contextlib.nullcontext() if backend is None else sk.use_backend(backend), autocast:
        values = sk.supcon_loss(leaf, labels, temperature, "none")
    eps, of_truth = torch.finfo(values.dtype).eps, torch.finfo(torch.float64).eps / temperature
    operands = torch.bfloat16 if kind == "autocast" else dtype
    allowed = max(4 / temperature * eps, TOLERANCE[torch.float64])
    if operands.itemsize == 2:
        allowed = 2 * torch.finfo(operands).eps
    rounding = 4 * least * eps + (0 if positives == 1 else 4 * of_truth)
    assert (values >= least * (1 - 2 * eps)).all()
    assert ((values.double() - want).abs() <= allowed * (want - least) + rounding).all()
    found, truth = weighted_gradient(values, leaf), weighted_gradient(want, wide)
    of_weights = 0 if positives == 1 else 4 * (eps + of_truth) / temperature * width * len(labels) ** 0.5
    assert (found - truth).norm() <= allowed * truth.norm() + of_weights


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "autocast"])
@pytest.mark.parametrize("narrow", [0.3, 0.1, 0.03])
def test_supcon_of_classes_that_contract(narrow, kind, backend, hold):
    """Where what is left is that positives differ: in half precision to its rounding, in float32 no worse than dense.

    The truth is of the features as they are given, which autocast has in float32.
    """
    backend = hold() if backend == "held" else backend
    dtype = torch.float32 if kind == "autocast" else getattr(torch, kind)
    features, labels = features_of_classes(5, narrow)
    leaf = features.to(dtype).requires_grad_()
    wide = leaf.detach().double().requires_grad_()
    truth = weighted_gradient(supcon_of_terms(wide, labels, 0.03), wide)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast")
    with contextlib.nullcontext() if backend is None else sk.use_backend(backend), autocast:
        found = weighted_gradient(sk.supcon_loss(leaf, labels, 0.03, "none"), leaf)
    error = (found - truth).norm() / truth.norm()
    if kind == "float32":
        dense = (weighted_gradient(supcon_of_terms(leaf, labels, 0.03), leaf) - truth).norm() / truth.norm()
        assert error <= dense
    else:
        assert error <= 2 * torch.finfo(torch.float16 if kind == "float16" else torch.bfloat16).eps


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_supcon_is_never_negative(dtype, backend, hold):
    """As it was in float32 at a temperature of 0.02."""
    backend = hold() if backend == "held" else backend
    for positives in (1, 2, 5):
        features, labels = features_of_classes(positives, narrow=0.1)
        with contextlib.nullcontext() if backend is None else sk.use_backend(backend):
            values = sk.supcon_loss(features.to(dtype), labels, 0.02, "none")
        assert (values >= math.log(positives) * (1 - 2e-7)).all()


EDGES = {
    "one class": torch.zeros(7, dtype=torch.long),
    "one class of two": torch.zeros(2, dtype=torch.long),
    "one anchor alone": torch.tensor([5, 1, 1, 5, 1, 0, 5]),
    "no positives": torch.arange(7),
    "a single row": torch.zeros(1, dtype=torch.long),
}


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
@pytest.mark.parametrize("labels", EDGES.values(), ids=list(EDGES))
def test_supcon_without_positives_or_without_negatives(labels, backend, hold):
    backend = hold() if backend == "held" else backend
    x = torch.randn(len(labels), 4, dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
    has = same.any(1)

    def losses(x, temperature):
        return sk.supcon_loss(x, labels, temperature, "none")

    with contextlib.nullcontext() if backend is None else sk.use_backend(backend):
        values = losses(x, temperature)
        assert (values[~has] == 0).all()
        if has.any():
            torch.testing.assert_close(values[has], supcon_of_terms(x, labels, 0.3)[has], rtol=1e-12, atol=1e-12)
        alone = torch.autograd.grad(values[~has].sum(), x, retain_graph=True)[0]
        assert (alone == 0).all()
        assert torch.autograd.gradcheck(losses, (x, temperature))
        assert torch.autograd.gradgradcheck(losses, (x, temperature))


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
def test_cross_entropies_are_never_negative(backend, hold):
    """Even where rounding puts a joint score above the log-sum-exp that holds it."""
    backend = hold() if backend == "held" else backend
    for seed in range(5):
        x = F.normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)), dim=1)
        with contextlib.nullcontext() if backend is None else sk.use_backend(backend):
            assert (sk.clip_loss(x, x, 100.0, reduction="none") >= 0).all()


@pytest.mark.parametrize("backend", ["held", *BACKENDS])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", list(LOSSES))
def test_what_is_not_finite_is_not_hidden(name, bad, backend, hold):
    """Wherever dense PyTorch's loss of a row is NaN or infinite, so is ours, with a gradient that says so too."""
    backend = hold() if backend == "held" else backend
    ours, dense = LOSSES[name]
    clean = {k: v.detach() for k, v in tensors(torch.float64).items()}
    for key in ("x", "y", "negatives", "weight", "class_bias", "temperature"):
        leaves = {k: v.clone().requires_grad_() for k, v in clean.items()}
        with torch.no_grad():
            leaves[key][(1, 2)[: leaves[key].dim()]] = bad
        with contextlib.nullcontext() if backend is None else sk.use_backend(backend):
            value = ours(leaves, "none")
        want = dense(leaves, "none")
        assert not torch.isfinite(value[~want.isfinite()]).any(), key
        torch.testing.assert_close(value[want.isfinite()], want[want.isfinite()], msg=key)
        found, truth = (torch.autograd.grad(v.sum(), leaves[key], allow_unused=True)[0] for v in (value, want))
        if truth is not None and not truth.isfinite().all():
            assert not found.isfinite().all(), key


@pytest.mark.parametrize("backend", ["held", *BACKENDS, "triton"])
def test_a_joint_score_of_infinity_does_not_hide_itself(backend, hold):
    """Of a row whose others are all lower its cross entropy was softplus(-inf), 0; dense it is inf - inf."""
    backend = hold() if backend == "held" else backend
    x = torch.tensor([[0.5, -0.5], [0.3, math.inf], [-0.4, -0.2]], requires_grad=True)
    negatives = torch.full((4, 2), -1.0)
    dense = cross_entropy(x @ x.T, torch.arange(3), "none")
    assert dense[1].isnan()
    with contextlib.nullcontext() if backend is None else sk.use_backend(backend):
        scores = sk.DotCritic()(x, x)
        loss = sk.clip_loss(x, x, 1.0)
        assert loss.isnan()
        assert scores.cross_entropy(1)[1].isnan()
        assert scores.cross_entropy(0)[1].isnan()
        assert sk.bounds.infonce(scores).isnan()
        assert sk.linear_cross_entropy(x, x, torch.arange(3), reduction="none")[1].isnan()
        assert sk.info_nce_loss(x, x, negatives, reduction="none")[1].isnan()
    assert torch.autograd.grad(loss, x)[0][1].isnan().all()
