"""Tables of pairs of columns, critics mixed, and what an estimate says that it may miss."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from truth import assert_close

import simmim_kernels as sk
from simmim_kernels.estimation import pairs
from simmim_kernels.estimation.baselines import baselines
from simmim_kernels.estimation.linear_start import linear_start
from simmim_kernels.estimation.mixing import Mixed, fitted
from simmim_kernels.estimation.rows import prepare, split
from simmim_kernels.estimation.samples import table

UNIFORM = 0.4 - math.log(0.8)  # nats a column of y = x + U(-0.4, 0.4), x uniform on [0, 1] (Czyz et al. 2023)


def uniform_noise(n, d, seed=0):
    x, noise = np.random.default_rng(seed).random((2, n, d))
    return x, x + 0.4 * (2 * noise - 1)


def gaussians(n, d, nats, seed=0):
    rho, rng = math.sqrt(1 - math.exp(-2 * nats / d)), np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def fold_of(x, y):
    parts = np.array_split(np.random.default_rng(0).permutation(len(x)), 3)
    return prepare(table(x, "x"), table(y, "y"), split(parts, 0, 0), "rank", torch.device("cpu"))


def columns_of(data):
    return data.x_train[:, : data.columns_x], data.y_train[:, : data.columns_y]


def test_columns_are_paired_whatever_their_order():
    x, y = uniform_noise(2000, 3)
    found = pairs.matched(*(torch.from_numpy(t) for t in (x, y[:, [2, 0, 1]])))
    assert set(found) == {(0, 1), (1, 2), (2, 0)}
    alone = np.random.default_rng(1).random((2000, 3))
    assert pairs.matched(torch.from_numpy(x), torch.from_numpy(alone)) == []
    assert pairs.matched(torch.zeros(50, 17), torch.zeros(50, 1)) == []


def test_tables_are_for_what_gaussians_do_not_say():
    """A rank-transformed copula of Gaussians, at any correlation, is left to the linear start."""
    for nats in (0.05, 0.5, 2.0):
        data = fold_of(*gaussians(3000, 2, nats))
        assert pairs.paired_columns(data, 600, 0) is None
    x, y = columns_of(fold_of(*uniform_noise(3000, 2)))
    assert pairs._is_beyond_gaussians(x[:, 0], y[:, 0])


def test_independent_columns_are_told_from_dependent_ones():
    x, y = (torch.from_numpy(t) for t in uniform_noise(2000, 2))
    assert pairs.are_independent(x)
    assert not pairs.are_independent(torch.cat([x, y[:, :1]], 1))


def test_tables_hold_the_edges_of_bounded_noise(monkeypatch):
    """Of coarse tables: 1.25 nats, of which a linear start reads 0.85."""
    monkeypatch.setattr(pairs, "_SIDE", 48)
    x, y = uniform_noise(3000, 2)
    data = fold_of(x, y[:, ::-1])
    critic = pairs.paired_columns(data, 600, 0)
    assert [(pair.column_x, pair.column_y) for pair in critic.pairs] in ([(0, 1), (1, 0)], [(1, 0), (0, 1)])
    value = sk.bounds.infonce(critic(data.x_test, data.y_test)).item()
    assert value == pytest.approx(2 * UNIFORM, abs=0.15)
    assert linear_start(data, 32).value < 2 * UNIFORM - 0.25


def test_interpolation_is_linear_between_points_and_constant_beyond():
    grid, values = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 5.0]])
    found = pairs.interpolated(torch.tensor([-1.0, 0.0, 0.5, 2.0, 3.0, 9.0]), grid, values)
    want = [[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [3.0, 3.0], [4.0, 5.0], [4.0, 5.0]]
    assert_close(found, torch.tensor(want))


def test_points_hold_every_row_once_and_normalise_the_ratio():
    x, y = (torch.from_numpy(t[:, 0]).float() for t in uniform_noise(500, 1))
    points = pairs._Points([x, y], [x[:50], y[:50]], 9)
    for shares in (points.train, points.held):
        assert shares.sum().item() == pytest.approx(1, abs=1e-5)
    ratio = points.log_ratio(torch.randn(points.shape, generator=torch.Generator().manual_seed(0)))
    assert_close((ratio.exp() * points.train.sum(0)).sum(1), torch.ones(points.shape[0]))


class Half(torch.nn.Module):
    """Gaussian scores of some columns alone."""

    def __init__(self, columns, scale=1.0):
        super().__init__()
        self.columns, self.critic = columns, sk.GaussianCritic(scale)

    def forward(self, x, y):
        return self.critic(x[:, self.columns], y[:, self.columns])


def test_a_mixture_is_the_weighted_sum_up_to_a_function_of_x():
    x, y = (torch.from_numpy(t) for t in gaussians(40, 2, 1.0))
    critics, weights = [Half([0]), Half([1], 0.5)], torch.tensor([0.7, -0.2], dtype=torch.float64)
    want = sum(w * critic(x, y).dense() for w, critic in zip(weights, critics, strict=True))
    found = Mixed(critics, weights)(x, y).dense()
    assert_close(found - found.mean(1, keepdim=True), want - want.mean(1, keepdim=True))


def test_weights_are_the_best_that_there_are_less_what_chance_gains():
    x, y = (torch.from_numpy(t).float() for t in gaussians(600, 2, 1.5))
    mixture, value = fitted([Half([0]), Half([1], 2.0)], x, y)
    best = sk.bounds.infonce(mixture(x, y)).item()
    assert value == pytest.approx(best - 2 / 600, abs=1e-5)
    for change in ([0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]):
        other = Mixed(list(mixture.critics), mixture.weights + torch.tensor(change))
        assert sk.bounds.infonce(other(x, y)).item() < best


def test_neighbours_by_pairs_are_summed_where_columns_are_independent():
    x, y = uniform_noise(3000, 3)
    found = baselines(x, y)["ksg_pairs"]
    assert found.value == pytest.approx(3 * UNIFORM, abs=0.15)
    assert baselines(x[:, :1], y[:, :1])["ksg_pairs"].missing == "it is for 2 to 16 columns"
    twice = [np.column_stack([t, t[:, 0] + 0.01 * np.random.default_rng(0).random(3000)]) for t in (x, y)]
    assert baselines(*twice)["ksg_pairs"].missing == "columns depend on each other, in x and in y"
    rounded = (50 * x).round(), (50 * y).round()
    assert "of discrete values" in baselines(*rounded)["ksg_pairs"].missing


def test_rows_beyond_need_are_left_out(monkeypatch):
    """Every third of them, by order: what a quantile is made from has a limit in PyTorch, of 2**24."""
    x, y = (torch.from_numpy(t).float() for t in uniform_noise(2000, 1))
    monkeypatch.setattr(pairs, "_MOST_ROWS", 800)
    assert len(pairs._some(x)) == 667
    assert pairs.matched(x, y) == [(0, 0)]


@pytest.fixture(scope="module")
def result():
    return sk.estimate(*uniform_noise(600, 2), folds=2, max_steps=20, batch_size=128)


def test_what_may_be_missing_is_said(result):
    """Half as many rows as such tables need: what is missing is told by neighbours of the pairs."""
    missing = 2 * UNIFORM - result.nats
    assert missing > 0.15
    assert any(said.startswith("KSG by pairs reads") for said in result.warnings)
    assert result.shortfall >= result.baselines["ksg_pairs"].value - result.nats - 1e-9
    assert f"Shortfall: {result.shortfall:.2f} nats" in repr(result)
    assert f"{result.bounds['infonce'].high + result.shortfall:.2f}." in result.of_the_shortfall()


def test_the_shortfall_is_the_largest_of_its_signs(result):
    none = {name: dataclasses.replace(found, value=None) for name, found in result.baselines.items()}
    quiet = dataclasses.replace(result, baselines=none)
    gap = np.mean([fold.train_infonce for fold in result.folds]) - result.nats
    assert quiet.shortfall == pytest.approx(max(gap, 0) + quiet.lost_to_the_ceiling)
    assert 0 < quiet.lost_to_the_ceiling < 0.1
    # At the ceiling itself nothing says how much is lost, but that it is much.
    assert dataclasses.replace(quiet, pointwise=np.full(9, math.log(300))).lost_to_the_ceiling > 5
    folds = tuple(dataclasses.replace(fold, train_infonce=0.0) for fold in result.folds)
    assert dataclasses.replace(quiet, folds=folds, pointwise=np.zeros(9)).shortfall == 0
