"""The concatenated MLP: pairs scored by a network of one hidden layer or two, from its first layer's two halves.

    s_ij = output . relu(x_i + y_j) + output_bias                                   of one layer
    s_ij = output . relu(weight relu(x_i + y_j) + weight_bias) + output_bias        of two

The forward writes no activations. The backward of two layers writes, of one block of pairs at a time, the first
activations and the gradient of the second sums, of which the vendor's library makes the weight's gradient; a second
kernel takes that gradient to the operands. Sums over tiles are kept apart and added in a fixed order: no atomics.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...problem import Problem, total_gradient_dtype
from . import configurations
from .configurations import Tile, network_precision, network_tile
from .factors import factored
from .launch import count, launch, long_product
from .merges import Merger, block_of, blocks, tiles_of
from .network_kernels import (
    Network,
    Parts,
    gradients_of_first_sums,
    gradients_of_one_layer,
    gradients_of_second_sums,
    statistics_of_network,
)
from .sides import Critic, Side, critic_of, sides_of, width_of_guide
from .statistics import compile_time_options

# Of the weight's gradient, for a few hundred multiprocessors: a tile has a multiple of 16 pairs.
_PIECES = 32


def _whole(problem: Problem) -> Problem:
    """With hidden units that add nothing, to a multiple of 16: vector loads, and masks that take no registers."""
    missing = -problem.x.shape[1] % 16
    if not missing:
        return problem
    *hidden, output, output_bias = problem.parameters
    if hidden:
        hidden = [F.pad(hidden[0], (0, missing, 0, missing)), F.pad(hidden[1], (0, missing))]
    x, y, output = (F.pad(t, (0, missing)) for t in (problem.x, problem.y, output))
    return problem.replace(x=x, y=y, parameters=[*hidden, output, output_bias])


def _network_of(problem: Problem) -> Network:
    """float16 products are made of float32, which holds gradients however small."""
    *hidden, output, output_bias = problem.parameters
    weight, weight_bias = hidden or (None, None)
    if weight is not None and weight_bias is not None:
        dtype = torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32
        weight, weight_bias = weight.to(dtype).contiguous(), weight_bias.float().contiguous()
    return Network(output[0].float().contiguous(), output_bias.float(), weight, weight_bias)


def _critic_of(problem: Problem) -> Critic:
    """A network's scores are no product, and have no scale."""
    return critic_of(problem)._replace(scale=torch.ones((), dtype=torch.float32, device=problem.x.device))


def _constants(problem: Problem, tile: Tile) -> dict[str, Any]:
    return {
        **configurations.network_constants(tile, problem.x.shape[1]),
        **compile_time_options(problem),
        "PRECISION": network_precision(problem),
        "device": problem.x.device,
    }


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Row and column statistics, empty where they are not wanted."""
    return _made(problem, entropies=False).statistics()


def forward_with_entropies(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` of log-sum-exps by "rows" or "both", and (N,) the entropy of each row's softmax in nats."""
    return _made(problem, entropies=True).statistics_and_entropies()


def _made(problem: Problem, entropies: bool) -> Merger:
    problem = _whole(problem)
    tile = network_tile(problem, differentiates=False)
    own, other, critic, net = *sides_of(problem), _critic_of(problem), _network_of(problem)
    block = block_of(own, other, tile, configurations.NETWORK_BLOCK, configurations.NETWORK_BLOCK)
    merger = Merger(own, other, tile, block, (problem.wants_rows, problem.wants_columns), entropies)
    constants = _constants(problem, tile)
    for rows, columns in blocks(own, other, block):
        parts, tiles = merger.parts(rows, columns), tiles_of(rows, columns, tile)
        arguments = (own, other, critic, net, *parts, *tiles)
        launch(statistics_of_network, (tiles[0] * tiles[1],), *arguments, **constants)
        width = width_of_guide(own) + (0 if net.weight is None else critic.d**2)
        count((rows.stop - rows.start) * (columns.stop - columns.start) * width)
        merger.merge(parts, exponential=problem.fn == "logsumexp")
    return merger


