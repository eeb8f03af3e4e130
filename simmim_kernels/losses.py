"""Losses that people already train with, as thin layers on PairwiseScores.

Each is a function and a Module of the same name: options in the Module's constructor, tensors in its forward.
Features have shape (N, d) and dtype float64, float32, bfloat16 or float16; losses are in nats, and come in float64 for
float64 features and in float32 for all others. `reduction` is "mean" or "sum", to (), or "none", to (N,): one value per
anchor. `temperature`, `logit_scale` and `logit_bias` are numbers, or tensors of one element that may require grad.

With `group`, a process group, a DeviceMesh of one dimension or a GlobalBatch, tensors of shape (N, ...) are this rank's
rows, some or none, of one batch; "mean" and "sum" are over the anchors of all ranks, and the same on each, "none" is of
this rank's own. Every rank makes the same call.

All raise TypeError or ValueError naming the argument, what it got and what it needs.
"""

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .entropy import cross_entropies_with_entropy, logsumexp_with_entropy
from .loss_parts import REDUCTIONS, Loss, inverse, reduced, reduced_over, rowwise_scores
from .operator.computation import autocast, without_autocast
from .operator.cross_entropy import cross_entropy_from_others, cross_entropy_sum
from .operator.global_batch import shards_of
from .problem import Problem, compute_dtype, validation
from .problem.softmax import entropy_of_rows, entropy_with
from .scores import PairwiseScores


