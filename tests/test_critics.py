"""Every critic against its definition, value and the gradients of inputs and parameters."""

import copy

import pytest
import torch
import torch.nn.functional as F
from truth import BACKENDS, TOLERANCE, assert_close, error

import simmim_kernels as sk


def mlp(layers):
    critic = sk.MLPCritic(5, 5, hidden=9, layers=layers)

    def formula(c, x, y):
        pairs = torch.cat([x[:, None].expand(-1, len(y), -1), y[None].expand(len(x), -1, -1)], dim=2)
        for layer in c.hidden_layers:
            pairs = F.linear(pairs, layer.weight, layer.bias).relu()
        return F.linear(pairs, c.output.weight, c.output.bias).squeeze(2)

    return critic, formula


def separable():
    critic = sk.SeparableCritic(torch.nn.Linear(5, 3), torch.nn.Linear(5, 3), sk.CosineCritic(0.5))
    return critic, lambda c, x, y: F.normalize(c.g(x), dim=1) @ F.normalize(c.h(y), dim=1).T / 0.5


CRITICS = {
    "dot": lambda: (sk.DotCritic(scale=2.0), lambda c, x, y: 2.0 * x @ y.T),
    "dot, learnable": lambda: (sk.DotCritic(torch.nn.Parameter(torch.tensor(0.7))), lambda c, x, y: c.scale * x @ y.T),
    "cosine": lambda: (sk.CosineCritic(0.2), lambda c, x, y: F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / 0.2),
    "cosine, learnable": lambda: (
        sk.CosineCritic(0.2, learnable=True),
        lambda c, x, y: F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / c.log_temperature.exp(),
    ),
    "bilinear": lambda: (sk.BilinearCritic(5, 5), lambda c, x, y: x @ c.weight @ y.T),
    "gaussian": lambda: (sk.GaussianCritic(1.5), lambda c, x, y: -(x[:, None] - y).square().sum(2) / 4.5),
    "gaussian, learnable": lambda: (
        sk.GaussianCritic(1.5, learnable=True),
        lambda c, x, y: -(x[:, None] - y).square().sum(2) / (2 * c.log_bandwidth.exp() ** 2),
    ),
    "separable": separable,
    "mlp of 1": lambda: mlp(1),
    "mlp of 2": lambda: mlp(2),
    "mlp of 3": lambda: mlp(3),
}


@pytest.mark.parametrize("name", list(CRITICS))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_critic(name, backend, dtype, small_tiles):
    if backend == "native" and name == "mlp of 3":
        pytest.skip("the native backend leaves an MLP of three layers to tiled")
    critic, formula = CRITICS[name]()
    critic = critic.to(dtype)
    x, y = (torch.randn(n, 5, dtype=dtype, requires_grad=True) for n in (19, 29))
    scores = critic(x, y)
    wide = CRITICS[name]()[0].double()
    wide.load_state_dict({k: v.double() for k, v in critic.state_dict().items()})
    x64, y64 = (t.detach().double().requires_grad_() for t in (x, y))
    s = formula(wide, x64, y64)
    assert_close(scores.dense().detach(), s.detach())
    assert_close(scores.joint.detach(), s.diagonal().detach())
    with sk.use_backend(backend):
        values = [
            scores.logsumexp(1),
            scores.logsumexp(0),
            scores.sum((0, 1)),
            scores.marginal.logsumexp((0, 1)),
            scores.clamp(-0.5, 0.5).logsumexp((0, 1)),
            *scores.logsumexps(),
        ]
    off = s[~torch.eye(19, 29, dtype=torch.bool)]
    truth = [
        s.logsumexp(1),
        s.logsumexp(0),
        F.softplus(s).sum(),
        off.logsumexp(0),
        s.clamp(-0.5, 0.5).logsumexp((0, 1)),
        s.logsumexp(1),
        s.logsumexp(0),
    ]
    for got, want in zip(values, truth, strict=True):
        assert_close(got.detach(), want.detach())

    def gradients(values, leaves):
        return torch.autograd.grad(sum(v.square().sum() for v in values), leaves)

    found = gradients([scores.joint, *values], (x, y, *critic.parameters()))
    want = gradients([s.diagonal(), *truth], (x64, y64, *wide.parameters()))
    for i, (a, b) in enumerate(zip(found, want, strict=True)):
        # Sums of some thousand terms of either sign: the largest entry of the largest gradient sets the scale.
        assert error(a, b) <= 10 * TOLERANCE[dtype], f"gradient {i}: {error(a, b):.3g}"


def test_pair_scores_are_the_diagonal():
    for layers in (1, 2, 3):
        critic, formula = mlp(layers)
        x, y = torch.randn(7, 5), torch.randn(7, 5)
        assert_close(
            critic.pair_scores(x, y).detach(), formula(critic.double(), x.double(), y.double()).diagonal().detach()
        )


def test_gaussian_scores_survive_a_common_shift():
    x, y = torch.randn(20, 4), torch.randn(30, 4)
    shift = torch.tensor([3000.0, -2000.0, 0.0, 1000.0])
    got = sk.GaussianCritic()(x + shift, y + shift).dense()
    want = -(torch.cdist((x + shift).double(), (y + shift).double()) ** 2) / 2
    assert error(got, want) < 1e-5


@pytest.mark.parametrize("name", list(CRITICS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(name, dtype, small_tiles):
    """At most twice as far from the truth as dense PyTorch in the same dtype, for all gradients too."""
    critic, formula = CRITICS[name]()
    critic = critic.to(dtype)
    x, y = (torch.randn(n, 5).to(dtype).requires_grad_() for n in (19, 29))

    def dense(kind):
        own = copy.deepcopy(critic).to(kind)
        leaves = [t.detach().to(kind).requires_grad_() for t in (x, y)]
        rows = formula(own, *leaves).logsumexp(1)
        return rows.detach(), torch.autograd.grad(rows.square().sum(), (*leaves, *own.parameters()))

    (want, truth), (low, low_gradients) = dense(torch.float64), dense(dtype)
    rows = critic(x, y).logsumexp(1)
    assert rows.dtype == torch.float32
    assert_close(rows.detach(), want, low)
    found = torch.autograd.grad(rows.square().sum(), (x, y, *critic.parameters()))
    for i, (got, exact, rounded) in enumerate(zip(found, truth, low_gradients, strict=True)):
        assert got.dtype == dtype
        assert_close(got, exact, rounded, f"gradient {i}")


def test_learnable_temperature_is_exposed_and_learns():
    critic = sk.CosineCritic(temperature=0.2, learnable=True)
    assert critic.temperature.item() == pytest.approx(0.2)
    critic(torch.randn(6, 3), torch.randn(6, 3)).logsumexp(1).sum().backward()
    assert critic.log_temperature.grad.abs() > 0
    assert sk.CosineCritic(temperature=0.2).temperature == 0.2
