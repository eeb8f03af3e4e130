"""PairwiseScores: the N x M matrix of critic scores as a symbol, and its differentiable statistics."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .operator import sharded
from .operator.computation import autocast, without_autocast
from .operator.cross_entropy import cross_entropies, cross_entropy_sum
from .operator.global_batch import shards_of
from .problem import Problem, validation
from .problem.ids import with_more_ids
from .problem.pointwise import POINTWISE

_UNLIMITED = {"lo": -math.inf, "hi": math.inf}

Dim = int | tuple[int, int]


class PairwiseScores:
    """Scores s_ij = clamp(scale <x_i, y_j> + row_bias_i + col_bias_j, lo, hi), minus excluded pairs.

    Rows are the anchors x (N, d), columns the candidates y (M, d), in float64, float32, bfloat16 or float16. `scale`
    is a number or a tensor of one element, `row_bias` has shape (N,), `col_bias` (M,). `positives` (N,) int64 is the
    column of each row's joint pair, by default the diagonal, which needs M >= N wherever a joint pair is asked for. All
    statistics are differentiable in x, y, scale and both biases, never hold the matrix of scores, and come in
    float64 for float64 operands and in float32 for all others.

    Of a statistic, `dim` is what it sums over: 1 the columns, giving (N,), 0 the rows, giving (M,), (0, 1) both, giving
    (). `backend` is a name of `backends()`, or None for the choice of `use_backend`, of the environment, or of the
    first that can run it; one that is named and cannot raises RuntimeError, with the reason.

    With `group`, a ProcessGroup, a DeviceMesh of one dimension or a GlobalBatch, all ranks' rows are one problem: x and
    y are this rank's rows of it, some or none, and so are biases and ids. The scores are then those of this rank's
    anchors and every rank's candidates, (n, M), `positives` count columns in the order of the ranks, and default to
    this rank's own diagonal. Statistics over dim 0 are of this rank's candidates, (m,), over every rank's anchors;
    those over (0, 1) of all pairs. Every rank must make the same calls. Of gradients GlobalBatch says more.

    Raises TypeError or ValueError for operands of unequal width, dtype or device, and for empty ones.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        scale: float | Tensor = 1.0,
        row_bias: Tensor | None = None,
        col_bias: Tensor | None = None,
        positives: Tensor | None = None,
        group: Any = None,
    ):
        x, y = autocast(*validation.operands(x, y, ("x", "y"), may_be_empty=group is not None))
        self._adopt(Problem(x, y, [validation.scalar(scale, "scale", x)]), row_bias, col_bias, positives, group)

    @classmethod
    def of_mlp(
        cls, x: Tensor, y: Tensor, parameters: Sequence[Tensor], positives: Tensor | None = None, group: Any = None
    ) -> "PairwiseScores":
        """Scores of a ReLU network on concatenated operands, from its first layer's two halves.

        x (N, H) and y (M, H) are what that layer makes of the two, whose sum is its pre-activation; `parameters` are
        the weights and biases of the later layers as torch.nn.Linear holds them, the last of one output. `positives`
        and `group` as above. MLPCritic makes all of it (problem/forms.py, ConcatenatedMLP, says more).
        """
        scores = cls.__new__(cls)
        x, y = validation.operands(x, y, ("x", "y"), may_be_empty=group is not None)
        scores._adopt(Problem(x, y, list(parameters), form="concatenated_mlp"), None, None, positives, group)
        return scores

    def _adopt(
        self,
        problem: Problem,
        row_bias: Tensor | None,
        col_bias: Tensor | None,
        positives: Tensor | None,
        group: Any,
    ) -> None:
        (n, m), x = problem.shape, problem.x
        mirrored = problem.y is x and col_bias is row_bias and problem.form == "inner_product"
        problem = problem.replace(
            row_bias=None if row_bias is None else validation.vector(row_bias, "row_bias", n, x),
            col_bias=None if col_bias is None else validation.vector(col_bias, "col_bias", m, x),
            positives=positives,
            mirrored=mirrored,
        )
        self._shards = shards = shards_of(group, problem)
        if positives is not None:
            m = m if shards is None else shards.all_columns
            problem = problem.replace(positives=validation.indices(positives, "positives", n, m, x))
        if shards is not None:
            self._shards = shards.with_diagonal(positives is None)
            problem = sharded.spread(problem, shards)
        self._problem = problem

    @classmethod
    def _of(cls, problem: Problem) -> "PairwiseScores":
        """Of a validated problem, one rank's own; it may have no rows."""
        scores = cls.__new__(cls)
        scores._problem, scores._shards = problem, None
        return scores

    def _with(self, **changes) -> "PairwiseScores":
        scores = type(self).__new__(type(self))
        scores._problem, scores._shards = self._problem.replace(**changes), self._shards
        return scores

    def __repr__(self) -> str:
        p = self._problem
        return f"PairwiseScores(shape={self.shape}, form={p.form!r}, dtype={p.x.dtype}, device={p.x.device})"

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M), how many anchors and candidates: with a group this rank's anchors and every rank's candidates."""
        n, m = self._problem.shape
        return n, m if self._shards is None else self._shards.all_columns

    @property
    def _own_shape(self) -> tuple[int, int]:
        """(n, m), how many anchors and candidates are this rank's own."""
        shards = self._shards
        return self._problem.shape if shards is None else (len(self._problem.x), shards.columns[shards.batch.rank])

    @property
    def dtype(self) -> torch.dtype:
        """Of the statistics: float64 for float64 operands, float32 for all others."""
        return self._problem.compute_dtype

    @property
    def positives(self) -> Tensor:
        """(N,) int64, the column of each row's joint pair. Raises ValueError where a row has none."""
        self._need_positives()
        p = self._problem
        return torch.arange(len(p.x), device=p.x.device) if p.positives is None else p.positives

    @property
    def joint(self) -> Tensor:
        """(N,) scores of the joint pairs, in nats, clamped as all are. Raises ValueError where a row has none."""
        self._need_positives()
        with without_autocast(self._problem.x.device):
            return sharded.joint_scores(self._problem, self._shards)

    @property
    def marginal(self) -> "PairwiseScores":
        """The same scores (N, M) without the joint pairs. Raises ValueError where a row has none."""
        self._need_positives()
        return self._with(joint="left_out")

    def _with_joint_negated(self) -> "PairwiseScores":
        """Scores of which `sum`, and no other statistic, takes the joint pairs' with the sign changed."""
        self._need_positives()
        return self._with(joint="negated")

    def _need_positives(self) -> None:
        n, m = self.shape
        if self._problem.positives is None and (m < n or self._shards is not None):
            raise ValueError(
                "positives must be given where there are fewer columns than rows"
                + (f", got none for scores of shape ({n}, {m})" if self._shards is None else " on any rank, got none")
            )

    def exclude(self, row_ids: Tensor, col_ids: Tensor, keep_joint: bool = False) -> "PairwiseScores":
        """Leaves pair (i, j) out of every statistic where row_ids[i] == col_ids[j], joint pairs included.

        row_ids (N,) and col_ids (M,) are integers, of which only equality counts. With keep_joint=True joint pairs stay
        in whatever the ids say, as the removal of false negatives wants; this then holds for all ids of the scores,
        those of `within` too. Exclusions add up, six at most.

        Raises TypeError for ids that are no integers. Raises ValueError for a seventh exclusion, for ids of another
        length, and where one call of `exclude` or `within` keeps joint pairs and another does not.
        """
        return self._with_ids(row_ids, col_ids, keep_joint, grouped=False)

    def within(self, row_ids: Tensor, col_ids: Tensor, keep_joint: bool = False) -> "PairwiseScores":
        """Leaves pair (i, j) out of every statistic where row_ids[i] != col_ids[j]: only pairs of one group stay.

        row_ids (N,) and col_ids (M,) are integers, of which only equality counts. With keep_joint=True joint pairs stay
        in whatever the ids say, those of `exclude` too; without it those whose ids differ are left out as all others
        are. Calls add up, with each other and with exclusions: a pair is in where the ids of all calls of `within` are
        equal, and those of no `exclude`.

        Rows and columns sorted by their ids cost least: blocks of pairs none of which is in are not looked at.

        Raises TypeError for ids that are no integers. Raises ValueError for ids of another length, and where one call
        of `exclude` or `within` keeps joint pairs and another does not.
        """
        return self._with_ids(row_ids, col_ids, keep_joint, grouped=True)

    def _with_ids(self, row_ids: Tensor, col_ids: Tensor, keep_joint: bool, grouped: bool) -> "PairwiseScores":
        p, (n, m) = self._problem, self._own_shape
        mirrored = p.mirrored and col_ids is row_ids
        row_ids = validation.integers(row_ids, "row_ids", n, p.x)[None]
        col_ids = validation.integers(col_ids, "col_ids", m, p.x)
        col_ids = (col_ids if self._shards is None else sharded.all_columns(col_ids, self._shards))[None]
        joint = self._joint_where(keep_joint)
        return self._with(**with_more_ids(p, row_ids, col_ids, grouped), joint=joint, mirrored=mirrored)

    def exclude_above(
        self, guide_x: Tensor, guide_y: Tensor, limit: Tensor, keep_joint: bool = False
    ) -> "PairwiseScores":
        """Leaves pair (i, j) out of every statistic where <guide_x_i, guide_y_j> > limit_i: false negatives by a guide.

        guide_x (N, g) and guide_y (M, g), of one dtype, are a guide's features, or detached ones of the scores' own; no
        gradient goes through them, nor through limit (N,). `keep_joint` is that of `exclude`. All backends but `cuda`
        have it, and make the guide's product along with that of the scores. With a group guide_x, guide_y and limit are
        of this rank's own anchors and candidates, and guide_y goes the way of the candidates' features.

        Raises TypeError or ValueError for guides that do not fit, with a group on every rank, and for a second one.
        """
        p, shards = self._problem, self._shards
        if p.guided:
            raise ValueError("exclude_above can be applied once, got a second guide")
        guide = validation.guide(guide_x, guide_y, limit, self._own_shape, p.x, may_be_empty=shards is not None)
        joint = self._joint_where(keep_joint)
        return self._with(**sharded.guide(*guide, shards), joint=joint, mirrored=False)

    def _joint_where(self, keep_joint: bool) -> str:
        """How joint pairs enter once pairs are left out with keep_joint, which all calls must agree on."""
        p, keep_joint = self._problem, validation.flag(keep_joint, "keep_joint")
        if (p.row_ids is not None or p.guided) and p.joint != "left_out" and keep_joint != (p.joint == "kept"):
            raise ValueError(
                f"keep_joint must be the same in every exclude and within of the same scores, got {keep_joint}"
            )
        if keep_joint and p.joint == "counted":
            self._need_positives()
            return "kept"
        return p.joint

    def clamp(self, lo: float, hi: float) -> "PairwiseScores":
        """The same scores (N, M) limited to [lo, hi], numbers in nats; the gradient is zero outside."""
        lo, hi = validation.limits(lo, hi, self.dtype)
        p = self._problem
        # clamp(clamp(s, a, b), c, d), as one clamp.
        return self._with(lo=min(max(p.lo, lo), hi), hi=min(max(p.hi, lo), hi))

    def _shifted(self, row_bias: Tensor) -> "PairwiseScores":
        """The same scores plus a row bias (N,), which a clamp would have to come before."""
        p = self._problem
        if p.clamped:
            raise ValueError(f"scores must not be clamped here, got scores clamped to [{p.lo}, {p.hi}]")
        row_bias = validation.vector(row_bias, "row_bias", self.shape[0], p.x)
        return self._with(row_bias=row_bias if p.row_bias is None else p.row_bias + row_bias, mirrored=False)

    def _statistic(self, fn: str, dims: str, backend: str | None) -> tuple[Tensor, Tensor]:
        return sharded.statistic(self._problem.replace(fn=fn, dims=dims), backend, self._shards)[:2]

    def logsumexp(self, dim: Dim, backend: str | None = None) -> Tensor:
        """log sum exp over columns (dim 1, to (N,)), rows (dim 0, to (M,)) or all pairs (dim (0, 1), to ()), in nats.

        An entry that sums no pair is -inf, with zero gradient.
        """
        dims = validation.dimension(dim)
        if dims == "columns":
            return self._statistic("logsumexp", "columns", backend)[1]
        rows = self._statistic("logsumexp", "rows", backend)[0]
        return sharded.logsumexp(rows, self._shards) if dims == "total" else rows

    def logsumexps(self, backend: str | None = None) -> tuple[Tensor, Tensor]:
        """logsumexp(1) (N,) and logsumexp(0) (M,), in nats, from one pass over the scores."""
        return self._statistic("logsumexp", "both", backend)

    def logmeanexp(self, dim: Dim, backend: str | None = None) -> Tensor:
        """logsumexp(dim) - log count(dim), in nats, of its shape; -inf where there is no pair."""
        count = self._known_count(dim)
        total = self.logsumexp(dim, backend)
        if count is None:
            return total - self.count(dim).clamp(min=1).to(self.dtype).log()
        return total - math.log(max(count, 1))

    def cross_entropy(self, dim: int, backend: str | None = None) -> Tensor:
        """(N,) logsumexp(dim) - joint, in nats: -log of the joint pair's share of its row (dim 1) or column (dim 0).

        Made of the other pairs alone (operator/cross_entropy.py), so that it keeps its digits where the joint pair
        holds nearly all, but where ids may have left joint pairs out, and over columns with `positives`.
        """
        dims = validation.dimension(dim)
        if dims == "total":
            raise ValueError(f"dim must be 0 or 1, got {validation.shown(dim)}")
        return self._cross_entropies(dims, backend).squeeze(0)

    def cross_entropies(self, backend: str | None = None) -> tuple[Tensor, Tensor]:
        """cross_entropy(1) and cross_entropy(0), (N,) each, in nats, from one pass over the scores."""
        rows, columns = self._cross_entropies("both", backend)
        return rows, columns

    def _cross_entropies(self, dims: str, backend: str | None = None) -> Tensor:
        """(1 or 2, N): cross_entropy(1), cross_entropy(0) or both, as one tensor."""
        self._need_positives()
        return cross_entropies(self._problem, dims, backend, self._shards)

    def _reduced_entropies(self, dims: str, reduction: str) -> Tensor:
        """Cross entropies by "rows", or the mean of those by row and by column ("both"), as a loss's `reduction`."""
        if reduction == "none":
            return self._cross_entropies(dims).mean(0)
        self._need_positives()
        divisor = (2 if dims == "both" else 1) * (self.anchors if reduction == "mean" else 1)
        return self.over_ranks(cross_entropy_sum(self._problem, dims, divisor, shards=self._shards))

    def sum(self, dim: Dim, fn: str = "softplus", backend: str | None = None) -> Tensor:
        """Sum of a pointwise function of the scores, to (N,), (M,) or (): softplus, square, log1mexp or identity.

        `fn` names it. log1mexp is log(1 - e^s), of scores below 0. Over all pairs (dim (0, 1)) its gradients, where any
        are wanted, are made along with the value.
        """
        validation.choice(fn, "fn", list(POINTWISE))
        dims = validation.dimension(dim)
        if dims == "total":
            return self._total(fn, 1, backend)
        return self._statistic(fn, dims, backend)[1 if dims == "columns" else 0]

    def _total(self, fn: str, divisor: float, backend: str | None = None) -> Tensor:
        """() sum((0, 1), fn) by a divisor."""
        return sharded.total(self._problem.replace(fn=fn, dims="rows"), backend, self._shards, divisor)

    def count(self, dim: Dim) -> Tensor:
        """int64, how many pairs each entry of a statistic over `dim` sums, in O(N + M) memory."""
        return sharded.pair_counts(self._problem, validation.dimension(dim), self._shards)

    def _known_count(self, dim: Dim) -> int | None:
        """count(dim) where it is one number that needs no look at any tensor, else None."""
        dims = validation.dimension(dim)
        p, (n, m), shards = self._problem, self.shape, self._shards
        n = n if shards is None else shards.all_rows
        if p.row_ids is not None or p.guided or (dims == "columns" and p.joint == "left_out"):
            return None
        by_row = m - 1 if self._problem.joint == "left_out" else m
        return {"rows": by_row, "columns": n, "total": n * by_row}[dims]

    @property
    def anchors(self) -> int:
        """N, the number of anchors; with a group of those of all ranks."""
        return self.shape[0] if self._shards is None else self._shards.all_rows

    def mean(self, values: Tensor) -> Tensor:
        """() the mean of values (N,), one for each anchor; with a group over the anchors of all ranks."""
        return sharded.mean(values, self._shards)

    def over_ranks(self, value: Tensor) -> Tensor:
        """The sum over ranks of a value, () or (C,), that each has for its own anchors; as it is without a group."""
        return sharded.add(value, self._shards)

    def dense(self) -> Tensor:
        """(N, M) scores, materialised and differentiable, -inf where excluded: for looking, and for tests."""
        return sharded.dense(self._problem, self._shards)