@overload
def info_nce_loss(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None, temperature: float | Tensor = 0.1,
    reduction: str = "mean", symmetric: bool = False, normalize: bool = True, group: Any = None,
    return_entropy: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def info_nce_loss(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None, temperature: float | Tensor = 0.1,
    reduction: str = "mean", symmetric: bool = False, normalize: bool = True, group: Any = None,
    *, return_entropy: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def info_nce_loss(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    symmetric: bool = False,
    normalize: bool = True,
    group: Any = None,
    return_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """InfoNCE over cosine similarities (van den Oord et al. 2018, eq. 4), as the package info-nce-pytorch has it.

    query, positive_key: (N, d), one pair a row. Without negative_keys the other rows' positive keys are the
    negatives; negative_keys (M, d) take their place, shared by all queries, with a group those of every rank, of which
    each brings its own; or (N, K, d), K of each query's own. symmetric=True averages the losses of both directions,
    from one pass; it needs in-batch negatives. normalize=False takes queries and keys as they are, for dot products in
    place of cosines. return_entropy=True returns the loss and the entropy (N,) of each query's softmax over its
    keys, in nats and without gradient: log of their number where it knows nothing, near 0 where it is sure.
    """
    validation.choice(reduction, "reduction", REDUCTIONS)
    validation.positive(temperature, "temperature")
    validation.flag(symmetric, "symmetric")
    validation.flag(normalize, "normalize")
    validation.flag(return_entropy, "return_entropy")
    if symmetric and negative_keys is not None:
        raise ValueError("symmetric must be False where negative_keys are given: they have no direction back")
    some = group is not None
    validation.operands(query, positive_key, ("query", "positive_key"), same_length=True, may_be_empty=some)
    each_its_own = isinstance(negative_keys, Tensor) and negative_keys.dim() == 3
    if negative_keys is not None and not each_its_own:
        validation.operands(query, negative_keys, ("query", "negative_keys"), may_be_empty=some)
    if normalize:
        query, positive_key = F.normalize(query, dim=1), F.normalize(positive_key, dim=1)
    scale = inverse(temperature, query)
    if negative_keys is None:
        scores = PairwiseScores(query, positive_key, scale=scale, group=group)
        dims = "both" if symmetric else "rows"
        if not return_entropy:
            return scores._reduced_entropies(dims, reduction)
        values, of_rows = cross_entropies_with_entropy(scores, dims)
        return reduced(values.mean(0), reduction, scores._shards), of_rows
    pairs = Problem(*autocast(query, positive_key), [scale])
    entropies: Tensor | None = None
    if each_its_own:
        shards = shards_of(group, pairs)
        own_scores = rowwise_scores(query, negative_keys, "negative_keys", scale, normalize, some)
        others = own_scores.logsumexp(1)
        entropies = entropy_of_rows(own_scores.detach()) if return_entropy else None
    else:
        negative_keys = F.normalize(negative_keys, dim=1) if normalize else negative_keys
        negatives = PairwiseScores(query, negative_keys, scale=scale, group=group)
        shards = negatives._shards
        if return_entropy:
            others, entropies = logsumexp_with_entropy(negatives)
        else:
            others = negatives.logsumexp(1)
    joint = PairwiseScores._of(pairs).joint
    loss = reduced(cross_entropy_from_others(others, joint), reduction, shards)
    return loss if entropies is None else (loss, entropy_with(joint, others, entropies))


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    reduction: str = "mean",
    group: Any = None,
) -> Tensor:
    """CLIP's loss (Radford et al. 2021), as open_clip's ClipLoss: features are taken as they are, normalise first.

    Mean of the cross entropies of logit_scale <image_i, text_j> over rows and over columns, from one pass.
    image_features, text_features: (N, d), one pair a row; logit_scale is 1 / temperature. A logit_bias, which is added
    to every score, drops out of both softmaxes: its gradient is 0, and not none, as DistributedDataParallel wants it.
    """
    validation.choice(reduction, "reduction", REDUCTIONS)
    names = ("image_features", "text_features")
    validation.operands(image_features, text_features, names, same_length=True, may_be_empty=group is not None)
    logit_scale = validation.scalar(logit_scale, "logit_scale", image_features)
    scores = PairwiseScores(image_features, text_features, scale=logit_scale, group=group)
    loss = scores._reduced_entropies("both", reduction)
    return loss if logit_bias is None else loss + 0 * validation.scalar(logit_bias, "logit_bias", image_features)


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    reduction: str = "mean",
    group: Any = None,
) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, alg. 1), as open_clip's SigLipLoss: features are taken as they are.

    image_features, text_features: (N, d), one pair a row. The loss is
    -log sigmoid(z_ij (logit_scale <image_i, text_j> + logit_bias)), z = 1 for the joint pairs and -1 for all
    others, summed over all pairs and divided by N ("mean"), summed ("sum"), or summed over each row ("none").
    """
    validation.choice(reduction, "reduction", REDUCTIONS)
    names = ("image_features", "text_features")
    validation.operands(image_features, text_features, names, same_length=True, may_be_empty=group is not None)
    logit_scale = validation.scalar(logit_scale, "logit_scale", image_features)
    row_bias = None
    if logit_bias is not None:
        row_bias = validation.scalar(logit_bias, "logit_bias", image_features).expand(len(image_features))
    scores = PairwiseScores(image_features, text_features, scale=logit_scale, row_bias=row_bias, group=group)
    signed = scores._with_joint_negated()  # -log sigmoid(z s) = softplus(-z s)
    if reduction == "none":
        return signed.sum(1, fn="softplus")
    return signed._total("softplus", scores.anchors if reduction == "mean" else 1)


def nt_xent_loss(
    z1: Tensor, z2: Tensor, temperature: float | Tensor = 0.5, reduction: str = "mean", group: Any = None
) -> Tensor:
    """NT-Xent (Chen et al. 2020, SimCLR, eq. 1), as lightly's NTXentLoss.

    z1, z2: (N, d), two views of an example a row. Each of the 2N views is an anchor, its other view the positive, all
    views but itself the candidates; the values of reduction="none" (2N,) are those of z1's rows, then of z2's.
    """
    validation.choice(reduction, "reduction", REDUCTIONS)
    validation.positive(temperature, "temperature")
    validation.operands(z1, z2, ("z1", "z2"), same_length=True, may_be_empty=group is not None)
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    scale = inverse(temperature, z)
    shards = shards_of(group, Problem(z, z, [scale]))
    index = torch.arange(2 * n, device=z.device)
    if shards is not None:
        index = index + shards.first_row
    scores = PairwiseScores(z, z, scale=scale, positives=index.roll(n), group=shards)
    return scores.exclude(index, index, keep_joint=True)._reduced_entropies("rows", reduction)


@overload
def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, ignore_index: int = -100,
    reduction: str = "mean", class_weight: Tensor | None = None, label_smoothing: float = 0.0, group: Any = None,
    return_entropy: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, ignore_index: int = -100,
    reduction: str = "mean", class_weight: Tensor | None = None, label_smoothing: float = 0.0, group: Any = None,
    *, return_entropy: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    group: Any = None,
    return_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """F.cross_entropy(F.linear(x, weight, bias), target, class_weight) without the (N, C) logits.

    x (N, d), weight (C, d), bias (C,), target (N,) class indices in [0, C) or ignore_index, whose rows contribute 0.
    class_weight (C,) is cross_entropy's `weight`: a row counts as much as its target's class. label_smoothing in
    [0, 1] is the share of the target that goes to all classes alike (Szegedy et al. 2016, sec. 7), in O((N + C) d).
    As in PyTorch the mean divides by the class weights of the rows that are not ignored, by their number without any,
    and is NaN where that is 0. With a group every rank has all of weight, bias and class_weight. return_entropy=True
    returns the loss and the entropy (N,) of each row's softmax, in nats and without gradient, ignored rows' too.
    """
    validation.choice(reduction, "reduction", REDUCTIONS)
    label_smoothing = validation.fraction(label_smoothing, "label_smoothing")
    ignore_index = validation.integer(ignore_index, "ignore_index")
    validation.flag(return_entropy, "return_entropy")
    x, weight = autocast(*validation.operands(x, weight, ("x", "weight"), may_be_empty=group is not None))
    classes = len(weight)
    target = validation.indices(target, "target", len(x), classes, x, also=ignore_index)
    if bias is not None:
        bias = validation.vector(bias, "bias", classes, x)
    if class_weight is not None:
        class_weight = validation.vector(class_weight, "class_weight", classes, x)
    counted = target != ignore_index
    target = target.where(counted, 0)
    problem = Problem(x, weight, [validation.scalar(1.0, "scale", x)], col_bias=bias, positives=target)
    scores, shards = PairwiseScores._of(problem), shards_of(group, problem)
    row_weight = None if class_weight is None else class_weight.to(scores.dtype)[target]
    if reduction != "none" and not label_smoothing and shards is None and not return_entropy:
        counts = counted.to(scores.dtype) if row_weight is None else row_weight.where(counted, 0)
        return cross_entropy_sum(problem, "rows", counts.sum() if reduction == "mean" else 1, counts)
    if return_entropy:
        (entropies,), of_softmax = cross_entropies_with_entropy(scores, "rows")
    else:
        entropies, of_softmax = scores.cross_entropy(1), None
    values = entropies if row_weight is None else row_weight * entropies
    if label_smoothing:
        # mean_j w_j (logsumexp_i - s_ij): a mean over the classes of scores that are linear in them.
        share = 1 if class_weight is None else class_weight.to(scores.dtype).mean()
        spread = share * (entropies + scores.joint) - _mean_scores(x, weight, bias, class_weight)
        values = (1 - label_smoothing) * values + label_smoothing * spread
    loss = reduced_over(values, counted, reduction, empty=float("nan"), weight=row_weight, shards=shards)
    return loss if of_softmax is None else (loss, of_softmax)


def _mean_scores(x: Tensor, weight: Tensor, bias: Tensor | None, class_weight: Tensor | None) -> Tensor:
    """(N,) mean_j w_j (<x_i, weight_j> + bias_j) over the classes, with w = class_weight or 1."""
    dtype = compute_dtype(x.dtype)

    def mean(per_class: Tensor) -> Tensor:
        if class_weight is None:
            return per_class.mean(0, dtype=dtype)
        return class_weight.to(dtype) @ per_class.to(dtype) / len(per_class)

    with without_autocast(x.device):
        scores = x.to(dtype) @ mean(weight)
        return scores if bias is None else scores + mean(bias)


class InfoNCELoss(Loss):
    """`info_nce_loss` as a Module: forward(query (N, d), positive_key (N, d), negative_keys (M, d) or None)."""

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        reduction: str = "mean",
        symmetric: bool = False,
        normalize: bool = True,
        group: Any = None,
        return_entropy: bool = False,
    ):
        super().__init__(
            temperature=temperature,
            reduction=reduction,
            symmetric=symmetric,
            normalize=normalize,
            group=group,
            return_entropy=validation.flag(return_entropy, "return_entropy"),
        )

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Any:
        return info_nce_loss(query, positive_key, negative_keys, **self._options)


class ClipLoss(Loss):
    """`clip_loss` as a Module: forward(image_features (N, d), text_features (N, d), logit_scale, logit_bias=None)."""

    def __init__(self, reduction: str = "mean", group: Any = None):
        super().__init__(reduction=reduction, group=group)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        return clip_loss(image_features, text_features, logit_scale, logit_bias, **self._options)


class SigLipLoss(Loss):
    """`siglip_loss` as a Module: forward(image_features (N, d), text_features (N, d), logit_scale, logit_bias=None)."""

    def __init__(self, reduction: str = "mean", group: Any = None):
        super().__init__(reduction=reduction, group=group)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        return siglip_loss(image_features, text_features, logit_scale, logit_bias, **self._options)


class NTXentLoss(Loss):
    """`nt_xent_loss` as a Module: forward(z1 (N, d), z2 (N, d))."""

    def __init__(self, temperature: float | Tensor = 0.5, reduction: str = "mean", group: Any = None):
        super().__init__(temperature=temperature, reduction=reduction, group=group)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        return nt_xent_loss(z1, z2, **self._options)


class LinearCrossEntropyLoss(Loss):
    """`linear_cross_entropy` as a Module: forward(x (N, d), weight (C, d), target (N,), bias (C,) or None).

    ignore_index, class_weight (C,), label_smoothing and group are the function's; class_weight becomes a buffer.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        group: Any = None,
        return_entropy: bool = False,
    ):
        validation.fraction(label_smoothing, "label_smoothing")
        validation.integer(ignore_index, "ignore_index")
        options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
        super().__init__(**options, group=group, return_entropy=validation.flag(return_entropy, "return_entropy"))
        # A buffer, as in nn.CrossEntropyLoss: it moves and is saved with the module.
        self.register_buffer("class_weight", class_weight)

    def forward(self, x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Any:
        return linear_cross_entropy(x, weight, target, bias, class_weight=self.class_weight, **self._options)
