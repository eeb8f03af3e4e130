"""Conditional information, as a difference of two estimates."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cross_fitting import estimate
from .report import NATS_PER_BIT, MutualInformationEstimate, interval, unit_of
from .samples import Table, check_pairs, table


@dataclass(frozen=True, repr=False)
class ConditionalEstimate:
    """I(X; Y | Z) = I(X; (Y, Z)) - I(X; Z), in nats: of two lower bounds the difference, which bounds nothing."""

    value: float
    standard_error: float
    """Over the pairs, each read by the critics of both estimates, or over the folds, whichever is larger."""
    low: float
    """The lower end of the 95% interval, which covers as much as those of the two estimates."""
    high: float
    joint: MutualInformationEstimate
    """I(X; (Y, Z))."""
    given: MutualInformationEstimate
    """I(X; Z)."""

    @property
    def nats(self) -> float:
        return self.value

    @property
    def bits(self) -> float:
        return self.value / NATS_PER_BIT

    def __repr__(self) -> str:
        return self.text()

    def text(self, bits: bool = False) -> str:
        """The three numbers, in nats or in bits, and the warnings of both estimates."""
        unit, scale = unit_of(bits)
        lines = [
            f"I(X; Y | Z) in {unit}: {scale * self.value:.3f}, {scale * self.low:.3f} to {scale * self.high:.3f}",
            f"by the chain rule, I(X; (Y, Z)) - I(X; Z) = {scale * self.joint.nats:.3f} - "
            f"{scale * self.given.nats:.3f}: a difference of two lower bounds, neither a lower nor an upper bound",
        ]
        for name, found in (("I(X; (Y, Z))", self.joint), ("I(X; Z)", self.given)):
            lines += [f"Warning, {name}: {said}" for said in found.warnings]
        return "\n".join(lines)


def estimate_conditional(x: Any, y: Any, z: Any, **options: Any) -> ConditionalEstimate:
    """I(X; Y | Z) in nats from samples x (N, dx), y (N, dy) and z (N, dz), each as `estimate` takes them.

    By the chain rule, from `estimate` of x with y and z side by side and of x with z alone, both with `options` and so
    with the same folds. What the critics fall short by need not be the same in both: the difference is neither a lower
    nor an upper bound, and where Z tells most of what there is, it is a small number between two large ones.

    Raises what `estimate` raises.
    """
    x, y, z = table(x, "x"), table(y, "y"), table(z, "z")
    check_pairs(y, z, 1)
    joint, given = estimate(x, _beside(y, z), **options), estimate(x, z, **options)
    terms = joint.pointwise - given.pointwise
    terms = terms[np.isfinite(terms)]
    folds = np.subtract(joint.bounds["infonce"].per_fold, given.bounds["infonce"].per_fold)
    error = max(terms.std(ddof=1) / math.sqrt(len(terms)), folds.std(ddof=1) / math.sqrt(len(folds)))
    value = joint.nats - given.nats
    return ConditionalEstimate(value, float(error), *interval(value, float(error)), joint, given)


def _beside(y: Table, z: Table) -> Table:
    labels = tuple(f"{side.name}.{label}" for side in (y, z) for label in side.labels) if y.labels and z.labels else ()
    symbols = (*y.symbols, *(y.values.shape[1] + k for k in z.symbols))
    return Table(np.concatenate([y.values, z.values], axis=1), f"({y.name}, {z.name})", labels, symbols)
