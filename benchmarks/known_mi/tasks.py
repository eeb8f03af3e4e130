"""Distributions of pairs whose mutual information is known in closed form, in nats."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor

from simmim_kernels import PairwiseScores

Sampler = Callable[[int, Generator], tuple[Tensor, Tensor]]
OptimalCritic = Callable[..., PairwiseScores]


@dataclass(frozen=True)
class Task:
    """Pairs (x, y) and I(X; Y).

    sample(n, generator) draws x (n, dx) and y (n, dy), float32. optimal_critic(x, y, offset=0.0) scores every pair by
    offset plus the log density ratio log(p(x, y) / p(x) p(y)), where that is affine in an inner product of features,
    else it is None.
    """

    name: str
    information: float
    sample: Sampler = field(repr=False)
    optimal_critic: OptimalCritic | None = field(default=None, repr=False)


def correlation(information: float, d: int) -> float:
    """Of each of d independent pairs of Gaussians that share `information` nats: I = -d/2 log(1 - rho^2)."""
    return math.sqrt(-math.expm1(-2 * information / d))


def gaussian_critic(information: float, d: int) -> OptimalCritic:
    """sum_k (rho x_k y_k - rho^2 (x_k^2 + y_k^2) / 2) / (1 - rho^2) + I + offset, for `gaussian`."""
    rho = correlation(information, d)
    precision = 1 / (1 - rho**2)

    def critic(x: Tensor, y: Tensor, offset: float = 0.0) -> PairwiseScores:
        half_x, half_y = (0.5 * rho**2 * precision * t.square().sum(1) for t in (x, y))
        return PairwiseScores(x, y, scale=rho * precision, row_bias=information + offset - half_x, col_bias=-half_y)

    return critic


def gaussian(information: float, d: int = 20) -> Task:
    """x, y ~ N(0, 1) in d dimensions, correlated component by component (Poole et al. 2019, sec. 3)."""
    rho = correlation(information, d)

    def sample(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x, noise = torch.randn(2, n, d, generator=g)
        return x, rho * x + math.sqrt(1 - rho**2) * noise

    return Task("gaussian", information, sample, gaussian_critic(information, d))


def mapped(
    name: str, information: float, d: int, forward: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor]
) -> Task:
    """`gaussian` seen through a bijection of y, which changes neither the information nor the density ratio."""
    task, critic = gaussian(information, d), gaussian_critic(information, d)

    def sample(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x, y = task.sample(n, g)
        return x, forward(y)

    def optimal_critic(x: Tensor, y: Tensor, offset: float = 0.0) -> PairwiseScores:
        return critic(x, inverse(y), offset)

    return Task(name, information, sample, optimal_critic)


def cubic(information: float, d: int = 20) -> Task:
    """`gaussian` with y cubed (Song and Ermon 2020, sec. 6.1)."""
    return mapped("cubic", information, d, lambda y: y**3, lambda y: y.sign() * y.abs() ** (1 / 3))


def spiral(information: float, d: int = 10, speed: float = 0.2) -> Task:
    """`gaussian` with y -> exp(speed |y|^2 A) y, where A turns the planes (y_1, y_2), (y_3, y_4) and so on.

    The spiral diffeomorphism of Czyz et al. 2023 (arXiv:2306.11078, sec. 2): it keeps norms, so that turning back
    undoes it. d must be even.
    """

    def turned(y: Tensor, sign: int) -> Tensor:
        planes = torch.view_as_complex(y.unflatten(1, (-1, 2)))
        angle = sign * speed * y.square().sum(1, keepdim=True)
        return torch.view_as_real(torch.polar(planes.abs(), planes.angle() + angle)).flatten(1)

    return mapped("spiral", information, d, lambda y: turned(y, 1), lambda y: turned(y, -1))


def student_t(gaussian_information: float, nu: int = 5, d: int = 5) -> Task:
    """`gaussian` with (x, y) divided by one sqrt(chi^2_nu / nu): a multivariate Student-t of 2d dimensions.

    I is that of the Gaussian plus f(nu) + f(nu + 2d) - 2 f(nu + d), f(a) = log Gamma(a / 2) - a / 2 digamma(a / 2)
    (Czyz et al. 2023, arXiv:2306.11078, sec. 2). It stays above zero where no component is correlated.
    """
    normal = gaussian(gaussian_information, d)

    def f(a: float) -> float:
        half = torch.tensor(a / 2, dtype=torch.float64)
        return (half.lgamma() - half * half.digamma()).item()

    def sample(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x, y = normal.sample(n, g)
        shrink = torch.randn(n, nu, generator=g).square().mean(1, keepdim=True).rsqrt()
        return shrink * x, shrink * y

    return Task("student-t", gaussian_information + f(nu) + f(nu + 2 * d) - 2 * f(nu + d), sample)


def uniform_noise(width: float = 0.4, d: int = 5) -> Task:
    """y = x + e with x uniform on [0, 1] and e on [-width, width], in each of d dimensions.

    I is 1 / (4 width) nats a dimension for width > 1/2, else width - log(2 width) (Czyz et al. 2023,
    arXiv:2306.11078, sec. 2).
    """
    information = 1 / (4 * width) if width > 0.5 else width - math.log(2 * width)

    def sample(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x, noise = torch.rand(2, n, d, generator=g)
        return x, x + width * (2 * noise - 1)

    return Task("uniform noise", d * information, sample)


@cache
def images_of_bits() -> tuple[Tensor, Tensor]:
    """Images of zeros and of ones, 8 x 8 pixels in [0, 1] a row, from the digits that scikit-learn ships."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().flatten(1) / 16
    labels = torch.from_numpy(digits.target)
    return images[labels == 0], images[labels == 1]


