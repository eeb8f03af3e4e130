"""Truth for every test: dense float64 PyTorch, written without the package, and the rules of comparison."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import simmim_kernels as sk
from simmim_kernels.backends import triton
from simmim_kernels.backends.native.library import why_not
from simmim_kernels.operator.cross_entropy import cross_entropy_sum

# Those that compute in float64, against which rounding is no excuse; and with them those that do not. The native
# library is not built everywhere.
BACKENDS = ("reference", "tiled") if why_not() else ("reference", "tiled", "native")
EVERY_BACKEND = (*BACKENDS, "triton")
WIDEST = dict.fromkeys(BACKENDS, torch.float64) | {"triton": torch.float32}

POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": lambda s: torch.logaddexp(s, torch.zeros_like(s)),
    "square": lambda s: s**2,
    "identity": lambda s: s,
    "log1mexp": lambda s: torch.log1p(-s.exp()),
}


@dataclass
class Case:
    """Scores with options, as tensors that require grad, and their statistic by hand."""

    n: int
    m: int
    d: int
    dtype: torch.dtype = torch.float64
    scale: float = 0.7
    biases: bool = False
    clamp: tuple[float, float] | None = None
    ids: int = 0
    groups: int = 0
    joint: str = "counted"
    positives: bool = False
    seed: int = 0
    strided: bool = False
    device: str = "cpu"
    mirrored: bool = False  # the columns' tensors are the rows' own
    guide: int = 0  # the width of a guide's features, by which some three in ten pairs are left out
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        g = torch.Generator().manual_seed(self.seed)

        def normal(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        x, y = normal(self.n, self.d), normal(self.m, self.d)
        x, y = (t / self.d**0.25 for t in (x, y))
        made = {"x": x, "y": y}
        if self.biases:
            made |= {"row_bias": normal(self.n), "col_bias": normal(self.m)}
        low = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.tensors = {k: v.to(self.device, self.dtype if k in "xy" else low) for k, v in made.items()}
        self.tensors["scale"] = torch.tensor(self.scale, dtype=low, device=self.device)
        if self.strided:
            # x as every other column of a wider matrix, y as the transpose of one.
            self.tensors["x"] = self.tensors["x"].repeat_interleave(2, dim=1)[:, ::2]
            self.tensors["y"] = self.tensors["y"].T.contiguous().T
        if self.mirrored:
            self.tensors = {k: v for k, v in self.tensors.items() if k not in ("y", "col_bias")}
        for t in self.tensors.values():
            t.requires_grad_()
        if self.guide:
            # Whole numbers, so that no rounding of a product changes which pairs there are.
            made = [(2 * normal(size, self.guide)).round() for size in (self.n, self.m)]
            limit = (self.guide**0.5 * (2 + 0.4 * normal(self.n))).round() + 0.5
            self.guides = [t.to(self.device, low) for t in (*made, limit)]
        self.row_ids = torch.randint(0, 3, (self.ids, self.n), generator=g)
        self.col_ids = self.row_ids if self.mirrored else torch.randint(0, 3, (self.ids, self.m), generator=g)
        self.column = torch.randint(0, self.m, (self.n,), generator=g) if self.positives else None
        if self.mirrored and self.positives:
            self.column = torch.arange(self.n).flip(0)
        # The first in order, as of rows that were sorted by their groups: whole tiles are then left out.
        self.row_groups = torch.randint(0, 3, (self.groups, self.n), generator=g)
        self.col_groups = torch.randint(0, 3, (self.groups, self.m), generator=g)
        for ids in (self.row_groups, self.col_groups):
            ids[:1] = ids[:1].sort().values
        if self.mirrored:
            self.col_groups = self.row_groups

    def of_all_pairs(self, sk):
        """The case through the package, before clamp and exclusions."""
        t = self.tensors
        return sk.PairwiseScores(
            t["x"],
            t.get("y", t["x"]),
            scale=t["scale"],
            row_bias=t.get("row_bias"),
            col_bias=t.get("row_bias" if self.mirrored else "col_bias"),
            positives=None if self.column is None else self.column.to(self.device),
        )

    def scores(self, sk):
        """The case through the package."""
        s = self.of_all_pairs(sk)
        if self.clamp:
            s = s.clamp(*self.clamp)
        for k in range(self.ids):
            row_ids = self.row_ids[k].to(self.device)
            ids = row_ids, row_ids if self.mirrored else self.col_ids[k].to(self.device)
            s = s.exclude(*ids, keep_joint=self.joint == "kept")
        for k in range(self.groups):
            row_groups = self.row_groups[k].to(self.device)
            ids = row_groups, row_groups if self.mirrored else self.col_groups[k].to(self.device)
            s = s.within(*ids, keep_joint=self.joint == "kept")
        if self.guide:
            s = s.exclude_above(*self.guides, keep_joint=self.joint == "kept")
        if self.joint == "negated":
            return s._with_joint_negated()
        return s.marginal if self.joint == "left_out" else s

    def upcast(self) -> dict[str, Tensor]:
        """The same on the CPU in float64: the truth."""
        return {k: v.detach().cpu().double().requires_grad_() for k, v in self.tensors.items()}

    def mask(self) -> Tensor:
        """True where a pair is excluded."""
        mask = torch.zeros(self.n, self.m, dtype=torch.bool)
        for r, c in zip(self.row_ids, self.col_ids, strict=True):
            mask |= r[:, None] == c
        for r, c in zip(self.row_groups, self.col_groups, strict=True):
            mask |= r[:, None] != c
        if self.guide:
            x, y, limit = (t.cpu().double() for t in self.guides)
            mask |= x @ y.T > limit[:, None]
        if self.joint in ("left_out", "kept"):
            mask[self.joint_pairs()] = self.joint == "left_out"
        return mask

    def joint_pairs(self) -> tuple[Tensor, Tensor]:
        rows = torch.arange(self.n)
        return rows, rows if self.column is None else self.column

    def dense(self, t: dict[str, Tensor]) -> Tensor:
        s = t["scale"] * (t["x"] @ t.get("y", t["x"]).T)
        if self.biases:
            s = s + t["row_bias"][:, None] + t["row_bias" if self.mirrored else "col_bias"]
        return s.clamp(*self.clamp) if self.clamp else s

    def statistic(self, t: dict[str, Tensor], fn: str, dim) -> Tensor:
        s = self.dense(t)
        mask = self.mask()
        if fn == "logsumexp":
            # Every row and column of the tests keeps a pair, except where a test says so.
            return s.masked_fill(mask, -math.inf).logsumexp(dim)
        if self.joint == "negated":
            sign = torch.ones_like(s)
            sign[self.joint_pairs()] = -1.0
            s = sign * s
        return torch.where(mask, 0.0, POINTWISE[fn](torch.where(mask, -1.0, s))).sum(dim)


GRID = 64


@dataclass
class NetworkCase(Case):
    """Scores of a network of one or two hidden layers, `d` wide, from its first layer's halves x and y.

    What enters a rectifier is on a grid, so that float32 makes it exactly: of millions of units some are so near zero
    that a rounding would switch them, and a gradient with them.
    """

    layers: int = 2

    def __post_init__(self):
        super().__post_init__()
        g = torch.Generator().manual_seed(self.seed + 1)
        made = {"output": torch.randn(1, self.d, generator=g, dtype=torch.float64) / self.d**0.5}
        if self.layers == 2:
            made["weight"] = torch.randn(self.d, self.d, generator=g, dtype=torch.float64) * (2 / self.d) ** 0.5
            made["weight_bias"] = torch.randn(self.d, generator=g, dtype=torch.float64) / 4
        made["output_bias"] = torch.tensor([0.3], dtype=torch.float64)
        low = self.tensors.pop("scale").dtype
        self.tensors |= {k: v.to(self.device, low).requires_grad_() for k, v in made.items()}
        for name in {"x", "y", "weight", "weight_bias"} & set(self.tensors):
            tensor = self.tensors[name].detach()
            tensor.copy_((GRID * tensor).round() / GRID)

    def of_all_pairs(self, sk):
        t = self.tensors
        names = ("weight", "weight_bias", "output", "output_bias")
        positives = None if self.column is None else self.column.to(self.device)
        return sk.PairwiseScores.of_mlp(t["x"], t["y"], [t[name] for name in names if name in t], positives)

    def dense(self, t: dict[str, Tensor]) -> Tensor:
        hidden = (t["x"][:, None] + t["y"]).relu()
        if self.layers == 2:
            hidden = F.linear(hidden, t["weight"], t["weight_bias"]).relu()
        s = F.linear(hidden, t["output"], t["output_bias"]).squeeze(2)
        return s.clamp(*self.clamp) if self.clamp else s


def run(sk, scores, fn: str, dim, backend: str) -> Tensor:
    return scores.logsumexp(dim, backend=backend) if fn == "logsumexp" else scores.sum(dim, fn=fn, backend=backend)


def weighted(value: Tensor) -> Tensor:
    """A scalar with a different upstream gradient for every entry of a statistic."""
    return (
        value * torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device).reshape(value.shape)
    ).sum()


def gradients(value: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
    return {k: torch.zeros_like(t) if g is None else g for (k, t), g in zip(tensors.items(), found, strict=True)}


def error(got: Tensor, want: Tensor) -> float:
    """Largest error, relative to the largest entry of the truth."""
    assert got.shape == want.shape, (got.shape, want.shape)
    assert torch.isfinite(got).all(), "not finite"
    return float(((got.double().cpu() - want).abs().max() / want.abs().max().clamp(min=1e-30)).detach())


# 50 spreads scores over 100 nats, more than one reference in float32 serves, and less than makes every tile see it.
SPREADS = (1, 30, 50, 300, 3000)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def assert_close(got: Tensor, want: Tensor, dense: Tensor | None = None, name: str = "") -> None:
    """1e-10 in float64, 1e-5 in float32; in half precision twice dense PyTorch's own error, plus a rounding.

    Dense PyTorch's own sum of many exponentials may overflow in float16: a rounding is then all that is allowed.
    """
    found = error(got, want)
    if dense is None:
        allowed = TOLERANCE[got.dtype]
    else:
        theirs = error(dense.to(torch.float32), want) if dense.isfinite().all() else 0.0
        allowed = 2 * theirs + torch.finfo(dense.dtype).eps
    assert found <= allowed, f"{name}: error {found:.3g}, allowed {allowed:.3g}"


OPTIONS = {
    "plain": {},
    "biases": {"biases": True},
    "clamp": {"clamp": (-0.4, 0.6)},
    "ids": {"ids": 1},
    "two ids": {"ids": 2, "biases": True},
    "marginal": {"joint": "left_out"},
    "marginal of positives": {"joint": "left_out", "positives": True},
    "marginal, ids and clamp": {"joint": "left_out", "ids": 1, "clamp": (-0.5, 0.5)},
    "ids that keep the joint pairs": {"joint": "kept", "ids": 2, "positives": True},
    "groups": {"groups": 1},
    "groups, ids, biases and clamp": {"groups": 1, "ids": 1, "biases": True, "clamp": (-0.4, 0.6)},
    "two groups that keep the joint pairs": {"groups": 2, "joint": "kept", "positives": True},
    "marginal of groups": {"groups": 1, "joint": "left_out"},
    "strided": {"strided": True, "biases": True},
}


# Of cross entropies.
ENTROPIES = {
    "plain": {},
    "biases": {"biases": True},
    "clamp": {"clamp": (-0.4, 0.6), "biases": True},
    "positives": {"positives": True},
    "false negatives": {"joint": "kept", "ids": 2},
    "strided": {"strided": True},
}


# Of sums of a pointwise function alone.
NEGATED = {
    "negated": {"joint": "negated", "biases": True},
    "negated, positives and clamp": {"joint": "negated", "positives": True, "clamp": (-0.4, 0.6)},
    "negated, ids and groups": {"joint": "negated", "ids": 1, "groups": 1},
}


# Of backends that take a guide.
GUIDED = {
    "guide": {"guide": 5},
    "guide, ids, biases and clamp": {"guide": 16, "ids": 1, "biases": True, "clamp": (-0.4, 0.6)},
    "guide that keeps the joint pairs": {"guide": 33, "groups": 1, "ids": 1, "joint": "kept", "positives": True},
    "marginal of a guide": {"guide": 3, "joint": "left_out"},
}


def check_statistic(sk, case: Case, fn: str, dim, backend: str) -> None:
    """Value and all gradients of one statistic against dense float64."""
    got = run(sk, case.scores(sk), fn, dim, backend)
    wide = case.upcast()
    want = case.statistic(wide, fn, dim)
    low = torch.float64 if case.dtype == torch.float64 else torch.float32
    assert got.dtype == low
    half = case.dtype in (torch.bfloat16, torch.float16)
    dense = dict.fromkeys(("value", *case.tensors))
    if half:
        own = {k: v.detach().cpu().to(case.dtype).requires_grad_() for k, v in case.tensors.items()}
        value = case.statistic(own, fn, dim)
        dense = {"value": value.detach(), **gradients(weighted(value), own)}
    assert_close(got.detach(), want.detach(), dense["value"], "value")
    found, truth = gradients(weighted(got), case.tensors), gradients(weighted(want), wide)
    for name in case.tensors:
        assert found[name].dtype == case.tensors[name].dtype
        assert_close(found[name], truth[name], dense[name], name)


def entropies_of(case: Case, t: dict[str, Tensor], dims: str) -> Tensor:
    """(1 or 2, N) cross entropies of the joint pairs."""
    s, joint_pairs = case.dense(t), case.joint_pairs()
    joint, s = s[joint_pairs], s.masked_fill(case.mask(), -math.inf)
    found = [s.logsumexp(1) - joint] if dims != "columns" else []
    return torch.stack(found if dims == "rows" else [*found, s.logsumexp(0)[: case.n] - joint])


def check_cross_entropies(sk, case: Case, dims: str, backend: str, total: bool, weights: Tensor | None = None) -> None:
    """The values, or their sum by weights and a divisor, and all gradients, against dense float64."""

    def reduced(entropies: Tensor) -> Tensor:
        by = 1 if weights is None else weights.to(entropies)
        return (by * entropies).sum() / 7 if total else weighted(entropies)

    scores, wide = case.scores(sk), case.upcast()
    if total:
        given = None if weights is None else weights.to(case.device)
        got = cross_entropy_sum(scores._problem, dims, 7.0, given, backend)
    else:
        got = scores._cross_entropies(dims, backend)
    want = entropies_of(case, wide, dims)
    own = {k: v.detach().cpu().to(case.dtype).requires_grad_() for k, v in case.tensors.items()}
    dense = dict.fromkeys(own)
    if case.dtype in (torch.bfloat16, torch.float16):
        dense = gradients(reduced(entropies_of(case, own, dims)), own)
    # Joint scores, and those of the others, are float32's own, or TF32's of numbers that it holds.
    assert_close(got.detach(), (reduced(want) if total else want).detach(), name="value")
    found = gradients(got * 3 if total else 3 * weighted(got), case.tensors)
    truth = gradients(3 * reduced(want), wide)
    for name, gradient in found.items():
        assert gradient.dtype == case.tensors[name].dtype
        if truth[name].abs().max() < 1e-12:  # a row's bias, which is in all its scores
            assert gradient.abs().max() < (1e-6 if dense[name] is None else 1e-2)
        else:
            assert_close(gradient, truth[name], None if dense[name] is None else 3 * dense[name], name)


def softmax_entropies(s: Tensor) -> Tensor:
    """(N,) of each row's softmax of scores, -inf where pairs are left out; 0 of a row that has lost all."""
    log_p = (s - s.logsumexp(1, keepdim=True)).masked_fill(s == -math.inf, 0.0)
    return -(log_p.exp().masked_fill(s == -math.inf, 0.0) * log_p).sum(1)


