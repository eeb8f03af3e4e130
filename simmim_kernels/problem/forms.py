"""Score forms: how the score of one pair comes from its two operands, before biases and clamp.

A form states its scores for all pairs of two blocks, for row-wise pairs, and the products of its
derivative with a matrix of weights. All three are plain differentiable PyTorch: the `reference` backend
applies them to the whole matrix, `tiled` to one tile at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor


class Form(Protocol):
    def scores(self, x: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Any]:
        """(N, M) scores, and whatever `gradients` wants to see again."""

    def pairs(self, x: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """(N,) scores of the row-wise pairs (x_i, y_i)."""

    def gradients(
        self, x: Tensor, y: Tensor, parameters: Sequence[Tensor], saved: Any, weights: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """d/dx, d/dy and d/dparameters of sum_ij weights_ij s_ij."""


class InnerProduct:
    """s_ij = scale <x_i, y_j>; parameters = [scale ()]."""

    def scores(self, x: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, None]:
        (scale,) = parameters
        return (x * scale) @ y.T, None

    def pairs(self, x: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        (scale,) = parameters
        return scale * (x * y).sum(-1)

    def gradients(
        self, x: Tensor, y: Tensor, parameters: Sequence[Tensor], saved: None, weights: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        (scale,) = parameters
        weighted = weights @ y
        return scale * weighted, weights.T @ (scale * x), [(x * weighted).sum()]


class ConcatenatedMLP:
    """s_ij = w . h_L + b with h_1 = relu(x_i + y_j), h_l = relu(W_l h_{l-1} + b_l).

    The first layer of a network on [x, y] is a sum of two linear maps, so that x and y are here its
    pre-activations (N, H) and (M, H), made in linear time. parameters = [W_2, b_2, ..., W_L, b_L, w, b]
    as torch.nn.Linear holds them.
    """

    def __init__(self, times_transposed: Callable[[Tensor, Tensor], Tensor] = lambda a, b: a @ b.T):
        """`times_transposed` makes the products a @ b.T; by default differentiably."""
        self._times_transposed = times_transposed

    def scores(self, x: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        first = (x[:, None] + y[None]).relu().flatten(0, 1)
        scores, activations = self._network(first, parameters)
        return scores.view(len(x), len(y)), activations

    def pairs(self, x: Tensor, y: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        return self._network((x + y).relu(), parameters)[0]

    def _network(self, hidden: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        *inner, w, b = parameters
        activations = [hidden]
        for weight, bias in zip(inner[::2], inner[1::2], strict=True):
            hidden = (self._times_transposed(hidden, weight) + bias).relu()
            activations.append(hidden)
        return hidden @ w[0] + b, activations

    def gradients(
        self, x: Tensor, y: Tensor, parameters: Sequence[Tensor], saved: list[Tensor], weights: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        *inner, w, _ = parameters
        upstream = weights.reshape(-1)
        found = [upstream.sum().reshape(1), (upstream @ saved[-1])[None]]
        hidden = upstream[:, None] * w
        for layer in range(len(saved) - 1, 0, -1):
            hidden = hidden * (saved[layer] > 0)
            found += [hidden.sum(0), self._times_transposed(hidden.T, saved[layer - 1].T)]
            hidden = self._times_transposed(hidden, inner[2 * layer - 2].T)
        first = (hidden * (saved[0] > 0)).view(len(x), len(y), -1)
        return first.sum(1), first.sum(0), found[::-1]


FORMS: dict[str, Form] = {"inner_product": InnerProduct(), "concatenated_mlp": ConcatenatedMLP()}
