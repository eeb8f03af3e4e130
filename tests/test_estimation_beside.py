"""What stands beside the bounds: linear start, baselines, dependent rows, conditions, tables and warnings."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

import simmim_kernels as sk
from simmim_kernels.estimation import DataError, Table, dependence, report
from simmim_kernels.estimation.baselines import baselines, gaussian_information, nearest_neighbours
from simmim_kernels.estimation.features import extras, ranker, standardiser
from simmim_kernels.estimation.held_out import calibrated_scores, influences, pointwise
from simmim_kernels.estimation.linear_start import linear_start
from simmim_kernels.estimation.rows import prepare, split
from simmim_kernels.estimation.samples import table

QUICK = {"folds": 2, "batch_size": 64, "max_steps": 20}


def gaussians(n, d, nats, seed=0):
    rho, rng = math.sqrt(1 - math.exp(-2 * nats / d)), np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def fold_of(x, y, transform="rank"):
    parts = np.array_split(np.random.default_rng(0).permutation(len(x)), 2)
    return prepare(table(x, "x"), table(y, "y"), split(parts, 0, 0), transform, torch.device("cpu"))


def infonce_of(start, data):
    pair = (
        rows[:, : weight.shape[1]] @ weight.T
        for rows, weight in ((data.x_test, start.weight_x), (data.y_test, start.weight_y))
    )
    return sk.bounds.infonce(sk.GaussianCritic()(*pair)).item()


@pytest.mark.parametrize("turned", [False, True])
def test_the_linear_start_holds_the_answer_of_gaussians(turned):
    """Of 60 columns each, four of which share the information: aligned they are entries, turned directions."""
    x, y = np.random.default_rng(1).standard_normal((2, 6000, 60))
    x[:, :4], y[:, :4] = gaussians(6000, 4, 2.0)
    if turned:
        turn = np.linalg.qr(np.random.default_rng(2).standard_normal((60, 60)))[0]
        x, y = x @ turn, y @ turn.T
    data = fold_of(x, y)
    start = linear_start(data, 60)
    assert start.value == pytest.approx(2.0, abs=0.3)
    assert infonce_of(start, data) == pytest.approx(2.0, abs=0.25)


def test_pieces_make_a_linear_start_of_a_function_that_is_none():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (3000, 1))
    y = np.abs(x) + 0.1 * rng.standard_normal((3000, 1))
    data = fold_of(x, y)
    assert data.base_x == 1
    start = linear_start(data, 32)
    assert start.weight_x.shape[1] == data.x_train.shape[1] > 1
    assert infonce_of(start, data) > 0.7


def test_extras_are_the_radius_and_pieces_that_give_the_column_back():
    values = np.random.default_rng(0).standard_normal((500, 2))
    made = extras(values)(values)
    np.testing.assert_allclose(made[:, 0], 0.5 * np.log((values**2).mean(1)), atol=1e-2)
    pieces = made[:, 1:].reshape(500, 2, -1)
    np.testing.assert_allclose(pieces.sum(2), 1, atol=1e-6)
    grid = np.quantile(values[:, 0], np.linspace(0, 1, pieces.shape[2]))
    np.testing.assert_allclose(pieces[:, 0] @ grid, values[:, 0], atol=1e-5)
    assert extras(np.tile(values, 10))(np.tile(values, 10)).shape == (500, 1)


def test_symbols_have_indicators_by_name_or_by_repetition():
    rng = np.random.default_rng(0)
    many = rng.integers(100, size=(4000, 1)).astype(float)
    assert ranker(many)(many).shape == (4000, 101)
    few = many[:800]  # each comes 8 times: numbers, unless they are said to be symbols
    assert ranker(few)(few).shape == (800, 1)
    for fit in (ranker, standardiser):
        assert fit(few, (0,))(few).shape == (800, 101)


def test_gaussian_information_has_no_bias_in_few_rows():
    x, y = gaussians(40 * 500, 5, 1.0)
    found = [gaussian_information(*(t[40 * k : 40 * k + 40] for t in (x, y))) for k in range(500)]
    assert np.mean(found) == pytest.approx(1.0, abs=4 * np.std(found) / math.sqrt(500))
    assert gaussian_information(x, np.column_stack([y, y[:, 0]])) is None


def ksg_by_loops(x, y, k=3):
    n, terms = len(x), []
    for i in range(n):
        dx, dy = (np.abs(t - t[i]).max(1) for t in (x, y))
        radius = np.sort(np.maximum(dx, dy))[k]
        if radius > 0:
            terms.append(digamma(k) - digamma((dx < radius).sum()) - digamma((dy < radius).sum()))
        else:
            both = (np.maximum(dx, dy) == 0).sum() - 1
            terms.append(digamma(both) - digamma((dx == 0).sum()) - digamma((dy == 0).sum()))
    return digamma(n) + np.mean(terms)


def digamma(count):
    return torch.special.digamma(torch.tensor(float(count), dtype=torch.float64)).item()


def test_nearest_neighbours_by_loops_and_by_the_truth(monkeypatch):
    x, y = gaussians(150, 2, 1.0)
    x[:40], y[:40] = x[0], y[0]
    monkeypatch.setattr("simmim_kernels.estimation.baselines._CHUNK", 150 * 17)
    value, coinciding = nearest_neighbours(torch.from_numpy(x), torch.from_numpy(y))
    assert value == pytest.approx(ksg_by_loops(x, y), abs=1e-12)
    assert coinciding == 40 / 150
    found = baselines(*gaussians(2000, 1, 1.0))
    for name in ("gaussian_copula", "ksg"):
        assert found[name].value == pytest.approx(1.0, abs=0.08)
        assert found[name].rows == 2000


def test_a_baseline_that_cannot_be_made_says_why():
    rng = np.random.default_rng(0)
    wide, levels = rng.standard_normal((60, 40)), rng.integers(6, size=(600, 3)).astype(float)
    assert baselines(wide, wide[::-1])["gaussian_copula"].missing == "it needs more rows than the 80 columns"
    assert baselines(wide, wide[::-1])["ksg"].missing == "of more than 64 columns it says nothing"
    assert "most pairs 4 times" in baselines(levels, levels[::-1])["ksg"].missing
    assert baselines(levels, levels)["gaussian_copula"].missing == "columns are linear functions of others"


def test_folds_and_validation_keep_groups_together():
    groups = np.random.default_rng(0).integers(30, size=900)
    parts = dependence.fold_parts(900, 3, 0, groups)
    assert sorted(np.concatenate(parts)) == list(range(900))
    assert max(map(len, parts)) < 1.3 * min(map(len, parts))
    for k in range(3):
        chosen = split(parts, k, k, groups)
        rows = (chosen.train, chosen.validation, chosen.test)
        assert sorted(np.concatenate(rows)) == list(range(900))
        assert sum(len(set(groups[part])) for part in rows) == 30
        assert len(chosen.validation) < 200
    blocks = dependence.blocks_of(10, 4)
    assert (np.diff(blocks) >= 0).all()
    assert len(set(blocks)) == 4


def test_clusters_count_as_groups():
    """Every pair four times: as many groups as there were pairs, and their standard error."""
    value, influence = 1.0, torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = report.pooled([(value, influence[:100]), (value, influence[100:])])
    fourfold = report.pooled([(value, influence.repeat_interleave(4)), (value, influence[:0])])
    clusters = torch.arange(200).repeat_interleave(4)
    grouped = report.pooled([(value, influence.repeat_interleave(4)), (value, influence[:0])], clusters)
    assert grouped.standard_error == pytest.approx(plain.standard_error, rel=1e-6)
    assert fourfold.standard_error < 0.6 * grouped.standard_error


def test_the_spread_of_folds_is_in_the_interval():
    influence = torch.linspace(-1, 1, 100, dtype=torch.float64) * 0.01
    found = report.pooled([(1.0, influence), (1.4, influence)])
    assert found.value == pytest.approx(1.2)
    assert found.standard_error == pytest.approx(0.2)


def test_permuted_infonce_is_that_of_permuted_pairs():
    g = torch.Generator().manual_seed(0)
    x, y, reference = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (30, 30, 50))
    scores = calibrated_scores(sk.GaussianCritic(), x, y, reference)
    value, dense = influences(scores)["infonce"][0], scores.dense()
    assert pointwise(scores).mean() == pytest.approx(value)
    for shift in (False, True):
        found = dependence.null_infonce(scores, value, 5, 3, shift)
        rng = np.random.default_rng(3)
        for null in found:
            order = np.roll(np.arange(30), rng.integers(1, 30)) if shift else rng.permutation(30)
            want = (dense[torch.arange(30), order] - dense.logsumexp(1)).mean() + math.log(30)
            assert null == pytest.approx(want.item())


def test_p_values_tell_dependence_from_none():
    for nats, small in ((1.0, True), (0.0, False)):
        result = sk.estimate(*gaussians(300, 1, nats), **QUICK, permutations=199)
        assert (result.p_value <= 0.01) is small
    assert sk.estimate(*gaussians(300, 1, 1.0), **QUICK).p_value is None


def test_rows_in_an_order_are_told():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 400, 1))
    assert dependence.signs_of_dependence(table(x, "x"), table(y, "y")) == []
    (said,) = dependence.signs_of_dependence(table(x.cumsum(0), "x"), table(y.cumsum(0), "y"))
    assert said.startswith("x and y both follow the order of the rows")
    shuffled = rng.permutation(400).astype(float)
    for number in (np.arange(400.0), shuffled + 7, 60 * np.arange(400) + rng.standard_normal(400)):
        counted = Table(np.column_stack([x, number]), "data.csv", ("size", "time"))
        assert (
            "column time of data.csv goes like the number" in dependence.signs_of_dependence(counted, table(y, "y"))[0]
        )
    assert dependence.signs_of_dependence(table(np.sort(x, 0).round(1), "x"), table(y, "y")) == []


def test_blocks_read_nothing_of_two_random_walks_and_say_so():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 300, 1)).cumsum(1)
    result = sk.estimate(x, y, folds=3, max_steps=20, batch_size=64, blocks=6)
    assert result.settings["blocks"] == 6
    assert any("follow the order of the rows" in said for said in result.warnings)
    assert result.bounds["infonce"].low < 0.05


def test_conditional_information_is_the_chain_rule():
    """X - Z - Y: nothing is left of 0.35 nats once Z is known."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal(800)
    x, y = z + 0.5 * rng.standard_normal(800), z + 0.5 * rng.standard_normal(800)
    result = sk.estimate_conditional(x, y, z, **QUICK)
    assert result.nats == pytest.approx(result.joint.nats - result.given.nats)
    assert abs(result.nats) < 0.05
    assert result.low < result.nats < result.high
    assert result.standard_error < result.joint.bounds["infonce"].standard_error
    assert "neither a lower nor an upper bound" in repr(result)
    with pytest.raises(DataError, match="y and z must have as many rows"):
        sk.estimate_conditional(x, y, z[1:])


