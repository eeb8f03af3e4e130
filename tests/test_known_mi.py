"""The known truth: closed forms against independent densities, and bounds with optimal and trained critics."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

import simmim_kernels as sk
from benchmarks.known_mi import channels, optimal, suite, tasks, trained

LogDensity = Callable[[np.ndarray], np.ndarray]


def check_information(task: tasks.Task, log_ratio: Callable[[np.ndarray, np.ndarray], np.ndarray], n: int = 50_000):
    """The mean log density ratio of the task's samples is its information, within five standard errors."""
    x, y = (rows.double().numpy() for rows in task.sample(n, torch.Generator().manual_seed(0)))
    ratios = log_ratio(x, y)
    standard_error = ratios.std() / math.sqrt(n)
    assert standard_error < 0.02 * max(task.information, 1)
    assert abs(ratios.mean() - task.information) < 5 * standard_error


def elliptical_log_ratio(joint: LogDensity, x_alone: LogDensity, y_alone: LogDensity):
    return lambda x, y: joint(np.concatenate([x, y], axis=1)) - x_alone(x) - y_alone(y)


def joint_shape(rho: float, d: int) -> np.ndarray:
    return np.kron([[1, rho], [rho, 1]], np.eye(d))


def normal_log_ratio(rho: float, d: int):
    alone = stats.multivariate_normal(np.zeros(d)).logpdf
    return elliptical_log_ratio(stats.multivariate_normal(np.zeros(2 * d), joint_shape(rho, d)).logpdf, alone, alone)


# By hand: rho^2 = 1 - e^(-2 I / d).
@pytest.mark.parametrize(("information", "d", "rho"), [(10, 20, 0.795060), (2, 20, 0.425757), (2, 5, 0.742072)])
def test_gaussian(information, d, rho):
    assert tasks.correlation(information, d) == pytest.approx(rho, abs=1e-6)
    check_information(tasks.gaussian(information, d), normal_log_ratio(rho, d))


def test_a_wrong_correlation_is_seen(monkeypatch):
    """The check above, with a factor of two left out of the formula."""
    right = tasks.correlation(2, 5)
    monkeypatch.setattr(tasks, "correlation", lambda information, d: math.sqrt(-math.expm1(-information / d)))
    with pytest.raises(AssertionError):
        check_information(tasks.gaussian(2, 5), normal_log_ratio(right, 5))
    with pytest.raises(AssertionError):
        check_information(tasks.gaussian(2, 5), normal_log_ratio(tasks.correlation(2, 5), 5))


def test_gaussian_information_by_integration():
    grid = np.linspace(-9, 9, 1001)
    x, y = np.meshgrid(grid, grid)
    shape = joint_shape(tasks.correlation(0.7, 1), 1)
    joint = stats.multivariate_normal(np.zeros(2), shape).logpdf(np.stack([x, y], axis=-1))
    ratio = joint - stats.norm.logpdf(x) - stats.norm.logpdf(y)
    total = (np.exp(joint) * ratio).sum() * (grid[1] - grid[0]) ** 2
    assert total == pytest.approx(0.7, abs=1e-9)


@pytest.mark.parametrize("gaussian_information", [0.0, 2.0])
def test_student_t(gaussian_information):
    nu, d = 5, 5
    rho = tasks.correlation(gaussian_information, d)
    alone = stats.multivariate_t(np.zeros(d), np.eye(d), df=nu).logpdf
    joint = stats.multivariate_t(np.zeros(2 * d), joint_shape(rho, d), df=nu).logpdf
    task = tasks.student_t(gaussian_information, nu, d)
    assert task.information > gaussian_information + 0.1
    check_information(task, elliptical_log_ratio(joint, alone, alone))


@pytest.mark.parametrize("width", [0.2, 0.4, 0.5, 0.8])
def test_uniform_noise(width):
    def y_density(y):
        """Of x + e: the length of [y - width, y + width] within [0, 1], over 2 width."""
        return (np.minimum(y + width, 1) - np.maximum(y - width, 0)) / (2 * width)

    def surprise(y):
        p = y_density(y)
        return -p * math.log(p) if p > 0 else 0.0

    corners = sorted({width, 1 - width})
    entropy = integrate.quad(surprise, -width, 1 + width, points=corners)[0]
    assert tasks.uniform_noise(width, 3).information == pytest.approx(3 * (entropy - math.log(2 * width)), abs=1e-6)
    check_information(
        tasks.uniform_noise(width, 3), lambda x, y: -(np.log(2 * width) + np.log(y_density(y))).sum(axis=1)
    )


