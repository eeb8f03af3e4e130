"""`estimate` against known informations, what it may learn from which rows, and its error bars."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from truth import assert_close

import simmim_kernels as sk
from simmim_kernels import estimation
from simmim_kernels.estimation import cross_fitting, training
from simmim_kernels.estimation.features import ranker
from simmim_kernels.estimation.held_out import TAU, calibrated_scores, influences

QUICK = {"folds": 2, "batch_size": 128, "max_steps": 20}


def gaussians(n, d, nats, seed=0):
    rho, rng = math.sqrt(1 - math.exp(-2 * nats / d)), np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("critic", ["separable", "mlp"])
def test_gaussians_come_near_the_truth_from_below(critic):
    x, y = gaussians(1400, 2, 1.0)
    options = {"batch_size": 64, "max_steps": 200} if critic == "mlp" else {"batch_size": 256, "max_steps": 40}
    result = sk.estimate(x, y, folds=2, critic=critic, **options)
    for name in ("infonce", "dv", "nwj", "smile"):
        assert result.bounds[name].value == pytest.approx(1.0, abs=0.15), name
        assert result.bounds[name].low < 1.05
    assert result.nats == result.bounds["infonce"].value
    assert not result.saturated
    assert result.ceiling == pytest.approx(math.log(700))


def test_a_product_needs_the_networks():
    """y = x_1 x_2 + noise: no function of single columns of x predicts y, so the linear stage alone finds little."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1500, 2))
    y = x.prod(1) + 0.1 * rng.standard_normal(1500)
    result = sk.estimate(x, y, folds=2, batch_size=128, max_steps=120)
    assert {fold.best_stage for fold in result.folds} <= {"full", "mixed"}
    assert result.nats > 0.7
    assert result.nats > np.mean([fold.cca_infonce for fold in result.folds]) + 0.2


@pytest.mark.parametrize(("n", "d"), [(200, 1), (600, 5), (300, 40)])
def test_independent_samples_read_zero(n, d):
    x, y = gaussians(n, d, 0.0)
    for found in sk.estimate(x, y, folds=2, batch_size=128, max_steps=40).bounds.values():
        assert abs(found.value) < 0.05


def test_luck_on_the_validation_rows_is_not_information(monkeypatch):
    """Independent pairs so few that the best of the checks reads above 0 by chance, and far below on other rows."""
    x, y = gaussians(100, 2, 0.0, seed=4)
    result = sk.estimate(x, y, folds=2, max_steps=40)
    assert result.nats == pytest.approx(0, abs=1e-6)
    assert "2 of 2 critics found no information on their validation rows" in result.warnings[0]
    monkeypatch.setattr(training, "_standard_error", lambda *_: 0.0)
    assert sk.estimate(x, y, folds=2, max_steps=40).nats < -0.05


def test_indicators_are_for_a_few_columns_of_symbols():
    """An image of small whole numbers would otherwise become many times as wide."""
    values = np.random.default_rng(0).integers(8, size=(500, 40)).astype(float)
    assert ranker(values[:, :10])(values[:, :10]).shape == (500, 10 + 80)
    assert ranker(values)(values).shape == (500, 40)


def test_symbols_are_read_whatever_their_order():
    """Ten of them, in no order, kept with probability 0.8: the information by the table of joint probabilities."""
    rng = np.random.default_rng(0)
    x, other = rng.integers(10, size=(2, 1500))
    y = rng.permutation(10)[np.where(rng.random(1500) < 0.8, x, other)]
    joint = np.full((10, 10), 0.002) + 0.08 * np.eye(10)
    truth = (joint * np.log(joint / 0.01)).sum()
    assert joint.sum() == pytest.approx(1)
    result = sk.estimate(x, y, folds=2, batch_size=128, max_steps=40)
    assert result.nats == pytest.approx(truth, abs=0.15)


class Distances(torch.nn.Module):
    """A critic with something for every term of the influences: neither symmetric nor calibrated."""

    def forward(self, x, y):
        return sk.GaussianCritic(0.6)(x, 1.2 * y)


