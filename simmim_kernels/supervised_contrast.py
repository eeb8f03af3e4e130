"""Contrast between and within classes, made so that it keeps its digits as classes part and contract.

With s_ij = scale <x_i, z_j>, neg_i the log-sum-exp over the other classes and pos_i that over the K_i positives p, the
supervised contrastive loss is

    loss_i = softplus(neg_i - pos_i) + (pos_i - mean_p s_ip),

two terms of which none is negative: nothing is lost between them. The second is log K_i and what the positives differ
by. Around a centre c of the class, x = c + u and z = c + v,

    s_ip = scale (<x_i, c> + <c, v_p> + <u_i, v_p>),

whose first part is the same for all positives and goes out of the difference. The rest is made of u and v, which are
as small as the class is narrow, and so are its rounding and that of its gradients. All this holds for any centre, so
that no gradient goes through it.

NT-Xent of the positive pairs is sum_p softplus(neg_i - s_ip), a pointwise sum of scores within classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .operator.class_sums import class_sums
from .operator.computation import without_autocast
from .operator.cross_entropy import cross_entropy_from_others
from .operator.global_batch import Shards
from .scores import PairwiseScores


@dataclass
class Labelled:
    """Anchors and candidates with their classes. Of anchors among themselves z is x, and ref_classes are classes."""

    x: Tensor
    """(N, d) anchors, float64 or float32."""
    z: Tensor
    """(M, d) candidates, of the anchors' dtype."""
    classes: Tensor
    """(N,) int64 in [0, N + M)."""
    ref_classes: Tensor
    """(M,) int64 in [0, N + M)."""
    own: Tensor | None
    """(N,) int64, the candidate that is the anchor itself, of its class, and left out; -1 for none."""
    shards: Shards | None = None
    """Of anchors among themselves: the ranks whose rows are all of them. Classes are then any numbers."""
    _class_sums: Callable[[Tensor], Tensor] | None = field(default=None, init=False)

    def in_order_of_classes(self) -> tuple["Labelled", Tensor]:
        """The same with pairs of one class together, so that most tiles of pairs have none of them; and which anchors
        come first, (N,).
        """
        order = self.classes.argsort()
        x, classes = self.x.index_select(0, order), self.classes[order]
        if self.z is self.x:
            return Labelled(x, x, classes, classes, self.own, self.shards), order
        ref_order = self.ref_classes.argsort()
        own = self.own
        if own is not None:
            own = ref_order.argsort()[own[order].clamp(min=0)].where(own[order] >= 0, -1)
        return Labelled(x, self.z.index_select(0, ref_order), classes, self.ref_classes[ref_order], own), order

    def of_class(self, values: Tensor) -> Tensor:
        """The candidates' values (M, ...), summed over each anchor's class, (N, ...)."""
        if self.shards is not None:
            if self._class_sums is None:
                self._class_sums = class_sums(self.classes, self.shards)
            return self._class_sums(values)
        sums = values.new_zeros(len(self.x) + len(self.z), *values.shape[1:])
        return sums.index_add(0, self.ref_classes, values).index_select(0, self.classes)

    def of_own(self, values: Tensor) -> Tensor:
        """The candidates' values (M, ...) at each anchor's own place, (N, ...), 0 where there is none."""
        if self.z is self.x:
            return values
        if self.own is None:
            return values.new_zeros(len(self.x), *values.shape[1:])
        has = (self.own >= 0).view(-1, *[1] * (values.dim() - 1))
        return values.index_select(0, self.own.clamp(min=0)).where(has, 0)

    def sizes(self) -> Tensor:
        """(N,) float, how many candidates each anchor's class has."""
        return self.of_class(torch.ones_like(self.z[:, 0]))

    def positives_of_each(self, sizes: Tensor) -> Tensor:
        """(N,) float, how many candidates of its class an anchor has, itself apart."""
        return sizes - self.of_own(torch.ones_like(self.z[:, 0]))

    def centres(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """(N, d) and (M, d), constants: the means of the candidates of each anchor's class, and of each candidate's."""
        if self.z is self.x:
            centre = self.of_class(self.x.detach()) / sizes[:, None]
            return centre, centre
        z, classes = self.z.detach(), self.ref_classes
        sums = z.new_zeros(len(self.x) + len(z), z.shape[1]).index_add(0, classes, z)
        means = sums / torch.bincount(classes, minlength=len(sums)).clamp(min=1)[:, None]
        return means.index_select(0, self.classes), means.index_select(0, classes)

    def negatives(self, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """(N,) log-sum-exps of the scores with other classes, of features in `dtype`, or in autocast's."""
        low = self.x.to(dtype)
        ref = low if self.z is self.x else self.z.to(dtype)
        scores = PairwiseScores(low, ref, scale=scale, group=self.shards)
        return scores.exclude(self.classes, self.ref_classes).logsumexp(1)

    def positives(self, scores: PairwiseScores) -> PairwiseScores:
        """Scores of all pairs, of which only those of one class stay."""
        scores = scores.within(self.classes, self.ref_classes)
        if self.z is self.x:
            return scores.marginal
        if self.own is None:
            return scores
        return scores.exclude(self.own, torch.arange(len(self.z), device=self.z.device))


def supervised_contrast(data: Labelled, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(N,) losses in nats, and (N,) bool, whether an anchor has a positive; the loss of one without is to be left out.

    scale () is 1 / temperature. Scores with other classes are of features in `dtype`, or in autocast's; those within a
    class are of the features as they are.
    """
    data, order = data.in_order_of_classes()
    negative = data.negatives(scale, dtype)
    with without_autocast(data.x.device):
        positive, spread, others = _within_classes(data, scale)
        values = cross_entropy_from_others(negative, positive.where(others > 0, 0)) + spread
    back = order.argsort()
    return values.index_select(0, back), (others > 0)[back]


def nt_xent_sums(data: Labelled, scale: Tensor, dtype: torch.dtype, by_anchor: bool) -> Tensor:
    """(N,) sums over the positive pairs of each anchor of softplus(neg_i - s_ip), or () of all; dtypes as above."""
    data, order = data.in_order_of_classes()
    # An anchor without negatives has -inf, which times a weight of 0 would be NaN; its losses are 0 all the same.
    negative = data.negatives(scale, dtype).clamp(min=torch.finfo(data.x.dtype).min / 4)
    with without_autocast(data.x.device):
        pairs = data.positives(PairwiseScores(data.x, data.z, scale=-scale, row_bias=negative))
        if not by_anchor:
            return pairs.sum((0, 1), fn="softplus")
        return pairs.sum(1, fn="softplus").index_select(0, order.argsort())


def nt_xent_pairs(data: Labelled, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(P,) losses softplus(neg_i - s_ip) of all P positive pairs, their anchors and their candidates, in O(P d) memory.

    By anchor, and then by candidate.
    """
    device = data.x.device
    negative = data.negatives(scale, dtype)
    with without_autocast(device):
        order = data.ref_classes.argsort(stable=True)
        sizes = torch.bincount(data.ref_classes, minlength=len(data.x) + len(data.z))
        first, size = (sizes.cumsum(0) - sizes)[data.classes], sizes[data.classes]
        anchors = torch.arange(len(data.x), device=device).repeat_interleave(size)
        place = torch.arange(len(anchors), device=device) - (size.cumsum(0) - size)[anchors]
        candidates = order[first[anchors] + place]
        if data.own is not None:
            others = candidates != data.own[anchors]
            anchors, candidates = anchors[others], candidates[others]
        joint = scale * (data.x[anchors] * data.z[candidates]).sum(1)
        return cross_entropy_from_others(negative[anchors], joint), anchors, candidates


def _within_classes(data: Labelled, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) each: pos_i, pos_i - mean_p s_ip, and K_i."""
    x, z, own, sizes = data.x, data.z, data.of_own, data.sizes()
    others = data.positives_of_each(sizes)
    centre, ref_centre = data.centres(sizes)
    v = z - ref_centre
    u = v if z is x else x - centre
    column = scale * (v * ref_centre).sum(1)
    mean = data.of_class(column) - own(column) + scale * (u * (data.of_class(v) - own(v))).sum(1)
    mean = mean / others.clamp(min=1)
    scores = PairwiseScores(u, v, scale=scale, row_bias=-mean, col_bias=column, group=data.shards)
    spread = data.positives(scores).logsumexp(1)
    positive = spread + (mean + scale * (x * centre).sum(1))
    # Of one positive, or none, there is no spread: not even that of a rounding.
    return positive, spread.where(others > 1, 0), others
