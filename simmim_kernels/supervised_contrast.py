"""The supervised contrastive loss of every anchor, made so that it keeps its digits as classes part and contract.

With s_ij = scale <x_i, x_j>, neg_i the log-sum-exp over the other classes and pos_i that over the K_i positives p,

    loss_i = softplus(neg_i - pos_i) + (pos_i - mean_p s_ip),

two terms of which none is negative: nothing is lost between them. The second is log K_i and what the positives differ
by. Around a centre c of the class, x = c + u,

    s_ip = scale (<x_i, c> + <c, u_p> + <u_i, u_p>),

whose first part is the same for all positives and goes out of the difference. The rest is made of the u, which are as
small as the class is narrow, and so are its rounding and that of its gradients. All this holds for any centre, so that
no gradient goes through it.
"""

import torch
from torch import Tensor

from .operator.class_sums import class_sums
from .operator.computation import without_autocast
from .operator.cross_entropy import cross_entropy_from_others
from .operator.global_batch import Shards
from .scores import PairwiseScores


def supervised_contrast(
    x: Tensor, classes: Tensor, scale: Tensor, dtype: torch.dtype, shards: Shards | None = None
) -> tuple[Tensor, Tensor]:
    """(N,) losses in nats of anchors x (N, d), float64 or float32, and (N,) bool, whether an anchor has a positive.

    classes (N,) int64; scale () is 1 / temperature. Scores with other classes are of x in `dtype`, or in
    autocast's; those within a class are of x as it is. The loss of an anchor without a positive is to be left out.
    """
    # In the order of their classes, so that pairs within one are together, and most tiles of pairs have none of them.
    order = classes.argsort()
    x, classes = x.index_select(0, order), classes[order]
    low = x.to(dtype)
    negative = PairwiseScores(low, low, scale=scale, group=shards).exclude(classes, classes).logsumexp(1)
    with without_autocast(x.device):
        positive, spread, others = _within_classes(x, classes, scale, shards)
        values = cross_entropy_from_others(negative, positive.where(others > 0, 0)) + spread
    back = order.argsort()
    return values.index_select(0, back), (others > 0)[back]


def _within_classes(x: Tensor, classes: Tensor, scale: Tensor, shards: Shards | None) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) each: pos_i, pos_i - mean_p s_ip, and K_i."""
    of_class = class_sums(classes, shards)
    size = of_class(torch.ones_like(x[:, 0]))
    others = size - 1
    centre = of_class(x.detach()) / size[:, None]
    u = x - centre
    column = scale * (u * centre).sum(1)
    mean = (of_class(column) - column + scale * (u * (of_class(u) - u)).sum(1)) / others.clamp(min=1)
    scores = PairwiseScores(u, u, scale=scale, row_bias=-mean, col_bias=column, group=shards)
    spread = scores.within(classes, classes).marginal.logsumexp(1)
    positive = spread + (mean + scale * (x * centre).sum(1))
    # Of one positive, or none, there is no spread: not even that of a rounding.
    return positive, spread.where(others > 1, 0), others
