"""MultiTaskSimMIM against dense formulas in float64, and transfer between modules."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from truth import BACKENDS, assert_close

import simmim_kernels as sk

N, D, WIDTH = 12, 5, 4
LABELS = {"a": torch.arange(N) % 3, "b": torch.tensor([1, 0, 1, 1, -100, 0, 0, 1, -100, 0, 1, 1])}


def inputs(seed=0):
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(heads=None, **options):
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Linear(D, WIDTH), nn.Tanh())
    heads = {"a": nn.Linear(WIDTH, 3), "b": nn.Linear(WIDTH, 2)} if heads is None else heads
    return sk.MultiTaskSimMIM(backbone, heads, **options).double()


def entropy(p):
    return -sum(q * math.log(q) for q in p if q > 0)


def dense_information(model, task, x, y):
    """H(Y) - cross entropy, of the labels that are there."""
    logits = model.heads[task](model.backbone(x))
    there = y != -100
    shares = [(y[there] == c).double().mean().item() for c in range(logits.shape[1])]
    return entropy(shares) - F.cross_entropy(logits[there], y[there])


def gradients(value, model):
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


def assert_same_gradients(value, want, model):
    for got, truth in zip(gradients(value, model), gradients(want, model), strict=True):
        assert_close(got, truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_labelled_tasks(backend, bias):
    model = build(
        {"a": nn.Linear(WIDTH, 3, bias=bias), "b": nn.Sequential(nn.Linear(WIDTH, 6), nn.ReLU(), nn.Linear(6, 2))}
    )
    x = inputs()
    with sk.use_backend(backend):
        out = model({task: (x, y) for task, y in LABELS.items()})
    want = {task: dense_information(model, task, x, y) for task, y in LABELS.items()}
    for task in want:
        assert_close(out.information[task].detach(), want[task].detach())
    total = -want["a"] - want["b"]
    assert_close(out.loss.detach(), total.detach())
    assert_same_gradients(out.loss, total, model)


def test_a_linear_head_gives_what_its_logits_give():
    """The same layer, straight and behind a module that hides it: without logits and with them."""
    head = nn.Linear(WIDTH, 3)
    model = build({"straight": head, "hidden": nn.Sequential(head)})
    x = inputs()
    out = model({"straight": (x, LABELS["a"]), "hidden": (x, LABELS["a"])})
    assert_close(out.information["straight"].detach(), out.information["hidden"].detach())
    assert_same_gradients(out.information["straight"], out.information["hidden"], model)


def test_a_linear_head_of_many_classes_makes_no_logits(monkeypatch):
    model = build()
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, x: pytest.fail("logits") if x.shape[1] == WIDTH else x[:, :4]
    )
    model({"a": (inputs(), LABELS["a"])})


@pytest.mark.parametrize("kind", ["hook", "weight norm", "subclass"])
def test_a_head_that_is_more_than_its_linear_map_is_called(kind):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    head = Doubled(WIDTH, 3) if kind == "subclass" else nn.Linear(WIDTH, 3)
    if kind == "hook":
        head.register_forward_hook(lambda module, given, logits: 2 * logits)
    elif kind == "weight norm":
        nn.utils.parametrizations.weight_norm(head)
        head.parametrizations.weight.original0.data.mul_(2)
    model, x = build({"a": head}), inputs()
    out = model({"a": (x, LABELS["a"])})
    want = dense_information(model, "a", x, LABELS["a"])
    assert_close(out.loss.detach(), -want.detach())
    assert_same_gradients(out.loss, -want, model)


@pytest.mark.parametrize("weights", [None, {"a": 0.3}, "uncertainty"])
def test_gradients_add_up_over_tasks(weights):
    model = build(weights=weights)
    x, other = inputs(), inputs(7)
    batch = {"a": (x, LABELS["a"]), "b": (other, LABELS["b"])}
    together = gradients(model(batch).loss, model)
    alone = [gradients(model({task: part}).loss, model) for task, part in batch.items()]
    for got, first, second in zip(together, *alone, strict=True):
        torch.testing.assert_close(got, first + second, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    model = build(weights="uncertainty")

    def loss(x, *parameters):
        names = [name for name, _ in model.named_parameters()]
        batch = {"a": (x, LABELS["a"]), "b": (x, None)}
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (batch,)).loss

    torch.autograd.gradcheck(loss, (inputs().requires_grad_(), *model.parameters()))


def test_fixed_weights():
    model = build(weights={"b": 0.25})
    x = inputs()
    out = model({"a": (x, LABELS["a"]), "b": (x, LABELS["b"])})
    assert_close(out.loss, -out.information["a"] - 0.25 * out.information["b"])


def test_uncertainty_weights_have_the_gradient_of_the_closed_form():
    """Kendall, Gal and Cipolla 2018, eq. 10: d/d log sigma = 1 - 2 L / sigma^2, zero at sigma^2 = 2 L."""
    model, x = build(weights="uncertainty"), inputs()
    sigma = {"a": 1.7, "b": 0.6}
    for task, value in sigma.items():
        model.log_sigma[task].data.fill_(math.log(value))
    lacking = {
        "a": entropy([1 / 3] * 3) - dense_information(model, "a", x, LABELS["a"]),
        "b": math.log(2) - bridle(model.heads["b"](model.backbone(x))),
    }
    out = model({"a": (x, LABELS["a"]), "b": (x, None)})
    want = sum(lacking[task] / sigma[task] ** 2 + math.log(sigma[task]) for task in sigma)
    assert_close(out.loss.detach(), want.detach())
    out.loss.backward()
    for task, value in sigma.items():
        assert_close(model.log_sigma[task].grad, (1 - 2 * lacking[task] / value**2).detach())
    assert {"log_sigma.a", "log_sigma.b"} <= set(model.state_dict())


def test_a_task_that_the_batch_lacks_is_left_alone():
    model = build(weights="uncertainty")
    out = model({"b": (inputs(), LABELS["b"])})
    assert set(out.information) == {"b"}
    out.loss.backward()
    assert model.heads["a"].weight.grad is None
    assert model.log_sigma["a"].grad is None
    assert model.log_sigma["b"].grad.abs() > 0


@pytest.mark.parametrize("weights", [None, "uncertainty"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_task_without_any_label_adds_nothing_and_reads_nan(weights, deep):
    head = nn.Linear(WIDTH, 3)
    model, x = build({"a": nn.Sequential(head) if deep else head, "b": nn.Linear(WIDTH, 2)}, weights=weights), inputs()
    out = model({"a": (x, torch.full((N,), -100)), "b": (x, LABELS["b"])})
    assert out.information["a"].isnan()
    alone = model({"b": (x, LABELS["b"])})
    assert torch.equal(out.loss, alone.loss)
    for got, want in zip(gradients(out.loss, model), gradients(alone.loss, model), strict=True):
        assert torch.equal(got, want)
    only = model({"a": (x, torch.full((N,), -100))})
    assert only.loss == 0
    assert all((g == 0).all() for g in gradients(only.loss, model))


def test_nan_in_the_features_is_not_hidden():
    x = inputs()
    x[0] = torch.nan
    assert build()({"a": (x, LABELS["a"])}).loss.isnan()


def test_priors():
    prior = torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64)
    model, x = build(priors={"a": prior}), inputs()
    out = model({"a": (x, LABELS["a"])})
    empirical = dense_information(model, "a", x, LABELS["a"])
    want = empirical - entropy([1 / 3] * 3) + entropy(prior.tolist())
    assert_close(out.information["a"].detach(), want.detach())
    assert_same_gradients(out.loss, -empirical, model)


def bridle(logits):
    p = logits.softmax(1)
    mean = p.mean(0)
    return -(mean * mean.log()).sum() + (p * p.log()).sum(1).mean()


def test_unlabelled_task():
    model, x = build(), inputs()
    out = model({"a": (x, None)})
    want = bridle(model.heads["a"](model.backbone(x)))
    assert_close(out.information["a"].detach(), want.detach())
    assert_same_gradients(out.loss, -want, model)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.runs = nn.Linear(D, WIDTH), 0

    def forward(self, x):
        self.runs += 1
        return self.linear(x)


def test_one_input_runs_the_backbone_once():
    backbone = Counting()
    model = sk.MultiTaskSimMIM(backbone, {"a": nn.Linear(WIDTH, 3), "b": nn.Linear(WIDTH, 2)})
    x = inputs().float()
    model({"a": (x, LABELS["a"]), "b": (x, None)})
    assert backbone.runs == 1
    model({"a": (x, LABELS["a"]), "b": (x.clone(), LABELS["b"])})
    assert backbone.runs == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype):
    model, x = build(), inputs()
    batch = {"a": (x, LABELS["a"]), "b": (x, None)}
    want = model(batch)
    out = model.to(dtype)({"a": (x.to(dtype), LABELS["a"]), "b": (x.to(dtype), None)})
    tolerance = 1e-6 if dtype == torch.float32 else 0.03
    for task in batch:
        assert out.information[task].dtype == torch.float32
        assert abs(out.information[task].double() - want.information[task]).item() < tolerance


def test_autocast():
    model, x = build().float(), inputs().float()
    with torch.autocast("cpu", torch.bfloat16):
        out = model({"a": (x, LABELS["a"]), "b": (x, None)})
    want = model({"a": (x, LABELS["a"]), "b": (x, None)})
    assert out.loss.dtype == torch.float32
    assert abs(out.loss - want.loss).item() < 0.03
    out.loss.backward()


def test_compiles():
    torch._dynamo.reset()
    model, x = build(weights="uncertainty"), inputs()
    batch = {"a": (x, LABELS["a"]), "b": (x, None)}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(batch)
    want = model(batch)
    assert_close(compiled.loss.detach(), want.loss.detach())
    assert_same_gradients(compiled.loss, want.loss, model)


BAD = {
    "no heads": (lambda: sk.MultiTaskSimMIM(nn.Identity(), {}), ValueError, "heads must have one task or more"),
    "no module": (lambda: sk.MultiTaskSimMIM(nn.Identity(), {"a": 3}), TypeError, "heads must map .* 'a': int 3"),
    "a dot": (lambda: build({"a.b": nn.Identity()}), ValueError, "heads must have names .* got 'a.b'"),
    "an attribute": (lambda: build({"values": nn.Identity()}), ValueError, "heads must have names .* got 'values'"),
    "weights of no task": (
        lambda: build(weights={"c": 1.0}),
        ValueError,
        "weights must have tasks among a, b; got 'c'",
    ),
    "a negative weight": (lambda: build(weights={"a": -1}), ValueError, r"weights\['a'\] must be .* got -1"),
    "a wrong word": (lambda: build(weights="equal"), ValueError, "weights must be .* got 'equal'"),
    "prior of no task": (lambda: build(priors={"c": torch.ones(1)}), ValueError, "priors must have tasks among"),
    "prior, no sum": (lambda: build(priors={"a": torch.ones(3)}), ValueError, r"priors\['a'\] must be probabilities"),
    "prior, a list": (lambda: build(priors={"a": [1.0]}), TypeError, r"priors\['a'\] must be a tensor"),
    "prior, a size": (
        lambda: build(priors={"a": torch.ones(2) / 2})({"a": (inputs(), LABELS["a"])}),
        ValueError,
        r"priors\['a'\] must have as many entries as the task has classes, 3; got 2",
    ),
    "no task": (lambda: build()({}), ValueError, "batch must have one of the tasks a, b or more, got none"),
    "an unknown task": (
        lambda: build()({"c": (inputs(), None)}),
        ValueError,
        "batch must have tasks among a, b; got 'c'",
    ),
    "no pair": (
        lambda: build()({"a": inputs()}),
        TypeError,
        r"batch\['a'\] must be a pair \(x, y\), got a float64 tensor",
    ),
    "a label too large": (
        lambda: build()({"a": (inputs(), LABELS["a"] + 1)}),
        ValueError,
        r"labels of task 'a' must be in \[0, 3\) or equal to -100",
    ),
    "float labels": (
        lambda: build()({"a": (inputs(), torch.rand(N))}),
        TypeError,
        "labels of task 'a' must have an integer dtype",
    ),
    "too few labels": (
        lambda: build()({"a": (inputs(), LABELS["a"][:3])}),
        ValueError,
        r"labels of task 'a' must have shape \(12,\)",
    ),
    "logits of three dimensions": (
        lambda: build({"a": nn.Unflatten(1, (2, 2))})({"a": (inputs(), LABELS["a"])}),
        ValueError,
        "logits of task 'a' must have shape",
    ),
}


@pytest.mark.parametrize("bad", list(BAD))
def test_bad_arguments(bad):
    make, kind, message = BAD[bad]
    with pytest.raises(kind, match=message):
        make()


def test_training_on_two_tasks_improves_both():
    """Two labels of one input, each a function of another direction of it: 2 and 3 classes, all but decided by x."""
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    y = {"sign": (x[:, 0] > 0).long(), "third": torch.bucketize(x[:, 1].contiguous(), torch.tensor([-0.43, 0.43]))}
    torch.manual_seed(0)
    heads = {"sign": nn.Linear(16, 2), "third": nn.Linear(16, 3)}
    model = sk.MultiTaskSimMIM(nn.Sequential(nn.Linear(8, 16), nn.ReLU()), heads)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = {task: (x, labels) for task, labels in y.items()}
    for _ in range(150):
        optimiser.zero_grad()
        model(batch).loss.backward()
        optimiser.step()
    information = model(batch).information
    assert math.log(2) - 0.15 < information["sign"] < math.log(2)
    assert math.log(3) - 0.25 < information["third"] < math.log(3)


def test_training_without_labels_finds_clusters():
    """Three clusters and no label: the information of the answers rises to log 3, and the answers are the clusters."""
    g = torch.Generator().manual_seed(0)
    cluster = torch.arange(90) % 3
    x = 4 * torch.randn(3, 6, generator=g)[cluster] + 0.3 * torch.randn(90, 6, generator=g)
    torch.manual_seed(0)
    model = sk.MultiTaskSimMIM(nn.Identity(), {"which": nn.Linear(6, 3)})
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-2)
    for _ in range(100):
        optimiser.zero_grad()
        model({"which": (x, None)}).loss.backward()
        optimiser.step()
    assert model({"which": (x, None)}).information["which"] > math.log(3) - 0.05
    answers = model.heads["which"](x).argmax(1)
    assert len({(c, a) for c, a in zip(cluster.tolist(), answers.tolist(), strict=True)}) == 3


class Network(nn.Module):
    """Nested, with a batch norm, a parameter of its own, and classes that differ from task to task."""

    def __init__(self, classes, width=6):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.ModuleDict({"hidden": nn.Linear(width, 8), "act": nn.ReLU()})
        self.head = nn.Linear(8, classes)


def networks():
    torch.manual_seed(0)
    source, target = Network(10), Network(4)
    source.stem(torch.randn(5, 1, 6, 6))  # The running statistics leave their first values.
    return source, target


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


LAYERS = {"": ["scale"], "stem.0": ["stem.0."], "stem.1": ["stem.1."], "body.hidden": ["body."], "head": ["head."]}


def assert_copied(source, target, before, layers):
    """The state of just these layers is the source's, that of all others as before."""
    prefixes = tuple(prefix for layer in layers for prefix in LAYERS[layer])
    assert prefixes
    for name, value in target.state_dict().items():
        want = source.state_dict()[name] if name.startswith(prefixes) else before[name]
        assert torch.equal(value, want), name


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_transfer_by_order(number):
    source, target = networks()
    before, given = state(target), state(source)
    copied = sk.transfer(source, target, number)
    assert copied == list(LAYERS)[:number]
    assert_copied(source, target, before, copied)
    assert all(torch.equal(value, given[name]) for name, value in source.state_dict().items())
    assert sk.transfer(source, target, 0) == []