@dataclass
class _Backward:
    """One look at all scores, block by block."""

    problem: Problem
    own: Side
    other: Side
    wants_value: bool = False
    sums: dict[str, Tensor] = field(default_factory=dict)

    def run(self, needs: list[bool]) -> tuple[Tensor | None, list[Tensor | None]]:
        """The sum of a pointwise function, and gradients of `problem.differentiable`, mostly in float32."""
        p = self.problem
        self.tile, self.net, self.critic = network_tile(p, differentiates=True), _network_of(p), _critic_of(p)
        self.constants, self.device, d = _constants(p, self.tile), p.x.device, self.critic.d
        block = block_of(self.own, self.other, self.tile, *configurations.network_block(self._bytes_of_pair()))
        wants = needs[2] and p.row_bias is not None, needs[3] and p.col_bias is not None
        biases = Merger(self.own, self.other, self.tile, block, wants)
        values = Merger(self.own, self.other, self.tile, block, (self.wants_value, False))
        dx, dy = (torch.zeros((side.size, d), device=self.device) for side in (self.own, self.other))
        for rows, columns in blocks(self.own, self.other, block):
            self._block(rows, columns, biases, values, dx, dy)
        output = self.sums.get("output")
        if self.net.weight is None:
            # Of a unit that is in no pair active the operand may be infinite.
            shares = [torch.where(sums == 0, 0.0, t.float() * sums).sum(0) for t, sums in ((p.x, dx), (p.y, dy))]
            output = shares[0] + shares[1]
            dx, dy = dx * self.net.output, dy * self.net.output
        assert output is not None
        parameters = [output[None], self.sums["output_bias"].reshape(1)]
        if self.net.weight is not None:
            parameters = [self.sums["weight"], self.sums["weight_bias"], *parameters]
        made = [dx, dy, biases.own, biases.other, *parameters]
        found = [gradient if need else None for gradient, need in zip(made, needs, strict=True)]
        return None if values.own is None else values.own.sum(), found

    def _bytes_of_pair(self) -> int:
        """Of a pair's share in `Parts`, at least 1."""
        sums = 4 * self.critic.d * (self.tile.own + self.tile.other) // (self.tile.own * self.tile.other)
        activations = 0 if self.net.weight is None else 2 * self.critic.d * self.net.weight.dtype.itemsize
        return max(1, sums + activations)

    def _add(self, name: str, part: Tensor) -> None:
        self.sums[name] = part if name not in self.sums else self.sums[name] + part

    def _empty(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self.device)

    def _block(self, rows: slice, columns: slice, biases: Merger, values: Merger, dx: Tensor, dy: Tensor) -> None:
        tile, d, net = self.tile, self.critic.d, self.net
        tiles = tiles_of(rows, columns, tile)
        programs, pairs = tiles[0] * tiles[1], tiles[0] * tiles[1] * tile.own * tile.other
        height, width = tiles[0] * tile.own, tiles[1] * tile.other
        parts = Parts(
            output_bias=self._empty(programs),
            own=self._empty(tiles[1], height, d),
            own_stride=height * d,
            other=self._empty(tiles[0], width, d),
            other_stride=width * d,
        )
        kernel = gradients_of_one_layer
        if net.weight is not None:
            kernel, dtype = gradients_of_second_sums, net.weight.dtype
            parts = parts._replace(
                first=self._empty(pairs, d, dtype=dtype),
                second=self._empty(pairs, d, dtype=dtype),
                output=self._empty(programs, d),
                weight_bias=self._empty(programs, d),
            )
        bias, value = biases.parts(rows, columns), values.parts(rows, columns)
        arguments = (self.own, self.other, self.critic, net, parts, *bias, value[0], *tiles)
        launch(kernel, (programs,), *arguments, **self.constants)
        count(pairs * width_of_guide(self.own))
        biases.merge(bias, exponential=False)
        values.merge(value, exponential=False)
        if net.weight is not None:
            names = ("BI", "BJ", "BD", "BK", "PRECISION", "num_warps", "num_stages", "device")
            constants = {name: self.constants[name] for name in names}
            places = (rows.start, columns.start, *tiles)
            launch(gradients_of_first_sums, (programs,), self.own, self.other, net, parts, *places, d, **constants)
            count(2 * pairs * d**2)
            self._add("weight", long_product(parts.second, parts.first, min(_PIECES, pairs // 16)))
        for name in ("output", "output_bias", "weight_bias"):
            lines = getattr(parts, name)
            if lines is not None:
                self._add(name, lines.sum(0))
        dx[rows] += parts.own.sum(0)[: rows.stop - rows.start]
        dy[columns] += parts.other.sum(0)[: columns.stop - columns.start]


def backward(
    problem: Problem, rows: Tensor, columns: Tensor, grad_rows: Tensor, grad_columns: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    """Gradients of `problem.differentiable`."""
    whole = _whole(problem)
    upstream = (grad_rows if problem.wants_rows else None, grad_columns if problem.wants_columns else None)
    left, right, *_ = factored(whole, sides_of(whole), _critic_of(whole), (rows, columns), upstream, shares=False)
    return _cut(problem, _Backward(whole, left, right).run(needs)[1])


def value_and_gradients(problem: Problem, needs: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of a pointwise function over all pairs, and its gradients, from one look at the scores."""
    whole = _whole(problem)
    value, found = _Backward(whole, *sides_of(whole), wants_value=True).run(needs)
    assert value is not None
    found = _cut(problem, found)
    dtype = total_gradient_dtype(problem.x.dtype)
    return value, [None if t is None else t.to(dtype) if k < 2 else t for k, t in enumerate(found)]


def _cut(problem: Problem, gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Without those of the hidden units that `_whole` has put in."""
    return [
        None if gradient is None or tensor is None else gradient[tuple(map(slice, tensor.shape))].contiguous()
        for gradient, tensor in zip(gradients, problem.differentiable, strict=True)
    ]
