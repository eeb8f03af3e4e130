"""pytorch-metric-learning's SupConLoss, NTXentLoss and CrossBatchMemory (of 2.9.0), without the matrix.

Exact with all its reducers, regularisers, ref_emb, cosine and dot-product similarity and squared L2 distance
(LpDistance(p=2, power=2)). Tuples, of a miner or one's own, name single pairs: with them the original runs, dense, and
a warning says so. Other distances raise NotImplementedError.
"""

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as original
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
from pytorch_metric_learning.reducers import MeanReducer, MultipleReducers
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor

from ..labelled_losses import labelled
from ..loss_parts import inverse
from ..supervised_contrast import Labelled, nt_xent_pairs, nt_xent_sums, supervised_contrast


class _Own(NamedTuple):
    """In the place of tuples: all pairs, but for those of an anchor with its own row among the references."""

    rows: Tensor | None


class _Fused:
    """compute_loss of all pairs. Comes before a loss of theirs, whose own is the dense one."""

    temperature: float
    distance: Any

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        if indices_tuple is not None and not isinstance(indices_tuple, _Own):
            warnings.warn(
                f"{type(self).__name__} was given indices_tuple: the original runs, with its N x M matrix",
                stacklevel=3,
            )
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if isinstance(indices_tuple, _Own):
            own = indices_tuple.rows
        else:
            # As there: (i, i) is no pair of rows that have the very same labels.
            own = torch.arange(len(embeddings), device=embeddings.device) if ref_labels is labels else None
        data = self._data(embeddings, labels, ref_emb, ref_labels, own)
        sizes = data.sizes()
        positives, same = int(data.positives_of_each(sizes).sum()), int(sizes.sum())
        negatives = len(data.x) * len(data.z) - same
        if positives == 0 or negatives == 0 or max(positives, negatives) == 1:
            return self.zero_losses()
        losses, indices, kind = self._losses(data, inverse(self.temperature, data.x), embeddings.dtype, positives)
        return {"loss": {"losses": losses, "indices": indices, "reduction_type": kind}}

    def _data(self, embeddings, labels, ref_emb, ref_labels, own) -> Labelled:
        distance = self.distance
        known = type(distance) in (CosineSimilarity, DotProductSimilarity) and distance.power == 1
        squared = type(distance) is LpDistance and distance.p == 2 and distance.power == 2
        if not (known or squared) or distance.p != 2:
            raise NotImplementedError(
                f"distance must be CosineSimilarity, DotProductSimilarity or LpDistance(p=2, power=2), "
                f"got {type(distance).__name__}(p={distance.p}, power={distance.power})"
            )
        normalize = distance.normalize_embeddings
        alone = ref_emb is embeddings and own is not None
        if squared:
            # -|x - z|^2 = <(2 x, 1), (z, -|z|^2)> - |x|^2, whose last term no row's softmax sees.
            x, z = (F.normalize(t, dim=1) if normalize else t for t in (embeddings, ref_emb))
            embeddings = torch.cat([2 * x, torch.ones_like(x[:, :1])], 1)
            ref_emb = torch.cat([z, -z.square().sum(1, keepdim=True)], 1)
            normalize = alone = False
        if alone:
            return labelled(embeddings, labels, None, None, None, normalize)
        return labelled(embeddings, labels, ref_emb, ref_labels, own, normalize)

    def _losses(self, data: Labelled, scale: Tensor, dtype: torch.dtype, positives: int) -> tuple:
        """Losses, their indices and their reduction_type."""
        raise NotImplementedError


class SupConLoss(_Fused, original.SupConLoss):
    """pytorch-metric-learning's SupConLoss, which runs itself up to 2^18 pairs: it is faster there."""

    dense_pairs = 2**18

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        if indices_tuple is None and len(embeddings) * len(ref_emb) <= self.dense_pairs:
            return original.SupConLoss.compute_loss(self, embeddings, labels, None, ref_emb, ref_labels)
        return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def _losses(self, data, scale, dtype, positives):
        values, has = supervised_contrast(data, scale, dtype)
        return values.where(has, 0), torch.arange(len(values), device=values.device), "element"


class NTXentLoss(_Fused, original.NTXentLoss):
    """pytorch-metric-learning's NTXentLoss; memory is linear with its default reducer, and else by positive pairs."""

    def _losses(self, data, scale, dtype, positives):
        reducer = self.reducer.reducers["loss"] if isinstance(self.reducer, MultipleReducers) else self.reducer
        if type(reducer) is MeanReducer:
            return nt_xent_sums(data, scale, dtype, by_anchor=False) / positives, None, "already_reduced"
        losses, anchors, candidates = nt_xent_pairs(data, scale, dtype)
        return losses, (anchors, candidates), "pos_pair"


class CrossBatchMemory(original.CrossBatchMemory):
    """pytorch-metric-learning's CrossBatchMemory, which lists no pairs where there is no miner and no indices_tuple."""

    def create_indices_tuple(self, embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons):
        if self.miner or input_indices_tuple is not None or not isinstance(self.loss, _Fused):
            return super().create_indices_tuple(
                embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons
            )
        return _Own(self.curr_batch_idx if do_remove_self_comparisons else None)