def digits_channel(flip: float = 0.05, bits: int = 4) -> Task:
    """x: images of `bits` digits, each 0 or 1; y: images of the same bits after a binary symmetric channel.

    Every bit is drawn evenly and flipped with probability `flip`; every image is drawn evenly from the pool of its
    digit, anew for x and for y. I = log 2 - H_b(flip) nats a bit, for the images as for the bits: no image is in
    both pools, so that an image determines its bit, and x - bit - flipped bit - y is a Markov chain.
    """
    entropy = -flip * math.log(flip) - (1 - flip) * math.log1p(-flip)

    def sample(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        sent = torch.randint(2, (n, bits), generator=g)
        flipped = torch.rand(n, bits, generator=g) < flip
        return images(sent, g), images(sent ^ flipped, g)

    def images(bit: Tensor, g: Generator) -> Tensor:
        zeros, ones = (pool[torch.randint(len(pool), bit.shape, generator=g)] for pool in images_of_bits())
        return torch.where(bit[..., None] == 1, ones, zeros).flatten(1)

    return Task("digits channel", bits * (math.log(2) - entropy), sample)


def symbols(count: int = 10, kept: float = 0.8) -> Task:
    """x: one of `count` numbers, evenly; y: the same one with probability `kept`, else any of them, evenly.

    I = log count - H(y | x), with y = x of probability kept + (1 - kept) / count.
    """
    other = (1 - kept) / count
    same = kept + other

    def sample(n: int, g: Generator) -> tuple[Tensor, Tensor]:
        x, drawn = torch.randint(count, (2, n), generator=g)
        return x, torch.where(torch.rand(n, generator=g) < kept, x, drawn)

    return Task("symbols", math.log(count) + same * math.log(same) + (count - 1) * other * math.log(other), sample)


LEVELS = (2, 4, 6, 8, 10)
FAMILIES: dict[str, list[Task]] = {
    "gaussian": [gaussian(information) for information in LEVELS],
    "cubic": [cubic(information) for information in LEVELS],
    **{task.name: [task] for task in (student_t(2.0), uniform_noise(), spiral(3.0), digits_channel())},
}