def weighted_bounds(s, w):
    """Every bound of the dense scores, pair i having weight w_i as row and as column."""
    off = w[:, None] * w * (1 - torch.eye(len(w), dtype=w.dtype))
    joint, pairs = (w * s.diagonal()).sum() / w.sum(), off.sum()
    dv = joint - ((off * s.exp()).sum() / pairs).log()
    nwj = 1 + joint - (off * s.exp()).sum() / pairs
    smile = joint - ((off * s.clamp(-TAU, TAU).exp()).sum() / pairs).log()
    rows = ((w * s.exp()).sum(1) / w.sum()).log()
    return {"infonce": (w * (s.diagonal() - rows)).sum() / w.sum(), "dv": dv, "nwj": nwj, "smile": smile}


def test_influences_are_the_derivatives_of_the_bounds_in_the_weights_of_the_pairs():
    g = torch.Generator().manual_seed(0)
    x, y, reference = (2 * torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (40, 40, 70))
    scores = calibrated_scores(Distances(), x, y, reference)
    s = scores.dense()
    assert s.min() < -TAU  # so that the clamp counts
    weights = torch.ones(40, dtype=torch.float64, requires_grad=True)
    truth = weighted_bounds(s, weights)
    found = influences(scores)
    assert found.keys() == truth.keys() == estimation.BOUNDS.keys()
    for name, (value, influence) in found.items():
        assert value == pytest.approx(truth[name].item(), abs=1e-10)
        (derivative,) = torch.autograd.grad(truth[name], weights, retain_graph=True)
        assert_close(influence, 40 * derivative, name=name)


def test_standard_errors_are_the_spread_over_samples():
    """One critic, the log ratio of correlated Gaussians, on 300 independent samples of 128 pairs."""
    rho = 0.7

    def optimal(x, y):
        a = rho / (1 - rho**2)
        bias_x, bias_y = (-0.5 * rho * a * t.square().sum(1) - 0.5 * math.log(1 - rho**2) for t in (x, y))
        return sk.PairwiseScores(x, y, scale=a, row_bias=bias_x + 0.5 * math.log(1 - rho**2), col_bias=bias_y)

    values, errors = {}, {}
    for seed in range(300):
        x, y = (torch.from_numpy(t) for t in gaussians(128, 1, -0.5 * math.log(1 - rho**2), seed))
        for name, (value, influence) in influences(optimal(x, y)).items():
            values.setdefault(name, []).append(value)
            errors.setdefault(name, []).append(influence.std().item() / math.sqrt(128))
    for name in ("infonce", "dv", "nwj", "smile"):
        assert np.mean(values[name]) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.03), name
        assert np.mean(errors[name]) == pytest.approx(np.std(values[name]), rel=0.15), name


def test_calibration_takes_away_what_infonce_leaves_open():
    g = torch.Generator().manual_seed(0)
    x, y, reference = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (30, 30, 50))

    def shifted(x, y):
        return sk.GaussianCritic()(x, y)._shifted(3 * x.sum(1))

    plain, moved = (calibrated_scores(critic, x, y, reference).dense() for critic in (sk.GaussianCritic(), shifted))
    assert_close(moved, plain)
    assert_close(
        calibrated_scores(shifted, x, reference, reference).dense().exp().mean(1), torch.ones(30, dtype=torch.float64)
    )


