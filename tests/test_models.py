"""MutualInformation and SimMIM: state, parameters, and what training does."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from truth import assert_close, off_diagonal

import simmim_kernels as sk


def pair(n=32, d=4):
    g = torch.Generator().manual_seed(n)
    return [torch.randn(n, d, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2)]


def test_every_bound_by_name():
    x, y = pair()
    for bound, params in (
        ("infonce", {"symmetric": True}),
        ("dv", {}),
        ("nwj", {}),
        ("js", {}),
        ("smile", {"tau": 2.0}),
        ("js_divergence", {}),
        ("tuba", {"log_baseline": 0.5}),
        ("flo", {"u": torch.ones(32)}),
        ("interpolated", {"alpha": 0.5, "log_baseline": 0.0}),
        ("leave_one_out", {}),
        ("club", {}),
        ("barber_agakov", {"prior": torch.ones(32) / 32}),
    ):
        critic = sk.DotCritic(0.3)
        got = sk.MutualInformation(critic, bound, **params)(x, y)
        assert_close(got.detach(), getattr(sk.bounds, bound)(critic(x, y), **params).detach())


def test_params_that_do_not_fit_are_refused():
    for bound, params in (("infonce", {"tau": 1.0}), ("tuba", {}), ("dv", {"decay": 0.5})):
        with pytest.raises(ValueError, match="params of bound"):
            sk.MutualInformation(sk.DotCritic(), bound, **params)
    with pytest.raises(ValueError, match="bound must be one of"):
        sk.MutualInformation(sk.DotCritic(), "mmd")
    with pytest.raises(ValueError, match="decay"):
        sk.MutualInformation(sk.DotCritic(), "mine", decay=1.0)


def test_baseline_and_u_may_be_networks():
    x, y = pair()

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 1).double()

        def forward(self, x, y):
            return self.linear(x + y)

    baseline, u = nn.Linear(4, 1).double(), Sum()
    tuba = sk.MutualInformation(sk.DotCritic(0.3), "tuba", log_baseline=baseline)
    assert set(tuba.parameters()) == set(baseline.parameters())
    got = tuba(x, y)
    assert_close(got.detach(), sk.bounds.tuba(sk.DotCritic(0.3)(x, y), baseline(x).squeeze(1)).detach())
    got.backward()
    assert baseline.weight.grad.abs().sum() > 0
    one = nn.Parameter(torch.tensor(0.5))
    learnt = sk.MutualInformation(sk.DotCritic(0.3), "tuba", log_baseline=one)
    assert list(learnt.parameters()) == [one]
    fixed = sk.MutualInformation(sk.DotCritic(0.3), "flo", u=torch.zeros(32))
    assert "u" in fixed.state_dict()
    assert repr(sk.MutualInformation(sk.DotCritic(0.3), "smile", tau=2.0)).count("tau=2.0") == 1
    flo = sk.MutualInformation(sk.DotCritic(0.3), "flo", u=u)
    assert_close(flo(x, y).detach(), sk.bounds.flo(sk.DotCritic(0.3)(x, y), u(x, y).squeeze(1)).detach())


def test_mine_keeps_a_running_mean():
    model = sk.MutualInformation(sk.DotCritic(0.3), "mine", decay=0.9)
    assert "log_running_mean" in model.state_dict()
    mean = None
    for n in (16, 24, 40):
        x, y = pair(n)
        value = model(x, y)
        s = 0.3 * x @ y.T
        batch = off_diagonal(s).exp().mean()
        mean = batch.detach() if mean is None else 0.9 * mean + 0.1 * batch.detach()
        assert_close(value.detach(), (s.diagonal().mean() - batch.log()).detach())
        assert_close(model.log_running_mean.exp(), mean)
        got = torch.autograd.grad(value, x)[0]
        want = torch.autograd.grad(s.diagonal().mean() - batch / mean, x)[0]
        assert_close(got, want)
    fresh = sk.MutualInformation(sk.DotCritic(0.3), "mine")
    fresh.load_state_dict(model.state_dict())
    assert_close(fresh.log_running_mean.exp(), mean)
    fresh.eval()(*pair(16))
    assert_close(fresh.log_running_mean.exp(), mean)
    unseeded = sk.MutualInformation(sk.DotCritic(0.3), "mine").eval()
    unseeded(*pair(16))
    assert unseeded.log_running_mean == -torch.inf


def test_mine_compiles():
    torch._dynamo.reset()
    model = sk.MutualInformation(sk.DotCritic(0.3), "mine")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, y = pair()
    value = compiled(x, y)
    value.backward()
    assert torch.isfinite(model.log_running_mean)


def test_a_bound_and_a_critic_of_ones_own():
    """Functions and modules: their parameters are the model's, and the options are checked as a named bound's are."""
    x, y = pair()

    def scaled(x, y):
        return sk.PairwiseScores(x, y, scale=0.3)

    def dv(scores, weight=1.0):
        return weight * sk.bounds.dv(scores)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, scores):
            return self.factor * sk.bounds.dv(scores)

    want = sk.bounds.dv(scaled(x, y))
    model = sk.MutualInformation(scaled, dv, weight=2.0)
    assert_close(model(x, y).detach(), 2 * want.detach())
    assert "bound=dv" in repr(model)
    assert_close(sk.MutualInformation(scaled, sk.bounds.dv)(x, y).detach(), want.detach())
    assert_close(model.readouts(x, y)["dv"], want.detach())
    learnt = sk.MutualInformation(scaled, Scaled())
    assert list(learnt.parameters()) == [learnt.bound.factor]
    assert_close(learnt(x, y).detach(), 2 * want.detach())
    out = sk.SimMIM(nn.Identity(), scaled, dv, weight=0.5)(x, y)
    assert_close(out.mi.detach(), 0.5 * want.detach())
    got = torch.autograd.grad(out.mi, x)[0]
    assert_close(got, 0.5 * torch.autograd.grad(want, x)[0])


def test_readouts_have_no_gradient():
    x, y = pair()
    out = sk.MutualInformation(sk.DotCritic(0.3)).readouts(x, y)
    assert {"infonce", "nwj", "dv", "smile", "plug_in", "ceiling"} <= set(out)
    assert not any(v.requires_grad for v in out.values())
    assert float(out["ceiling"]) == pytest.approx(math.log(32))


def test_simmim_output():
    encoder, projector = nn.Linear(5, 3), nn.Linear(3, 4)
    model = sk.SimMIM(encoder, projector=projector)
    x, y = torch.randn(8, 5), torch.randn(8, 5)
    out = model(x, y)
    assert torch.equal(out.z1, encoder(x))
    assert torch.equal(out.z2, encoder(y))
    assert torch.equal(model.encode(x), encoder(x))
    assert out.loss == -out.mi
    want = math.log(8) - sk.info_nce_loss(projector(out.z1), projector(out.z2), temperature=0.1)
    assert float(out.mi.detach()) == pytest.approx(float(want.detach()), abs=1e-5)
    out.loss.backward()
    assert projector.weight.grad.abs().sum() > 0


def clustered_views(count=256):
    """Noisy views of eight clusters in ten dimensions, and which cluster each row is of."""
    g = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(8, 10, generator=g)
    labels = torch.arange(count) % 8
    return lambda: (centres[labels] + 0.5 * torch.randn(count, 10, generator=g)).double(), labels


def train(critic, objective, view, lr, steps):
    torch.manual_seed(0)
    model = sk.SimMIM(nn.Linear(10, 3, bias=False).double(), critic=critic)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(model, view(), view()).backward()
        optimiser.step()
    return model.encode(view()).detach()


def first_direction_share(z):
    """Of the encodings' directions, the share of their size that lies along one line."""
    singular = torch.linalg.svdvals(F.normalize(z, dim=1))
    return (singular[0] ** 2 / singular.square().sum()).item()


