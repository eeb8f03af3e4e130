"""The symbolic description of one pairwise statistic: what every backend is handed."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the statistics of operands of a dtype, and of the scalars that go with them."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def total_gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the gradients of a sum over all pairs that wait for their factor: float16 might overflow meanwhile."""
    return torch.float32 if dtype == torch.float16 else dtype


@dataclasses.dataclass(eq=False)
class Problem:
    """Scores of all N x M pairs, never materialised, and the statistic wanted of them.

        s_ij = clamp(form(x_i, y_j; parameters) + row_bias_i + col_bias_j, lo, hi)

    The fields stand in the order of the operator's schema (operator/statistic.py).
    """

    x: Tensor
    """(N, d) left operands."""
    y: Tensor
    """(M, d) right operands."""
    parameters: list[Tensor]
    """Of the form: the scale of an inner product, or the weights of a pairwise network."""
    row_bias: Tensor | None = None
    """(N,)"""
    col_bias: Tensor | None = None
    """(M,)"""
    positives: Tensor | None = None
    """(N,) int64, the column of each row's joint pair; None stands for the diagonal."""
    row_ids: Tensor | None = None
    """(K, N) int64: pair (i, j) is left out where row_ids[k, i] == col_ids[k, j] for any k, but for k = 0 of a problem
    that is `grouped`, for which it is left out where they differ."""
    col_ids: Tensor | None = None
    """(K, M) int64"""
    guide_x: Tensor | None = None
    """(N, g): pair (i, j) is left out where <guide_x_i, guide_y_j> > guide_limit_i. No gradient goes through it."""
    guide_y: Tensor | None = None
    """(M, g)"""
    guide_limit: Tensor | None = None
    """(N,)"""
    form: str = "inner_product"
    """A key of forms.FORMS."""
    fn: str = "logsumexp"
    """"logsumexp", or a key of pointwise.POINTWISE whose values are summed."""
    dims: str = "rows"
    """"rows" reduces over columns and gives (N,); "columns" gives (M,); "both" gives the two from one pass."""
    lo: float = -math.inf
    hi: float = math.inf
    joint: str = "counted"
    """How the joint pairs enter: "counted" as any pair, "left_out" always, "kept" whatever the ids say; or "negated" in
    sums of a pointwise function, which takes their scores, clamped, with the sign changed."""
    grouped: bool = False
    """Whether the first of the ids are of groups, outside which no pair is in."""
    wants_joint: bool = False
    """Whether the joint scores of an inner product are wanted beside the statistic; no backend's business."""
    wants_entropy: bool = False
    """Whether the entropy of each row's softmax is wanted beside log-sum-exps by "rows" or "both"; no gradient goes
    through it."""
    mirrored: bool = False
    """Whether y, col_bias and col_ids are x, row_bias and row_ids themselves: a gradient by x is then that of both
    places, and one by y is None; biases likewise."""

    def arguments(self) -> tuple:
        """The fields in the order of the operator's schema."""
        return tuple(getattr(self, name) for name in _FIELDS)

    def replace(self, **changes: Any) -> "Problem":
        if torch.compiler.is_compiling():
            return dataclasses.replace(self, **changes)  # which torch.compile knows
        copy = object.__new__(Problem)
        copy.__dict__.update(self.__dict__, **changes)  # 0.8 us where that takes 2.2, several times a step
        return copy

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.y.shape[0]

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of products and statistics: float64 for float64 operands, float32 for all others."""
        return compute_dtype(self.x.dtype)

    @property
    def wants_rows(self) -> bool:
        return self.dims in ("rows", "both")

    @property
    def wants_columns(self) -> bool:
        return self.dims in ("columns", "both")

    def left_out_by_ids(self, equal: Tensor) -> Tensor:
        """Of pairs whose K ids agree as `equal` (K, ...), bool, says: True where they leave a pair out, (...)."""
        return equal[1:].any(0) | ~equal[0] if self.grouped else equal.any(0)

    @property
    def guided(self) -> bool:
        """Whether a guide's scores leave pairs out."""
        return self.guide_x is not None

    def left_out_by_guide(self, rows: slice = slice(None), cols: slice = slice(None)) -> Tensor:
        """(N, M) bool of a guided problem, or of some rows and columns of it."""
        assert self.guide_x is not None
        assert self.guide_y is not None
        assert self.guide_limit is not None
        return self.guide_x[rows] @ self.guide_y[cols].T > self.guide_limit[rows, None]

    @property
    def clamped(self) -> bool:
        return self.lo > -math.inf or self.hi < math.inf

    @property
    def symmetric(self) -> bool:
        """Whether pairs (i, j) and (j, i) are alike in all, so that a backend may look at one of the two.

        Looks at the values of `positives`.
        """
        if not self.mirrored or self.wants_entropy:
            return False  # half the pairs of a row are not all that its entropy is made of
        if self.joint == "counted" or self.positives is None:
            return True
        return torch.equal(self.positives[self.positives], torch.arange(len(self.positives), device=self.x.device))

    def with_needs(self, needs: list[bool]) -> "Problem":
        """For gradients of some of `differentiable`: mirrored only where both places of a tensor want one."""
        alike = needs[0] == needs[1] and needs[2] == needs[3]
        return self if alike or not self.mirrored else self.replace(mirrored=False)

    def gradients_made(self, needs: list[bool]) -> list[bool]:
        """Which gradients come back where `needs` are asked for: of a mirrored problem one for both places."""
        if not self.with_needs(needs).mirrored:
            return needs
        return [needs[0], False, needs[2], False, *needs[4:]]

    @property
    def differentiable(self) -> list[Tensor | None]:
        """The tensors that a gradient is computed for, in the order in which backends return the gradients."""
        return [self.x, self.y, self.row_bias, self.col_bias, *self.parameters]

    def with_differentiable(self, tensors: Iterable[Any]) -> "Problem":
        """The problem with others in their places, in the order of `differentiable`."""
        x, y, row_bias, col_bias, *parameters = tensors
        return self.replace(x=x, y=y, row_bias=row_bias, col_bias=col_bias, parameters=parameters)

    @property
    def constants(self) -> list[Tensor | None]:
        """The tensors that no gradient goes through."""
        return [getattr(self, name) for name in _CONSTANTS]

    def without_tensors(self) -> "Problem":
        """For a context, in which tensors would outlive a checkpoint or what hooks do with those that are saved."""
        return self.with_tensors([None] * (len(_CONSTANTS) + 4))

    def with_tensors(self, tensors: Sequence[Any]) -> "Problem":
        """The problem with others in the places of `constants` and then of `differentiable`."""
        count = len(_CONSTANTS)
        constants = dict(zip(_CONSTANTS, tensors[:count], strict=True))
        return self.with_differentiable(tensors[count:]).replace(**constants)


_CONSTANTS = ("positives", "row_ids", "col_ids", "guide_x", "guide_y", "guide_limit")
_FIELDS = tuple(field.name for field in dataclasses.fields(Problem))