@pytest.fixture
def watched(monkeypatch):
    """The splits of an estimate's folds and the weights of their critics."""
    splits, critics = [], []
    prepare, train = cross_fitting.prepare, cross_fitting.train

    def watch_split(x, y, split, *rest):
        splits.append(split)
        return prepare(x, y, split, *rest)

    def watch_critic(*arguments):
        trained = train(*arguments)
        critics.append({name: t.clone() for name, t in trained.critic.state_dict().items()})
        return trained

    monkeypatch.setattr(cross_fitting, "prepare", watch_split)
    monkeypatch.setattr(cross_fitting, "train", watch_critic)
    return splits, critics


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("transform", ["rank", "standardise"])
def test_no_critic_has_seen_the_rows_it_is_tested_on(watched, transform):
    splits, critics = watched
    x, y = gaussians(301, 3, 1.0)
    options = {**QUICK, "transform": transform}
    first = sk.estimate(x, y, **options)
    assert "untrained" not in {fold.best_stage for fold in first.folds}
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(301))
    for split in splits:
        assert sorted(np.concatenate([split.train, split.validation, split.test])) == list(range(301))
    for part, alters in (("test", False), ("train", True)):
        changed = x.copy()
        changed[getattr(splits[0], part)] *= -1.5
        again = sk.estimate(changed, y, **options)
        assert equal(critics[0], critics[-2]) is not alters
        assert (again.folds[0] == first.folds[0]) is not alters
        assert again.bounds["infonce"].per_fold[0] != first.bounds["infonce"].per_fold[0]


def test_the_best_check_on_validation_rows_is_kept(monkeypatch):
    monkeypatch.setattr(training, "_PATIENCE", 3)
    seen = []
    x, y = gaussians(120, 10, 1.0)
    result = sk.estimate(x, y, folds=2, max_steps=400, progress=seen.append)
    for k, fold in enumerate(result.folds):
        values = [at.validation_infonce for at in seen if at.fold == k]
        assert fold.validation_infonce == pytest.approx(max(values), abs=2e-3)
        assert values[-1] < max(values)
        best = [at for at in seen if at.fold == k and at.validation_infonce == fold.validation_infonce]
        assert (fold.best_stage, fold.best_step) in [(at.stage, at.step) for at in best]
        assert fold.stopped_early
        assert fold.steps < 1600
        assert fold.train_rows + fold.validation_rows + fold.test_rows == 120
    assert {at.folds for at in seen} == {2}
    assert {at.max_steps for at in seen} == {400}


def test_an_untrained_critic_reads_zero():
    x, y = gaussians(100, 3, 1.0)
    for critic in ("separable", "mlp"):
        result = sk.estimate(x, y, folds=2, critic=critic, max_steps=0)
        assert {fold.best_stage for fold in result.folds} == {"untrained"}
        for found in result.bounds.values():
            assert abs(found.value) < 1e-5
            assert found.standard_error < 1e-5


