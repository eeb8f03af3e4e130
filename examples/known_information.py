"""Estimates of mutual information beside the truth: correlated Gaussians, and the same through a nonlinear map.

python examples/known_information.py
"""

import argparse
import math

import numpy as np

import simmim_kernels as sk


def gaussians(rows: int, nats: float, dimensions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """x and y of `dimensions` columns each, with I(X; Y) = nats."""
    rho = math.sqrt(1 - math.exp(-2 * nats / dimensions))
    x, noise = np.random.default_rng(0).standard_normal((2, rows, dimensions))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--max-steps", type=int, default=500)
    options = parser.parse_args()

    for nats in (0.0, 0.5, 2.0):
        x, y = gaussians(options.rows, nats)
        for name, samples in (("linear", y), ("cubed", y**3)):  # an invertible map changes no information
            result = sk.estimate(x, samples, folds=2, max_steps=options.max_steps)
            bound = result.bounds["infonce"]
            print(
                f"{name}: truth {nats:.2f} nats, InfoNCE {bound.value:.2f} ({bound.low:.2f} to {bound.high:.2f}), "
                f"at most {result.ceiling:.2f}"
            )
            for warning in result.warnings:
                print(f"  warning: {warning}")


if __name__ == "__main__":
    main()
