"""Critics mixed: their scores summed, with weights that are fitted on validation rows."""

import torch
from torch import Tensor, nn

from .. import bounds
from ..scores import PairwiseScores

_MOST_ITERATIONS = 30


class Mixed(nn.Module):
    """The weighted sum of critics' scores, all inner products of features: one such critic, of the features of all."""

    weights: Tensor

    def __init__(self, critics: list[nn.Module], weights: Tensor):
        super().__init__()
        self.critics = nn.ModuleList(critics)
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor, y: Tensor) -> PairwiseScores:
        return _mixed([critic(x, y) for critic in self.critics], self.weights)


def _mixed(scores: list[PairwiseScores], weights: Tensor) -> PairwiseScores:
    """Up to a function of x, which InfoNCE does not see."""
    problems = [each._problem for each in scores]
    left = [weight * p.parameters[0] * p.x for weight, p in zip(weights, problems, strict=True)]
    bias = torch.zeros(len(problems[0].y), device=weights.device)
    for weight, p in zip(weights, problems, strict=True):
        if p.col_bias is not None:
            bias = bias + weight * p.col_bias
    return PairwiseScores(torch.cat(left, 1), torch.cat([p.y for p in problems], 1), col_bias=bias)


def fitted(critics: list[nn.Module], x: Tensor, y: Tensor) -> tuple[Mixed, float]:
    """With the weights of the highest InfoNCE on x and y, and that less what so many weights gain by chance.

    InfoNCE is concave in the weights. Akaike's correction takes away a weight over the rows each.
    """
    with torch.no_grad():
        scores = [critic(x, y) for critic in critics]
    weights = torch.full((len(critics),), 1 / len(critics), device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_MOST_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -bounds.infonce(_mixed(scores, weights))
        value.backward()
        return value

    optimizer.step(loss)
    found = weights.detach()
    with torch.no_grad():
        value = bounds.infonce(_mixed(scores, found)).item()
    return Mixed(critics, found), value - len(critics) / len(x)