def test_transfer_by_order_whatever_the_names():
    layers = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)
    source, target = nn.Sequential(*layers), nn.ModuleDict({"first": nn.Linear(3, 4), "second": nn.Linear(4, 7)})
    assert sk.transfer(source, target, 1) == ["first"]
    assert torch.equal(target["first"].weight, source[0].weight)
    single = nn.Linear(3, 4)
    assert sk.transfer(single, source, 1) == ["0"]
    assert torch.equal(source[0].bias, single.bias)


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["body.hidden"], ["body.hidden"]),
        (["stem", "body"], ["stem.0", "stem.1", "body.hidden"]),
        (("stem.1", "stem"), ["stem.1", "stem.0"]),
        ([], []),
    ],
)
def test_transfer_by_name(names, layers):
    source, target = networks()
    before = state(target)
    assert sk.transfer(source, target, names) == layers
    if layers:
        assert_copied(source, target, before, layers)
        assert sk.transfer(source, target, sk.transfer(source, target, names)) == layers


def test_transfer_freezes_what_it_copied():
    source, target = networks()
    sk.transfer(source, target, ["stem"], freeze=True)
    assert {name for name, p in target.named_parameters() if not p.requires_grad} == {
        f"stem.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }
    assert all(p.requires_grad for p in source.parameters())


def test_transfer_converts_dtypes():
    source, target = nn.Linear(3, 4).double(), nn.Linear(3, 4).bfloat16()
    sk.transfer(source, target, 1)
    assert target.weight.dtype == torch.bfloat16
    assert torch.equal(target.weight, source.weight.bfloat16())
    assert target.weight.is_leaf


def tied(shared):
    """A decoder with the encoder's weight, or one of its own."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    if shared:
        model[1].weight = model[0].weight
    return model


def test_transfer_of_shared_parameters():
    source, target = tied(True), tied(True)
    assert sk.transfer(source, target, 2) == ["0", "1"]
    assert target[0].weight is target[1].weight
    assert torch.equal(target[1].weight, source[1].weight)
    assert sk.transfer(source, tied(False), 2) == ["0", "1"]
    before = state(target)
    with pytest.raises(ValueError, match=r"0.weight and 1.weight are one tensor in target"):
        sk.transfer(tied(False), target, 2)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def norms(*classes):
    return nn.Sequential(nn.Linear(3, 4), *(kind(4) for kind in classes))


REFUSED = {
    "shape": (Network(10), Network(4), 5, ValueError, r"weight of layer 'head' of target .* \(10, 8\), got \(4, 8\)"),
    "shape by name": (Network(10), Network(4), ["stem", "head"], ValueError, "weight of layer 'head' of target"),
    "type": (norms(nn.BatchNorm1d), norms(nn.LayerNorm), 2, TypeError, "layer '1' .* must be of the type BatchNorm1d"),
    "tensors": (
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False)),
        2,
        ValueError,
        "layer '1' .* must have the tensors weight, bias; got weight",
    ),
    "too many": (Network(10), norms(), 2, ValueError, "between 0 and 1, where source has 5 and target 1; got 2"),
    "negative": (Network(10), Network(10), -1, ValueError, "layers must be between 0 and 5"),
    "bool": (Network(10), Network(10), True, ValueError, "layers must be between 0 and 5"),
    "one name": (Network(10), Network(10), "stem", TypeError, "layers must be an integer or a sequence of names"),
    "no names": (Network(10), Network(10), [1], TypeError, "layers must be an integer or a sequence of names"),
    "not in source": (norms(), Network(10), ["stem"], ValueError, "source has no 'stem'"),
    "not in target": (Network(10), norms(), ["stem"], ValueError, "target has no 'stem'"),
    "a layer inside is missing": (
        nn.Sequential(norms(nn.BatchNorm1d)),
        nn.Sequential(norms()),
        ["0"],
        ValueError,
        "target has no '0.1'",
    ),
    "nothing inside": (Network(10), Network(10), ["body.act"], ValueError, "'body.act' has none"),
    "lazy": (nn.LazyLinear(4), norms(), 1, TypeError, "must be of the type LazyLinear, got Linear"),
    "meta": (norms().to("meta"), norms(), 1, ValueError, "must have data on both sides"),
    "complex": (
        nn.ParameterList([torch.ones(2, dtype=torch.complex64)]),
        nn.ParameterList([torch.zeros(2)]),
        1,
        TypeError,
        "0 of layer '' .* must have a dtype that torch.complex64 converts to, got torch.float32",
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_transfer_copies_nothing_of_what_it_refuses(what):
    source, target, layers, kind, message = REFUSED[what]
    before = state(target)
    with pytest.raises(kind, match=message):
        sk.transfer(source, target, layers, freeze=True)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items() if name in before)
    assert all(p.requires_grad for p in target.parameters())


def test_transfer_between_lazy_layers_is_refused():
    with pytest.raises(ValueError, match=r"weight of layer '' .* must have data on both sides"):
        sk.transfer(nn.LazyLinear(4), nn.LazyLinear(4), 1)


def test_transfer_to_itself_is_refused():
    source, _ = networks()
    with pytest.raises(ValueError, match="source and target must be two modules"):
        sk.transfer(source, source, 1)


def test_both_parts_of_the_source_text():
    """A convolutional network (32 x 3 x 3, dense 64, dense 10) trained on one task lends its first layers to two."""

    def backbone():
        return nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 64), nn.ReLU())

    x = torch.randn(N, 1, 8, 8)
    source = nn.Sequential(backbone(), nn.Linear(64, 10))
    model = sk.MultiTaskSimMIM(backbone(), {"a": nn.Linear(64, 3), "b": nn.Linear(64, 2)})
    assert sk.transfer(source, model, layers=2) == ["backbone.0", "backbone.3"]
    assert torch.equal(model.backbone(x), source[0](x))
    model({task: (x, y) for task, y in LABELS.items()}).loss.backward()
    assert model.backbone[0].weight.grad.abs().sum() > 0
