"""Further distributions of pairs with known information: channels by quadrature, subspaces, codes, and nothing."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .tasks import Task, correlation

# p(y | x) at the points of a grid: x (n, 1) and y (1, m) -> (n, m).
Density = Callable[[Tensor, Tensor], Tensor]


def normal(y: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    z = (y - mean) / deviation
    return torch.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * deviation)


def channel_information(weights: Tensor, conditional: Tensor, step: float = 1.0) -> float:
    """sum_x w_x integral p(y | x) log p(y | x) / p(y) for weights (n,) and p(y | x) (n, m) on a grid of y."""
    joint = weights[:, None] * conditional
    ratio = conditional / (weights @ conditional)
    return (step * torch.special.xlogy(joint, ratio.where(joint > 0, torch.ones(())).double())).sum().item()


def by_quadrature(x: tuple[float, float], y: tuple[float, float], p_x: Callable[[Tensor], Tensor], p: Density) -> float:
    """I of a channel with scalar input and output, by midpoints of 2000 x 2000 cells."""
    grid_x, grid_y = (torch.linspace(a, b, 4001, dtype=torch.float64)[1::2] for a, b in (x, y))
    weights = p_x(grid_x)
    return channel_information(weights / weights.sum(), p(grid_x[:, None], grid_y[None]), float(grid_y[1] - grid_y[0]))


def _scalar(name: str, information: float, draw: Callable[[int, Generator], tuple[Tensor, Tensor]]) -> Task:
    return Task(name, information, lambda n, g: tuple(t[:, None] for t in draw(n, g)))  # type: ignore[arg-type,return-value]


def noisy_function(name: str, f: Callable[[Tensor], Tensor], noise: float, span: float, uniform: bool = False) -> Task:
    """y = f(x) + noise N(0, 1), x standard normal, or uniform on [-1, 1]; |f| must stay within `span`."""
    edge = 1.0 if uniform else 7.0
    edges = (-span - 7 * noise, span + 7 * noise)
    p_x = torch.ones_like if uniform else (lambda t: normal(t, 0.0, 1.0))
    information = by_quadrature((-edge, edge), edges, p_x, lambda x, y: normal(y, f(x), noise))

    def draw(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x = 2 * torch.rand(n, generator=g) - 1 if uniform else torch.randn(n, generator=g)
        return x, f(x) + noise * torch.randn(n, generator=g)

    return _scalar(name, information, draw)


def crossed_gaussians(rho: float, share: float = 0.5) -> Task:
    """A mixture of two bivariate normals of correlation rho and -rho, the first having `share` of the pairs."""

    def conditional(x: Tensor, y: Tensor) -> Tensor:
        rest = math.sqrt(1 - rho**2)
        return share * normal(y, rho * x, rest) + (1 - share) * normal(y, -rho * x, rest)

    information = by_quadrature((-7, 7), (-7, 7), lambda t: normal(t, 0.0, 1.0), conditional)

    def draw(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x, noise = torch.randn(2, n, generator=g)
        sign = torch.where(torch.rand(n, generator=g) < share, 1.0, -1.0)
        return x, sign * rho * x + math.sqrt(1 - rho**2) * noise

    return _scalar(f"crossed gaussians, {rho:g}", information, draw)


def scaled_noise(rate: float) -> Task:
    """y = e^(rate x) N(0, 1), x standard normal: x moves the scale of y and nothing else."""

    def conditional(x: Tensor, y: Tensor) -> Tensor:
        return normal(y, 0.0, (rate * x).exp()) * 1.0

    # On the grid of log |y|, whose sign says nothing.
    def of_log(x: Tensor, t: Tensor) -> Tensor:
        return 2 * t.exp() * conditional(x, t.exp())

    information = by_quadrature((-7, 7), (-12 - 7 * rate, 3 + 7 * rate), lambda t: normal(t, 0.0, 1.0), of_log)

    def draw(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x, noise = torch.randn(2, n, generator=g)
        return x, (rate * x).exp() * noise

    return _scalar(f"scaled noise, {rate:g}", information, draw)


def counts(mean: float) -> Task:
    """y ~ Poisson(x), x exponential of mean `mean`: y is geometric."""
    top = int(40 * mean) + 40
    ks = torch.arange(top, dtype=torch.float64)
    grid = torch.linspace(0, 40 * mean, 8001, dtype=torch.float64)[1::2]
    weights = torch.exp(-grid / mean)
    conditional = torch.exp(ks[None] * grid.log()[:, None] - grid[:, None] - torch.lgamma(ks + 1)[None])
    information = channel_information(weights / weights.sum(), conditional)

    def draw(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x = -mean * torch.log1p(-torch.rand(n, generator=g))
        return x, torch.poisson(x, generator=g)

    return _scalar(f"poisson counts, {mean:g}", information, draw)


def labelled_clusters(count: int, spread: float) -> Task:
    """x: one of `count` labels in a random order; y: `spread` N(0, 1) around one of as many whole numbers."""
    order = torch.randperm(count, generator=Generator().manual_seed(count))
    grid = torch.linspace(-8 * spread, count - 1 + 8 * spread, 40001, dtype=torch.float64)
    conditional = normal(grid[None], torch.arange(count, dtype=torch.float64)[:, None], spread)
    information = channel_information(
        torch.full((count,), 1 / count, dtype=torch.float64), conditional, float(grid[1] - grid[0])
    )

    def draw(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        label = torch.randint(count, (n,), generator=g)
        return order[label].float(), label + spread * torch.randn(n, generator=g)

    return _scalar(f"{count} labels, clusters", information, draw)


def subspace(information: float, directions: int, d: int, rotated: bool = True, dy: int | None = None) -> Task:
    """Gaussians that share `information` nats in a few directions of d (x) and dy (y): random ones, or the first."""
    rho, dy = correlation(information, directions), dy or d
    g = Generator().manual_seed(d)
    turns = [torch.linalg.qr(torch.randn(k, k, generator=g))[0] if rotated else torch.eye(k) for k in (d, dy)]

    def sample(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x, y = torch.randn(n, d, generator=g), torch.randn(n, dy, generator=g)
        y[:, :directions] = rho * x[:, :directions] + math.sqrt(1 - rho**2) * y[:, :directions]
        return x @ turns[0], y @ turns[1]

    return Task(f"{directions} directions of {d}", information, sample)


def exclusive_or(flip: float, noise_bits: int = 0) -> Task:
    """x: two bits and `noise_bits` more; y: the first two's exclusive or, flipped with probability `flip`."""
    information = math.log(2) + flip * math.log(flip) + (1 - flip) * math.log1p(-flip)

    def sample(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x = torch.randint(2, (n, 2 + noise_bits), generator=g)
        flipped = torch.rand(n, generator=g) < flip
        return x.float(), (x[:, 0] ^ x[:, 1] ^ flipped)[:, None].float()

    return Task("exclusive or", information, sample)


def seen_through(
    task: Task, name: str, of_x: Callable[[Tensor], Tensor], of_y: Callable[[Tensor], Tensor] = lambda t: t
) -> Task:
    """A task whose x and y are replaced by injective functions of them, which change no information."""

    def sample(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x, y = task.sample(n, g)
        return of_x(x), of_y(y)

    return Task(name, task.information, sample)


def swiss_roll(x: Tensor) -> Tensor:
    """(n, 1) in [0, 1] onto a spiral in the plane, which is 1.5 turns long (Czyz et al. 2023, arXiv:2306.11078)."""
    angle = 1.5 * math.pi * (1 + 2 * x)
    return torch.cat([angle * angle.cos(), angle * angle.sin()], 1) / 21


def walks(t: Tensor) -> Tensor:
    """Random walks of the steps in each column."""
    return t.cumsum(0)


def smoothed(t: Tensor, kept: float = 0.98) -> Tensor:
    """First-order autoregressions of the innovations in each column."""
    out, last = torch.empty_like(t), torch.zeros_like(t[0])
    for k, row in enumerate(t):
        last = kept * last + row
        out[k] = last
    return out


def numbered(t: Tensor) -> Tensor:
    """With a column that counts the rows from 0."""
    return torch.cat([t, torch.arange(len(t), dtype=t.dtype)[:, None]], 1)


def times(t: Tensor) -> Tensor:
    """With a column of the seconds at which the rows were taken, a tenth of a second to and fro."""
    return torch.cat([t, 60.0 * torch.arange(len(t), dtype=t.dtype)[:, None] + 0.1 * t[:, :1]], 1)


def independent(
    name: str, make: Callable[[int, Generator], Tensor], see: Callable[[Tensor], Tensor] = lambda t: t
) -> Task:
    """x and y by two draws of `make`."""
    return Task(f"independent, {name}", 0.0, lambda n, g: (see(make(n, g)), see(make(n, g))))