@pytest.mark.parametrize("make", [tasks.cubic, tasks.spiral])
def test_bijections_keep_the_density_ratio(make):
    """Two draws of one seed: y differs, x and every pair's score by the optimal critic do not."""
    mapped, plain = make(3.0, 10), tasks.gaussian(3.0, 10)
    assert mapped.information == plain.information
    (x, y), (same, before) = (task.sample(64, torch.Generator().manual_seed(0)) for task in (mapped, plain))
    assert torch.equal(x, same)
    assert (y - before).abs().mean() > 0.2
    torch.testing.assert_close(
        mapped.optimal_critic(x, y).dense(), plain.optimal_critic(x, before).dense(), atol=1e-4, rtol=1e-5
    )


def test_spiral_keeps_norms():
    (_, y), (_, before) = (
        task.sample(64, torch.Generator().manual_seed(0)) for task in (tasks.spiral(3.0, 10), tasks.gaussian(3.0, 10))
    )
    torch.testing.assert_close(y.norm(dim=1), before.norm(dim=1))


def test_digits_determine_their_bits():
    """No image is in both pools: then the images carry the bits' information, all of it."""
    zeros, ones = tasks.images_of_bits()
    assert min(len(zeros), len(ones)) > 150
    assert torch.cdist(zeros, ones).min() > 0.5
    flip, bits = 0.1, 3
    task = tasks.digits_channel(flip, bits)
    sent, received = (bits_of(images, bits) for images in task.sample(20_000, torch.Generator().manual_seed(0)))
    table = np.histogram2d(sent.flatten(), received.flatten(), bins=2)[0]
    assert task.information == pytest.approx(bits * plug_in_information(table), abs=0.02)
    # Bits of one image do not tell of those of another.
    assert plug_in_information(np.histogram2d(sent[:, 0], received[:, 1], bins=2)[0]) < 1e-3


def bits_of(images: Tensor, bits: int) -> np.ndarray:
    """(N, bits), by looking the images up among the ones."""
    ones = {one.numpy().tobytes() for one in tasks.images_of_bits()[1]}
    tiles = images.unflatten(1, (bits, -1)).numpy()
    return np.array([[tile.tobytes() in ones for tile in row] for row in tiles], dtype=float)


def plug_in_information(table: np.ndarray) -> float:
    p = table / table.sum()
    return float((p * np.log(p / np.outer(p.sum(1), p.sum(0)))).sum())


