"""What single columns of x say of single columns of y: a table of log density ratios for each pair of columns.

Their sum is the log density ratio where the columns pair off, and it holds what embeddings of few features hold badly,
such as the edges of noise that is bounded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..scores import PairwiseScores
from .rows import FoldRows

MOST_COLUMNS = 16

# A side, to find pairs by; half as many where there are fewer rows.
_CELLS, _ROWS_FOR_CELLS, _DEVIATIONS = 8, 800, 4
_MOST_ROWS = 2**17  # to find pairs in, and quantiles: more would tell no more
_LEAST_INFORMATION = 0.02  # nats of a pair, less what independent columns would give
# Points of a table, a side, and of all tables; and rounds, each of twice the points a side of the one before.
_SIDE, _POINTS_A_ROW, _MOST_POINTS, _ROUNDS = 192, 6, 160_000, 3
_HIDDEN, _RATE, _WEIGHT_DECAY = 32, 1e-2, 1e-2
_STEPS, _CHECK_EVERY, _PATIENCE, _LEAST_GAIN, _DECAY_OF_AVERAGE = 600, 10, 4, 5e-4, 0.9
_LOWEST = -7.0  # of a log density ratio
_LEFT_OUT = 0.05  # nats, of a table's root mean square by singular value


@dataclass(frozen=True)
class Pair:
    """Columns of x and of y, and the table of their log density ratio between quantiles of each."""

    column_x: int
    column_y: int
    grid_x: Tensor
    """(a,) rising."""
    grid_y: Tensor
    """(b,) rising."""
    factor_x: Tensor
    """(a, r): the table is factor_x @ factor_y.T."""
    factor_y: Tensor
    """(b, r)."""


class PairedColumns(nn.Module):
    """The sum of the pairs' tables, linear between their points: an inner product. It has nothing to train."""

    def __init__(self, pairs: list[Pair]):
        super().__init__()
        self.pairs = pairs

    def forward(self, x: Tensor, y: Tensor) -> PairwiseScores:
        left = [interpolated(x[:, pair.column_x], pair.grid_x, pair.factor_x) for pair in self.pairs]
        right = [interpolated(y[:, pair.column_y], pair.grid_y, pair.factor_y) for pair in self.pairs]
        return PairwiseScores(torch.cat(left, 1), torch.cat(right, 1))


def interpolated(column: Tensor, grid: Tensor, values: Tensor) -> Tensor:
    """(N, r) of values (a, r) at the points of a rising grid (a,), linear between them and constant beyond."""
    right, share = _place(column, grid)
    return torch.lerp(values[right - 1], values[right], share[:, None])