def test_data_frames_have_names_and_symbols():
    rng = np.random.default_rng(0)
    colour = rng.choice(["red", "green", "blue"], 400)
    frame = pd.DataFrame({"colour": colour, "size": rng.standard_normal(400)})
    y = pd.DataFrame({"y": (colour == "red") + 0.1 * rng.standard_normal(400)})
    made = table(frame.astype({"colour": "category"}), "x")
    assert made.labels == ("colour", "size")
    assert made.symbols == (0,)
    assert table(frame, "x").values[:, 0].tolist() == made.values[:, 0].tolist()
    assert sk.estimate(frame, y, **QUICK).nats > 0.3
    nullable = pd.DataFrame(
        {"count": pd.array([1, None, 3], "Int64"), "time": pd.to_datetime(["2026-01-01", None, None])}
    )
    made = table(nullable, "x")
    assert made.symbols == ()
    np.testing.assert_array_equal(np.isnan(made.values), [[False, False], [True, True], [False, True]])
    frame.loc[3, "colour"] = None
    with pytest.raises(DataError, match=r"x must be finite, got 1 missing .NaN. .* in column colour"):
        sk.estimate(frame, y, **QUICK)
    names = pd.DataFrame({"name": [f"n{k}" for k in range(600)]})
    with pytest.raises(DataError, match=r"x must hold numbers, or .*: column name has 600 different texts"):
        sk.estimate(names, rng.standard_normal(600))