def test_optimal_critic_is_the_log_density_ratio():
    task = tasks.gaussian(4.0, 3)
    x, y = task.sample(40, torch.Generator().manual_seed(0))
    rows, columns = (t.flatten().numpy() for t in torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij"))
    want = normal_log_ratio(tasks.correlation(4.0, 3), 3)(x.double().numpy()[rows], y.double().numpy()[columns])
    got = task.optimal_critic(x, y, offset=1.0).dense().flatten()
    np.testing.assert_allclose(got.numpy(), want + 1, atol=2e-4)


# Of the optimal critic at d = 20: by size of the batch, nats and what infonce reads, which dense PyTorch gave.
TABLE = {
    64: {6: 3.75, 8: 4.02, 10: 4.13},
    1024: {6: 5.21, 8: 6.15, 10: 6.63, 12: 6.84},
}


def test_optimal_critic_against_the_table():
    for n, batches in ((64, 64), (1024, 4)):
        for information, infonce in TABLE[n].items():
            mean = optimal.measure(n, information, 20, batches)["mean"]
            assert mean["infonce"] == pytest.approx(infonce, abs=0.1)
            assert mean["infonce"] < math.log(n)
    mean = optimal.measure(2048, 6, 20, 4)["mean"]
    assert mean["dv"] == pytest.approx(6, abs=0.15)
    assert mean["nwj"] == pytest.approx(6, abs=0.15)


def test_every_bound_reads_two_nats_with_its_own_optimal_critic():
    task = tasks.gaussian(2.0)
    read: dict[str, list[float]] = {}
    for seed in range(4):
        x, y = task.sample(2048, torch.Generator().manual_seed(seed))
        scores, bounds = task.optimal_critic(x, y), sk.bounds
        joint = scores.joint
        values = bounds.readouts(scores) | {
            "js": bounds.js(scores),
            "nwj, its own": bounds.nwj(task.optimal_critic(x, y, offset=1.0)),
            "tuba": bounds.tuba(scores, 0.0),
            # The optimal u of a batch is that of the population, -log r, but for the batch's own fluctuation.
            "flo": bounds.flo(scores, -joint),
            "interpolated": bounds.interpolated(scores, 0.01, 0.0),
        }
        for name, value in values.items():
            read.setdefault(name, []).append(value.item())
    mean = {name: sum(values) / len(values) for name, values in read.items()}
    for name in ("infonce", "dv", "js", "nwj, its own", "tuba", "flo", "interpolated", "plug_in"):
        assert mean[name] == pytest.approx(2.0, abs=0.1), name
    # The critic that is optimal for js, read by nwj: I - 1/e.
    assert mean["nwj"] == pytest.approx(2 - 1 / math.e, abs=0.1)


@pytest.mark.parametrize(("critic", "steps"), [("separable", 150), ("mlp", 100)])
def test_trained(critic, steps, monkeypatch):
    """Nearly all of one nat, and no more, with narrow networks and the learning rate of a short run."""
    monkeypatch.setitem(trained.HIDDEN, critic, 48)
    monkeypatch.setattr(trained, "LEARNING_RATE", 5e-3)
    (reading,) = trained.climb([tasks.gaussian(1.0, 2)], critic, "infonce", steps, seed=0)
    assert 0.8 < reading["estimate"] < 1.02
    assert reading["bias"] == reading["estimate"] - 1.0
    assert 0 < reading["variance"] < 0.05


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    pytest.importorskip("cpuinfo")
    from benchmarks.known_mi import record

    path, measured = tmp_path / "figures.json", []

    def measure(n: int) -> dict:
        if n == 2 and len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(n)
        return {"square": n**2}

    plan = [{"n": 1}, {"n": 2}, {"n": 3}]
    with pytest.raises(KeyboardInterrupt):
        record.complete(path, plan, measure)
    assert [row["square"] for row in record.load(path)["rows"]] == [1]
    measured.append(0)
    rows = record.complete(path, plan, measure)
    assert measured == [1, 0, 2, 3]
    assert rows == record.load(path)["rows"] == [{"n": n, "square": n**2, "run": 0} for n in (1, 2, 3)]
    (run,) = record.load(path)["runs"]
    assert run["versions"]["torch"] == torch.__version__


def test_tables_hold_what_was_recorded():
    from benchmarks.known_mi import report

    row = {"n": 65536, "information": 8, "mean": dict.fromkeys(optimal.BOUNDS, 7.69)}
    assert "| infonce | 65,536 | 11.09 |  |  |  | 7.69 |" in report.optimal_table([row])
    readings = [
        {"information": 2, "estimate": 1.5, "bias": -0.5, "variance": 0.25},
        {"information": 4, "estimate": None, "bias": None, "variance": None},
    ]
    climb = {"family": "cubic", "critic": "mlp", "bound": "nwj", "readings": readings}
    assert "| cubic | mlp | nwj | 1.50 (-0.50, 0.25) | not finite |" in report.trained_table([climb])
    alone = {"family": "spiral", "critic": "separable", "bound": "js", "readings": readings[:1]}
    assert "| spiral | 3.00 |  |  | 1.50 (-0.50, 0.25) |" in report.alone_table([climb, alone])


def test_symbols_by_their_table_of_probabilities():
    count, kept = 7, 0.6
    joint = np.full((count, count), (1 - kept) / count**2) + kept * np.eye(count) / count
    ratio = np.log(joint / (joint.sum(1, keepdims=True) * joint.sum(0)))
    task = tasks.symbols(count, kept)
    assert task.information == pytest.approx((joint * ratio).sum(), abs=1e-12)
    check_information(task, lambda x, y: ratio[x.astype(int), y.astype(int)])


# Of the suite, those whose density ratio can be written down; the others are seen through functions of these.
RATIOS = {
    "crossed": (
        channels.crossed_gaussians(0.9, 0.75),
        lambda x, y: (
            np.log(
                0.75 * stats.norm.pdf(y, 0.9 * x, math.sqrt(0.19)) + 0.25 * stats.norm.pdf(y, -0.9 * x, math.sqrt(0.19))
            )
            - stats.norm.logpdf(y)
        ),
    ),
    "counts": (
        channels.counts(5.0),
        lambda x, y: stats.poisson.logpmf(y, x) - stats.geom.logpmf(y + 1, 1 / 6),
    ),
    "linear": (
        channels.noisy_function("linear", lambda t: t, 0.5, 7.0),
        lambda x, y: stats.norm.logpdf(y, x, 0.5) - stats.norm.logpdf(y, 0, math.sqrt(1.25)),
    ),
}


@pytest.mark.parametrize("name", RATIOS)
def test_channels_by_quadrature(name):
    task, ratio = RATIOS[name]
    check_information(task, lambda x, y: ratio(x[:, 0], y[:, 0]))


def test_channels_in_closed_form():
    by_scale = channels.noisy_function("linear", lambda t: t, 0.5, 7.0).information
    assert by_scale == pytest.approx(0.5 * math.log(1 + 1 / 0.25), abs=1e-6)
    assert channels.labelled_clusters(6, 0.01).information == pytest.approx(math.log(6), abs=1e-6)
    x, y = channels.subspace(2.0, 3, 20).sample(20_000, torch.Generator().manual_seed(0))
    cross = torch.linalg.svdvals(x.T @ y / len(x))
    assert -0.5 * np.log1p(-(cross[:3].double().numpy() ** 2)).sum() == pytest.approx(2.0, abs=0.1)
    x, y = channels.exclusive_or(0.1, 1).sample(20_000, torch.Generator().manual_seed(0))
    table = np.histogram2d((x[:, 0] != x[:, 1]).numpy(), y[:, 0].numpy(), bins=2)[0]
    assert channels.exclusive_or(0.1).information == pytest.approx(plug_in_information(table), abs=0.02)
    assert torch.pdist(channels.swiss_roll(torch.linspace(0, 1, 500)[:, None])).min() > 1e-3


def test_the_scale_of_noise_by_monte_carlo():
    """Neither has a closed density of y: both are averaged over x."""
    task, nodes = channels.scaled_noise(1.0), stats.norm.ppf((np.arange(1000) + 0.5) / 1000)

    def log_ratio(x, y):
        marginal = np.concatenate([stats.norm.pdf(part, 0, np.exp(nodes)).mean(1) for part in np.array_split(y, 50)])
        return stats.norm.logpdf(y[:, 0], 0, np.exp(x[:, 0])) - np.log(marginal)

    check_information(task, log_ratio, n=4000)


def test_the_suite_is_halved_and_measured(monkeypatch):
    from benchmarks.known_mi import report

    assert not set(suite.DESIGN) & set(suite.HELD_OUT)
    assert min(len(suite.DESIGN), len(suite.HELD_OUT)) > 20
    monkeypatch.setitem(suite.CASES, "10 symbols", (tasks.symbols(), 300))
    monkeypatch.setattr(suite, "FOLDS", 2)
    monkeypatch.setattr(suite, "estimate", partial(sk.estimate, max_steps=20))
    row = {"case": "10 symbols", **suite.measure("10 symbols", 0)}
    assert abs(row["estimate"]["infonce"] - row["truth"]) < 0.3
    line = report.suite_table([row], suite.DESIGN).splitlines()[-1]
    assert line.startswith("| 10 symbols | 300 | 1.44 |")
    row["shortfall"] = 0.1
    far = {**row, "case": "30 symbols", "estimate": {"infonce": row["truth"] + 0.5}, "interval": [0, 0.1]}
    far["warnings"] = []  # those of so few steps
    spoken = {**far, "case": "sine", "warnings": ["KSG reads 9 nats"]}
    stated = {**far, "case": "10 symbols", "shortfall": 2.0}
    nothing = {**far, "case": "exclusive or", "truth": 0.0, "estimate": {"infonce": 0.1}, "interval": [0.05, 0.15]}
    summary = report.suite_summary([far, spoken, stated, nothing], suite.DESIGN)
    assert "Within 0.15 nats, of 4: ours 1," in summary
    assert "without a warning: 2. The interval holds the truth in 0, with the stated shortfall in 1, and" in summary
    assert "it does so or a warning is given in 2. Of 1 samples of independent x and y, 0 read less" in summary


@pytest.mark.parametrize("bound", ["infonce", "mine", "nwj", "js", "smile"])
def test_torch_mist_reads_the_same_critic_alike(bound):
    """Where it is installed, which benchmarks/known_mi/peers.py says how to do."""
    estimators = pytest.importorskip("torch_mist.estimators")
    negatives = 0 if bound == "infonce" else -1
    peer = estimators.instantiate_estimator(
        bound, 20, 20, hidden_dims=[16], critic_type="separable", k_dim=8, neg_samples=negatives
    ).eval()
    ours = sk.MutualInformation(sk.SeparableCritic(peer.critic.f_x, peer.critic.f_y, sk.DotCritic(3.0)), bound).eval()
    peer.critic.temperature = 1 / 3
    x, y = tasks.gaussian(2.0).sample(128, torch.Generator().manual_seed(0))
    assert peer.mutual_information(x, y).item() == pytest.approx(ours(x, y).item(), rel=1e-5, abs=1e-5)