def check_softmax_entropies(case: Case, dims: str = "both", slack: float = 0.0) -> None:
    """All that Triton's forward_with_entropies gives. `slack` is for the rounding of large scores, whoever makes them.

    Operands of half precision are multiplied exactly, and all that follows is float32's.
    """
    problem = case.scores(sk)._problem.replace(fn="logsumexp", dims=dims, wants_entropy=True)
    rows, columns, entropies = triton.forward_with_entropies(problem)
    s = case.dense(case.upcast()).detach().masked_fill(case.mask(), -math.inf)
    assert entropies.dtype == torch.float32
    assert not entropies.requires_grad
    assert (entropies >= 0).all()
    assert error(entropies, softmax_entropies(s)) <= 1e-5 + slack
    for got, dim in ((rows, 1), (columns, 0)):
        if dim == 0 and dims == "rows":
            assert len(got) == 0
            continue
        want = s.logsumexp(dim)
        empty = want.isinf()
        assert torch.equal(got.isinf().cpu(), empty)
        assert_close(got.cpu().masked_fill(empty, 0), want.masked_fill(empty, 0))


def check_spread(sk, spread: float, columns_differ: bool, dtype: torch.dtype, backend: str) -> None:
    """Row and column log-sum-exps whose references differ by up to twice `spread`: whether fixed, shared or running."""
    case = Case(40, 60, 8, dtype, biases=True)
    size = torch.linspace(-spread, spread, 60 if columns_differ else 40)
    case.tensors["col_bias" if columns_differ else "row_bias"] = size.to(dtype).requires_grad_()
    rows, columns = case.scores(sk).logsumexps(backend=backend)
    wide = case.upcast()
    want = [case.statistic(wide, "logsumexp", dim) for dim in (1, 0)]
    for got, truth in zip((rows, columns), want, strict=True):
        assert_close(got.detach(), truth.detach())
    found = gradients(weighted(rows) + weighted(columns), case.tensors)
    truth = gradients(weighted(want[0]) + weighted(want[1]), wide)
    # A score of size s is rounded to s * eps in float32, whoever computes it, and its weight with it.
    slack = 1 if dtype == torch.float64 else max(1, spread / 30)
    for name in case.tensors:
        assert error(found[name], truth[name]) <= slack * TOLERANCE[dtype], name