@pytest.fixture(scope="module")
def gaussian_result():
    return sk.estimate(*gaussians(400, 2, 1.0), folds=2, max_steps=20, batch_size=64)


def test_the_repr_is_the_table(gaussian_result):
    text = repr(gaussian_result)
    for name in ("InfoNCE", "Donsker-Varadhan", "NWJ", "SMILE", "Gaussian copula", "KSG", "ceiling of InfoNCE 5.30"):
        assert name in text
    assert f"{gaussian_result.nats:.3f}" in text
    assert "not what the critics did not learn" in text
    assert "p-value" not in text
    assert "p-value of independence: 0.02" in dataclasses.replace(gaussian_result, p_value=0.02).text()
    assert "InfoNCE" in next(line for line in text.splitlines() if "quote this" in line)
    assert f"{gaussian_result.bits:.3f}" in gaussian_result.text(bits=True)
    assert gaussian_result.bits == pytest.approx(gaussian_result.nats / math.log(2))
    assert gaussian_result.pointwise.shape == (400,)
    assert gaussian_result.pointwise.mean() == pytest.approx(gaussian_result.nats, abs=1e-4)


def test_warnings_of_the_baselines_the_ceiling_and_few_rows(gaussian_result):
    from simmim_kernels.estimation.cautions import warnings_of

    x, y = (table(t, name) for t, name in zip(gaussians(400, 2, 1.0), "xy", strict=True))

    def said_of(**changes):
        return " ".join(warnings_of(dataclasses.replace(gaussian_result, **changes), x, y))

    assert "KSG reads" not in said_of()
    much = {**gaussian_result.baselines}
    much["ksg"] = dataclasses.replace(much["ksg"], value=gaussian_result.nats + 0.5)
    assert "0.50 more than InfoNCE" in said_of(baselines=much)

    def near(dv):
        found = {**gaussian_result.bounds, "dv": dataclasses.replace(gaussian_result.bounds["dv"], value=dv)}
        return {"ceiling": gaussian_result.nats + 1.4, "bounds": found}

    for dv, quote, name in ((9.0, "dv", "Donsker-Varadhan"), (-9.0, "infonce", "InfoNCE"), (math.nan, "infonce", "I")):
        assert dataclasses.replace(gaussian_result, **near(dv)).quote == quote
        assert f"quote {name}" in said_of(**near(dv))
    folds = tuple(dataclasses.replace(fold, train_infonce=gaussian_result.nats + 0.5) for fold in gaussian_result.folds)
    assert "too few rows for what there is to learn" in said_of(folds=folds)
    assert "x and x are identical" in " ".join(warnings_of(gaussian_result, x, x))
    beside = table(np.column_stack([y.values, x.values[:, 1]]), "y")
    assert "column 1 of x is column 2 of y" in " ".join(warnings_of(gaussian_result, x, beside))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": np.arange(99)}, r"groups must have shape \(100,\), an entry a row, got \(99,\)"),
        ({"groups": np.zeros(100)}, "groups must be at least 3 and at least as many as folds, 2, .* got 1"),
        ({"groups": [0] * 90 + [1] * 5 + [2] * 5}, "groups must leave 20 rows to every fold, got one of 90 rows"),
        ({"groups": np.full(100, math.nan)}, "groups must be finite"),
        ({"groups": np.zeros((100, 1))}, r"groups must have shape \(N,\)"),
        ({"groups": np.arange(100), "blocks": 5}, "groups and blocks must not both be given"),
        ({"blocks": 2}, "blocks must be an integer of at least 3, got 2"),
        ({"permutations": -1}, "permutations must be an integer of at least 0, got -1"),
    ],
)
def test_unfit_groups_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sk.estimate(*gaussians(100, 1, 1.0), folds=2, **options)