def nearest_neighbour_accuracy(z, labels):
    z = F.normalize(z, dim=1)
    nearest = (z @ z.T).fill_diagonal_(-2).argmax(1)
    return (labels[nearest] == labels).float().mean().item()


def test_the_joint_term_alone_collapses_and_the_bound_does_not():
    """The source text minimises -mean log(p / (1 - p)) with p = sigmoid(s), which is -mean s_ii: it has no minimum."""
    view, labels = clustered_views()
    x, y = view(), view()
    p = torch.sigmoid(sk.DotCritic(0.01)(x, y).joint)
    assert_close((p / (1 - p)).log().mean(), sk.DotCritic(0.01)(x, y).joint.mean())

    def joint_alone(model, a, b):
        return -model.information.critic(model.encode(a), model.encode(b)).joint.mean()

    z = train(sk.DotCritic(), joint_alone, view, lr=1e-3, steps=1500)
    assert sk.DotCritic()(z, z).joint.mean() > 1e4
    assert first_direction_share(z) > 0.99
    assert nearest_neighbour_accuracy(z, labels) < 0.7

    z = train(sk.CosineCritic(0.2), lambda model, a, b: model(a, b).loss, view, lr=0.1, steps=300)
    assert first_direction_share(z) < 0.6
    assert nearest_neighbour_accuracy(z, labels) > 0.97


def test_trained_bound_approaches_the_known_information():
    """Correlated Gaussians in 5 dimensions with 2 nats, a quadratic critic in reach of the log ratio."""
    rho, g = math.sqrt(1 - math.exp(-0.8)), torch.Generator().manual_seed(0)

    def batch(n):
        x = torch.randn(n, 5, generator=g)
        return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, 5, generator=g)

    torch.manual_seed(0)
    critic = sk.SeparableCritic(nn.Linear(5, 5), nn.Linear(5, 5), sk.GaussianCritic(learnable=True))
    model = sk.MutualInformation(critic)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(300):
        optimiser.zero_grad()
        (-model(*batch(256))).backward()
        optimiser.step()
    assert float(model.readouts(*batch(2048))["infonce"]) == pytest.approx(2.0, abs=0.1)