def check_pointwise(sk, fn: str, backend: str, tolerance: float) -> None:
    """A pointwise function and its derivative in float32, relatively, one score a row: its size is the row bias."""
    size = torch.cat([torch.logspace(-8, 1.9, 200), torch.tensor([15.9, 16.1, 17.1])])
    s = -size if fn == "log1mexp" else torch.cat([-size, size])
    zeros, bias = torch.zeros(len(s), 1), s.clone().requires_grad_()
    got = sk.PairwiseScores(zeros, zeros[:1], row_bias=bias).sum(1, fn=fn, backend=backend)
    (derivative,) = torch.autograd.grad(got.sum(), bias)
    wide = s.double().requires_grad_()
    want = POINTWISE[fn](wide)
    if fn == "log1mexp":
        # Near 0 the plain formula of the table is itself inexact.
        want = torch.where(wide > -0.5, torch.log(-torch.expm1(wide.clamp(min=-1))), want)
    (slope,) = torch.autograd.grad(want.sum(), wide)
    for found, truth in ((got.detach(), want.detach()), (derivative, slope)):
        assert ((found.double() - truth).abs() <= tolerance * truth.abs() + 1e-37).all()


def off_diagonal(s: Tensor) -> Tensor:
    return s[~torch.eye(*s.shape, dtype=torch.bool)]


def lme(t: Tensor, dim: int = 0) -> Tensor:
    return t.logsumexp(dim) - math.log(t.shape[dim])


def normalised(*tensors: Tensor) -> Sequence[Tensor]:
    return [F.normalize(t, dim=1) for t in tensors]
