"""Float64 truth of a few rows of a problem whose matrix of scores is too large to hold, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# Entries of one float64 slab of scores: 512 MB.
SLAB = 2**26


@dataclass
class SpotTruth:
    """A loss of the scores s_ij = scale <x_i, y_j> + bias, its statistics, and single rows of its gradient in x.

        L = row_weight sum_i r_i + column_weight sum_j c_j - joint_weight sum_i s_i,partner(i)

    r_i is the log-sum-exp, or the sum of softplus, over row i, and c_j over column j. Operands of any dtype are
    taken as exact, and raised to float64 a slab at a time.
    """

    x: Tensor
    y: Tensor
    scale: float
    fn: str = "logsumexp"
    bias: float = 0.0
    row_weight: float = 0.0
    column_weight: float = 0.0
    joint_weight: float = 0.0
    partner: Tensor | None = None
    """(N,) column of each row's joint pair; None stands for the diagonal."""
    normalise: bool = False
    without_diagonal: bool = False
    _statistics: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def transposed(self) -> "SpotTruth":
        """The same loss with x and y exchanged: its gradient rows are those of y. The joint pairs stay diagonal."""
        return replace(
            self,
            x=self.y,
            y=self.x,
            row_weight=self.column_weight,
            column_weight=self.row_weight,
            _statistics=self.statistics()[::-1],
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """(N,) values r and (M,) values c, computed once."""
        if self._statistics is None:
            self._statistics = self._row_and_column_values()
        return self._statistics

    def _row_and_column_values(self) -> tuple[Tensor, Tensor]:
        softmax = self.fn == "logsumexp"
        y, everyone = self._operand(self.y), torch.arange(len(self.y), device=self.y.device)
        rows = []
        columns = torch.full((len(y),), -torch.inf if softmax else 0.0, dtype=torch.float64, device=y.device)
        for part in self._parts(len(self.x), beside=len(y)):
            s = self._scores(self._operand(self.x, part), y, part, everyone)
            if softmax:
                rows.append(s.logsumexp(1))
                columns = torch.logaddexp(columns, s.logsumexp(0))
            else:
                values = torch.logaddexp(s, torch.zeros_like(s))
                rows.append(values.sum(1))
                columns += values.sum(0)
        return torch.cat(rows), columns

    def loss(self) -> Tensor:
        rows, columns = self.statistics()
        total = self.row_weight * rows.sum() + self.column_weight * columns.sum()
        if self.joint_weight:
            for part in self._parts(len(self.x), beside=1):
                pairs = (self._operand(self.x, part) * self._operand(self.y, self._partners(part))).sum(1)
                total = total - self.joint_weight * (self.scale * pairs + self.bias).sum()
        return total

    def gradient_rows(self, index: Tensor) -> Tensor:
        """dL/dx in the rows `index`: the weights of their pairs times y, slab by slab, and the joint pairs."""
        rows, columns = self.statistics()
        raw = self.x[index].detach().double().requires_grad_()
        x = F.normalize(raw, dim=1) if self.normalise else raw
        total = torch.zeros_like(raw)
        for part in self._parts(len(self.y), beside=len(index)):
            y = self._operand(self.y, part)
            s = self._scores(x.detach(), y, index, part)
            total = total + self._weights(s, rows[index, None], columns[part]) @ y
        if self.joint_weight:
            total = total - self.joint_weight * self._operand(self.y, self._partners(index))
        return torch.autograd.grad(x, raw, self.scale * total)[0]

    def _weights(self, s: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if self.fn == "logsumexp":
            return self.row_weight * (s - rows).exp() + self.column_weight * (s - columns).exp()
        return (self.row_weight + self.column_weight) * s.sigmoid()

    def _scores(self, x: Tensor, y: Tensor, row_index: Tensor, column_index: Tensor) -> Tensor:
        s = (x @ y.T).mul_(self.scale).add_(self.bias)
        if self.without_diagonal:
            s.masked_fill_(row_index[:, None] == column_index, -torch.inf)
        return s

    def _operand(self, features: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        rows = features.detach()[index].double()
        return F.normalize(rows, dim=1) if self.normalise else rows

    def _partners(self, index: Tensor) -> Tensor:
        return index if self.partner is None else self.partner[index]

    def _parts(self, size: int, beside: int) -> Iterator[Tensor]:
        """Indices up to `size`, in parts whose rows of features and of `beside` scores each fit in a slab."""
        step = max(1, SLAB // max(beside, self.x.shape[1]))
        yield from torch.arange(size, device=self.x.device).split(step)


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest error, relative to the largest entry of the truth. Raises ValueError where anything is not finite."""
    got, want = got.detach(), want.detach()
    if got.shape != want.shape:
        raise ValueError(f"shape must be {tuple(want.shape)}, got {tuple(got.shape)}")
    if not bool(torch.isfinite(got).all()):
        raise ValueError("a result is not finite")
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-300))
