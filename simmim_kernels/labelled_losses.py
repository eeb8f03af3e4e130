"""Contrastive losses of labelled features, against each other or against others: a queue, another batch.

Features have shape (N, d); dtypes, `temperature`, `reduction` and errors (TypeError or ValueError, raised with the
argument's name) are as in losses.py, and losses are in nats.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss_parts import REDUCTIONS, Loss, inverse, reduced_over
from .operator.computation import without_autocast
from .operator.global_batch import shards_of
from .problem import Problem, compute_dtype, validation
from .problem.ids import dense_ranks
from .supervised_contrast import Labelled, nt_xent_sums, supervised_contrast


def supcon_loss(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.07,
    reduction: str = "mean",
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_index: Tensor | None = None,
    normalize: bool = True,
    group: Any = None,
) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, L_out, eq. 2); features (N, d), integer labels (N,).

    Every other row of an anchor's class is a positive. The mean runs over the anchors that have one; the others
    contribute 0. With ref (M, d) and ref_labels (M,) its rows are the candidates, in place of the features themselves:
    those of the anchor's label are its positives. ref_index (N,) is the row of ref that the anchor itself is, which is
    left out, and -1 where none is: what `Queue.enqueue` returns. normalize=False takes features and ref as they are.
    With a group, which takes no ref, the rows of all ranks are the candidates.

    What is left of the loss of a trained model, log of the number of positives apart, keeps its digits
    (supervised_contrast.py): scores within a class are made in float32 at least, also under autocast.
    """
    validation.choice(reduction, "reduction", REDUCTIONS)
    if group is not None and ref is not None:
        raise NotImplementedError("ref must be None where there is a group: candidates are then the rows of all ranks")
    data = labelled(features, labels, ref, ref_labels, ref_index, normalize, of_ranks=group is not None)
    scale = _scale(temperature, data)
    data.shards = shards_of(group, Problem(data.x, data.x, [scale]))
    values, counted = supervised_contrast(data, scale, features.dtype)
    return reduced_over(values, counted, reduction, empty=0.0, shards=data.shards)


def labelled_nt_xent_loss(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.07,
    reduction: str = "mean",
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ref_index: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """NT-Xent of every positive pair (Chen et al. 2020), as pytorch-metric-learning's NTXentLoss, in linear memory.

    The loss of anchor i and a candidate p of its label is -s_ip + log(e^s_ip + sum of e^s_in over the candidates n of
    other labels); "mean" is over the positive pairs, 0 where there is none, and "none" (N,) the sum over each anchor's.
    Arguments, ref, ref_labels, ref_index and normalize among them, are those of `supcon_loss`.
    """
    validation.choice(reduction, "reduction", REDUCTIONS)
    data = labelled(features, labels, ref, ref_labels, ref_index, normalize)
    if reduction == "none":
        return nt_xent_sums(data, _scale(temperature, data), features.dtype, by_anchor=True)
    total = nt_xent_sums(data, _scale(temperature, data), features.dtype, by_anchor=False)
    return total if reduction == "sum" else total / data.positives_of_each(data.sizes()).sum().clamp(min=1)


def _scale(temperature: float | Tensor, data: Labelled) -> Tensor:
    validation.positive(temperature, "temperature")
    return inverse(temperature, data.x)


def labelled(
    features: Tensor,
    labels: Tensor,
    ref: Tensor | None,
    ref_labels: Tensor | None,
    ref_index: Tensor | None,
    normalize: bool,
    of_ranks: bool = False,
) -> Labelled:
    """Checked, normalised where asked for, and in the compute dtype.

    Of several ranks one may have no rows, and classes stay as they are, numbers that mean the same on all.
    """
    validation.flag(normalize, "normalize")
    validation.features(features, "features", may_be_empty=of_ranks)
    labels = validation.integers(labels, "labels", len(features), features)
    if ref is None and (ref_labels is not None or ref_index is not None):
        raise ValueError("ref_labels and ref_index must be None where there is no ref that they are of")

    def prepared(values: Tensor) -> Tensor:
        wide = values.to(compute_dtype(values.dtype))
        return F.normalize(wide, dim=1) if normalize else wide

    with without_autocast(features.device):
        x = prepared(features)
        if ref is None:
            classes = labels if of_ranks else dense_ranks(labels)
            return Labelled(x, x, classes, classes, torch.arange(len(x), device=x.device))
        validation.operands(features, ref, ("features", "ref"))
        ref_labels = validation.integers(ref_labels, "ref_labels", len(ref), features)
        classes = dense_ranks(torch.cat([labels, ref_labels]))
        if ref_index is not None:
            ref_index = validation.indices(ref_index, "ref_index", len(x), len(ref), features, also=-1)
        return Labelled(x, prepared(ref), classes[: len(x)], classes[len(x) :], ref_index)


class SupConLoss(Loss):
    """`supcon_loss` as a Module: forward(features (N, d), labels (N,), ref=None, ref_labels=None, ref_index=None)."""

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        reduction: str = "mean",
        normalize: bool = True,
        group: Any = None,
    ):
        super().__init__(temperature=temperature, reduction=reduction, normalize=normalize, group=group)

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        ref: Tensor | None = None,
        ref_labels: Tensor | None = None,
        ref_index: Tensor | None = None,
    ) -> Tensor:
        return supcon_loss(features, labels, ref=ref, ref_labels=ref_labels, ref_index=ref_index, **self._options)


class LabelledNTXentLoss(Loss):
    """`labelled_nt_xent_loss` as a Module: forward(features, labels, ref=None, ref_labels=None, ref_index=None)."""

    def __init__(self, temperature: float | Tensor = 0.07, reduction: str = "mean", normalize: bool = True):
        super().__init__(temperature=temperature, reduction=reduction, normalize=normalize)

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        ref: Tensor | None = None,
        ref_labels: Tensor | None = None,
        ref_index: Tensor | None = None,
    ) -> Tensor:
        return labelled_nt_xent_loss(
            features, labels, ref=ref, ref_labels=ref_labels, ref_index=ref_index, **self._options
        )