def test_estimates_repeat_with_their_seed_and_leave_the_global_generators_alone():
    x, y = gaussians(200, 2, 1.0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sk.estimate(x, y, **QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert sk.estimate(x, y, **QUICK) == first
    assert sk.estimate(x, y, **QUICK, seed=1).nats != first.nats
    assert [fold.seed for fold in first.folds] == [0, 1]


def test_small_steps_take_one_thread_and_give_the_others_back(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    for kind, batch_size in (("separable", 64), ("separable", 512), ("mlp", 64)):
        with pytest.raises(RuntimeError), training._threads_for(kind, batch_size):
            raise RuntimeError
    assert seen == [1, 7, 7, 7]


def test_units_order_and_containers_do_not_matter():
    x, y = gaussians(200, 1, 1.0)
    bounds = sk.estimate(x, y, **QUICK).bounds
    assert sk.estimate(4 * x, 0.25 * y, **QUICK).bounds == bounds
    assert sk.estimate(torch.from_numpy(x), torch.from_numpy(y[:, 0]), **QUICK).bounds == bounds


def test_rank_transform_is_monotone_keeps_ties_and_takes_tails_away():
    rng = np.random.default_rng(0)
    train, rows = rng.standard_normal((4000, 2)), rng.standard_normal((500, 2))
    train[:, 1], rows[:, 1] = train[:, 1].round(), rows[:, 1].round()
    plain, cubed = (ranker(train**p)(rows**p)[:, :2] for p in (1, 3))
    np.testing.assert_allclose(cubed, plain, atol=0.05)
    np.testing.assert_allclose(plain[:, 0], rows[:, 0], atol=0.25)
    for column, made in zip(rows.T, plain.T, strict=True):
        order = np.argsort(column)
        assert (np.diff(made[order]) >= 0).all()
    assert len(np.unique(plain[:, 1])) == len(np.unique(rows[:, 1]))
    rounded = ranker(train[:, 1:].clip(-2, 2))(rows[:, 1:])
    np.testing.assert_array_equal(rounded[:, 1:], rows[:, 1:] == np.arange(-2, 3))
    beyond = ranker(train)(np.array([[1e9, 1e9], [-1e9, -1e9]]))[:, :2]
    assert np.isfinite(beyond).all()
    np.testing.assert_array_equal(beyond, ranker(train)(np.stack([train.max(0), train.min(0)]))[:, :2])


def test_a_column_that_only_the_training_rows_find_constant_is_harmless():
    x, y = gaussians(200, 1, 1.0)
    rare = np.zeros(200)
    rare[7] = 1.0
    for transform in ("rank", "standardise"):
        result = sk.estimate(np.column_stack([x, rare]), y, **QUICK, transform=transform)
        assert all(math.isfinite(found.standard_error) for found in result.bounds.values())


def test_saturation_is_said():
    x = np.random.default_rng(0).standard_normal((200, 16))
    result = sk.estimate(x, x, folds=2, max_steps=60)
    assert result.nats == pytest.approx(math.log(100), abs=0.1)
    assert result.saturated
    assert "InfoNCE is within 0.1 nats of its ceiling" in result.warnings[0]
    assert not dataclasses.replace(result, ceiling=result.nats + 0.2).saturated


def test_repeated_pairs_and_unfinished_training_are_said():
    x, y = gaussians(100, 2, 1.0)
    twice = sk.estimate(np.tile(x, (2, 1)), np.tile(y, (2, 1)), **QUICK)
    said = " ".join(twice.warnings)
    assert "100 pairs are exact repeats" in said
    assert "2 of 2 critics were still training at max_steps, 20" in said
    symbols = np.random.default_rng(0).integers(3, size=(2, 100))
    assert not any("repeats" in warning for warning in sk.estimate(*symbols, **QUICK).warnings)


def altered(row, column, value):
    x = gaussians(100, 3, 1.0)[0]
    x[row, column] = value
    return x


X, Y = gaussians(100, 3, 1.0)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, Y[:99], {}, "x and y must have as many rows as each other, got 100 and 99"),
        (altered(3, 1, math.nan), Y, {}, "x must be finite, got 1 missing .NaN. or infinite values in column 1$"),
        (X, altered([3, 4], [0, 2], math.inf), {}, "y must be finite, got 2 missing .* values in columns 0, 2$"),
        (altered(slice(None), 2, 5.0), Y, {}, "x must not have constant columns, .*; got column 2$"),
        (X, np.ones((100, 30)), {}, r"y must not have constant .* columns 0, 1, 2, 3, 4, 5, 6, 7, ... \(30 in all\)"),
        (X + 1j, Y, {}, r"x must hold real numbers, got complex128 of shape \(100, 3\)"),
        (X.astype(str), Y, {}, "x must hold real numbers"),
        (X, Y[None], {}, r"y must have shape \(N,\) or \(N, d\), got float64 of shape \(1, 100, 3\)"),
        (X[:0], Y[:0], {}, "x must have at least one row and one column"),
        (X[:99], Y[:99], {}, "at least 20 rows a fold, 100 for 5 folds; got 99"),
        (X, Y, {"folds": 1}, "folds must be an integer of at least 2, got 1"),
        (X, Y, {"batch_size": 1}, "batch_size must be an integer of at least 2, got 1"),
        (X, Y, {"max_steps": 0.5}, "max_steps must be an integer of at least 0, got float 0.5"),
        (X, Y, {"seed": -1}, "seed must be an integer of at least 0, got -1"),
        (X, Y, {"critic": "oracle"}, "critic must be one of separable, mlp; got 'oracle'"),
        (X, Y, {"transform": "none"}, "transform must be one of rank, standardise; got 'none'"),
    ],
)
def test_unfit_samples_and_arguments_are_refused(x, y, options, message):
    kind = (TypeError, ValueError) if options else estimation.DataError
    with pytest.raises(kind, match=message):
        sk.estimate(x, y, **options)