def _place(column: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """The point to the right of each of (N,), and how far it is on the way there from the one to the left."""
    column = column.clamp(grid[0], grid[-1])
    right = torch.searchsorted(grid, column.contiguous()).clamp(1, len(grid) - 1)
    return right, (column - grid[right - 1]) / (grid[right] - grid[right - 1])


def paired_columns(data: FoldRows, max_steps: int, seed: int) -> PairedColumns | None:
    """Of the pairs that tell more than chance would, each column in one of them; None where there are none.

    A table is what a small network of two columns makes of its points, fitted by the likelihood of y's column given
    x's, of training rows, and stopped by that of validation rows.
    """
    x, y = data.x_train[:, : data.columns_x], data.y_train[:, : data.columns_y]
    chosen = matched(x, y)
    if not any(_is_beyond_gaussians(x[:, j], y[:, k]) for j, k in chosen):
        return None
    side = min(_SIDE, int((_MOST_POINTS / len(chosen)) ** 0.5), int((_POINTS_A_ROW * len(x)) ** 0.5))
    found = []
    for number, (j, k) in enumerate(chosen):
        columns, held = [x[:, j], y[:, k]], [data.x_validation[:, j], data.y_validation[:, k]]
        network = _network(seed + number).to(x.device)
        for halvings in reversed(range(_ROUNDS)):
            points = _Points(columns, held, side // 2**halvings)
            table = _trained(network, points, min(_STEPS, max_steps), _RATE * 2.0 ** (halvings + 1 - _ROUNDS))
        (grid_x, grid_y), factors = points.grids, points.factors(table)
        found.append(Pair(j, k, grid_x, grid_y, *factors))
    return PairedColumns(found)


def matched(x: Tensor, y: Tensor) -> list[tuple[int, int]]:
    """Pairs of columns of x (N, dx) and y (N, dy), the ones of most information first, no column twice.

    By cells between quantiles, less what that reads of independent columns. None where there are more than 16 columns.
    """
    if max(x.shape[1], y.shape[1]) > MOST_COLUMNS:
        return []
    x, y = _some(x), _some(y)
    joint = _in_cells(x, y)
    expected = joint.sum(3, keepdim=True) * joint.sum(2, keepdim=True)
    information = _divergence(joint, expected) - (joint.shape[2] - 1) ** 2 / (2 * len(x))
    chosen: list[tuple[int, int]] = []
    for place in information.flatten().argsort(descending=True).tolist():
        j, k = divmod(place, y.shape[1])
        if information[j, k] < _LEAST_INFORMATION:
            break
        if all(j != a and k != b for a, b in chosen):
            chosen.append((j, k))
    return chosen


def are_independent(columns: Tensor) -> bool:
    """Whether no two of the columns (N, d) share more than chance would have them, by cells between quantiles."""
    columns = _some(columns)
    joint = _in_cells(columns, columns)
    expected = joint.sum(3, keepdim=True) * joint.sum(2, keepdim=True)
    shared = 2 * len(columns) * _divergence(joint, expected)
    return bool((shared.fill_diagonal_(0) < _limit((joint.shape[2] - 1) ** 2)).all())


def _some(rows: Tensor) -> Tensor:
    return rows[:: len(rows) // _MOST_ROWS + 1]


def _limit(degrees: int) -> float:
    """Of a chi-squared variable, four deviations above its mean."""
    return degrees + _DEVIATIONS * (2 * degrees) ** 0.5


def _in_cells(x: Tensor, y: Tensor) -> Tensor:
    """(dx, dy, c, c) the share of the rows of x (N, dx) and y (N, dy) that is in each cell between c + 1 quantiles."""
    count = _CELLS if len(x) >= _ROWS_FOR_CELLS else _CELLS // 2
    levels = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=x.device)[1:-1]
    made = []
    for side in (x.double(), y.double()):
        which = [torch.searchsorted(torch.quantile(column, levels), column.contiguous()) for column in side.T]
        made.append(nn.functional.one_hot(torch.stack(which, 1), count).flatten(1).float())
    shape = x.shape[1], count, y.shape[1], count
    return (made[0].T @ made[1] / len(x)).double().reshape(shape).transpose(1, 2)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """(...) sum of p log(p / q) over cells (..., c, c)."""
    return torch.special.xlogy(p, p / q.clamp_min(1e-12)).sum((-2, -1))


def _is_beyond_gaussians(x: Tensor, y: Tensor) -> bool:
    """Whether columns (N,) fill the cells otherwise than a Gaussian copula of their correlation, by four deviations.

    The divergence times 2 N has the chi-squared distribution of as many degrees as there are cells, nearly, where it
    is one. What linear critics know is not asked twice.
    """
    x, y = _some(x), _some(y)
    joint = _in_cells(x[:, None], y[:, None])[0, 0]
    count = len(joint)
    r = torch.corrcoef(torch.stack([x, y]).double())[0, 1].clamp(-0.9999, 0.9999)
    middles = torch.special.ndtri((torch.arange(64 * count, dtype=torch.float64, device=x.device) + 0.5) / (64 * count))
    edges = torch.special.ndtri(torch.linspace(0, 1, count + 1, dtype=torch.float64, device=x.device))
    below = torch.special.ndtr((edges - r * middles[:, None]) / (1 - r**2).sqrt())
    gaussian = below.diff(dim=1).reshape(count, 64, count).mean(1) / count
    return 2 * len(x) * _divergence(joint, gaussian).item() > _limit(count**2)


class _Points:
    """The points of a pair's table, and how much of the training and of the validation pairs is at each."""

    def __init__(self, columns: list[Tensor], held: list[Tensor], side: int):
        self.grids, places = [], []
        for column in columns:
            levels = torch.linspace(0, 1, side, device=column.device)
            grid, which = torch.unique(torch.quantile(_some(column), levels), return_inverse=True)
            self.grids.append(grid)
            # Both by value and by rank, since an edge may be straight in either.
            rank = torch.zeros_like(grid).scatter_add_(0, which, levels) / which.bincount()
            places.append(torch.stack([grid, 3.4 * rank - 1.7], 1))
        a, b = map(len, self.grids)
        self.shape = a, b
        self.inputs = torch.cat([places[0].repeat_interleave(b, 0), places[1].repeat(a, 1)], 1)
        self.train, self.held = (self._shares(rows) for rows in (columns, held))
        self.log_y = self.train.sum(0).clamp_min(1e-9).log()

    def _shares(self, columns: list[Tensor]) -> Tensor:
        """(a, b) each pair shared out among the four points around it, over the number of pairs."""
        (right_x, share_x), (right_y, share_y) = (
            _place(column, grid) for column, grid in zip(columns, self.grids, strict=True)
        )
        made = torch.zeros(self.shape, device=columns[0].device)
        for at_x, of_x in ((right_x - 1, 1 - share_x), (right_x, share_x)):
            for at_y, of_y in ((right_y - 1, 1 - share_y), (right_y, share_y)):
                made.index_put_((at_x, at_y), of_x * of_y, accumulate=True)
        return made / len(columns[0])

    def log_ratio(self, table: Tensor) -> Tensor:
        """log p(y | x) / p(y) of scores that are so up to a function of x."""
        return table - torch.logsumexp(table + self.log_y, 1, keepdim=True)

    def reads(self, table: Tensor) -> float:
        """Nats of the validation pairs."""
        return (self.held * self.log_ratio(table)).sum().item()

    def factors(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """(a, r) and (b, r) whose product is the log density ratio, up to a function of x and to what is not seen."""
        ratio = self.log_ratio(table).clamp_min(_LOWEST)
        u, s, vt = torch.linalg.svd(ratio - ratio.mean(1, keepdim=True), full_matrices=False)
        kept = s > _LEFT_OUT * len(ratio) ** 0.5
        scale = s[kept].sqrt()
        return u[:, kept] * scale, vt[kept].T * scale


def _network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        last = nn.Linear(_HIDDEN, 1)
        nn.init.zeros_(last.weight)
        return nn.Sequential(nn.Linear(4, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), last)


def _trained(network: nn.Module, points: _Points, steps: int, rate: float) -> Tensor:
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=_WEIGHT_DECAY, fused=True)
    average: Tensor | None = None
    best, bar, since = (-torch.inf, torch.zeros(points.shape)), -torch.inf, 0
    for step in range(1, steps + 1):
        table = network(points.inputs).reshape(points.shape)
        loss = -(points.train * points.log_ratio(table)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            average = (
                table.detach().clone() if average is None else average.lerp_(table.detach(), 1 - _DECAY_OF_AVERAGE)
            )
            if step % _CHECK_EVERY and step != steps:
                continue
            value = points.reads(average)
        best = max(best, (value, average.clone()), key=lambda found: found[0])
        bar, since = (value, 0) if value > bar + _LEAST_GAIN else (bar, since + 1)
        if since == _PATIENCE:
            break
    return best[1]
