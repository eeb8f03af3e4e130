"""sentence-transformers' in-batch ranking losses (of 6.2.0), without the scores.

Exact with cos_sim and dot_score, all directions, partitions and hardness modes; other values of similarity_fct raise
NotImplementedError. With gather_across_devices every process has the loss of the whole batch, or with
original_gradients = True that of its own queries, as there; gradients are the same.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer import losses as original
from sentence_transformers.util import batch_to_device, cos_sim, dot_score, pytorch_cos_sim
from torch import Tensor

from ..ranking import guided_ranking_loss, ranking_loss
from ._processes import SeveralProcesses, world


def _ranking(loss: Any, embeddings: list[Tensor]) -> Tensor:
    """The loss with the settings that `loss` has now."""
    if len(embeddings) < 2:
        raise ValueError(f"Expected at least 2 embeddings, got {len(embeddings)}")
    group = world("gather_across_devices=True") if loss.gather_across_devices else None
    normalize = loss.similarity_fct in (cos_sim, pytorch_cos_sim)
    if not normalize and loss.similarity_fct is not dot_score:
        raise NotImplementedError(f"similarity_fct must be cos_sim or dot_score of util, got {loss.similarity_fct!r}")
    # In float32 at least, as cos_sim and dot_score do.
    queries, positives, *negatives = (e if e.dtype == torch.float64 else e.float() for e in embeddings)
    return loss._of_group(
        ranking_loss,
        queries,
        positives,
        negatives,
        temperature=1 / loss.scale,
        directions=loss.directions,
        partition_mode=loss.partition_mode,
        hardness_mode=loss.hardness_mode,
        hardness_strength=loss.hardness_strength,
        normalize=normalize,
        group=group,
    )


class MultipleNegativesRankingLoss(SeveralProcesses, original.MultipleNegativesRankingLoss):
    """sentence-transformers' MultipleNegativesRankingLoss."""

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        return _ranking(self, embeddings)


class CachedMultipleNegativesRankingLoss(SeveralProcesses, original.CachedMultipleNegativesRankingLoss):
    """sentence-transformers' CachedMultipleNegativesRankingLoss; mini_batch_size is that of the model alone."""

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        loss = _ranking(self, [torch.cat(column) for column in reps])
        if not with_backward:
            return loss
        loss.backward()
        return loss.detach()


class GISTEmbedLoss(SeveralProcesses, original.GISTEmbedLoss):
    """sentence-transformers' GISTEmbedLoss.

    With gather_across_devices anchors, too, are contrasted with those of all processes, as in one with all rows. There
    a process has its own alone, for which original_gradients = True with contrast_anchors raises NotImplementedError.
    """

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        group = world("gather_across_devices=True") if self.gather_across_devices else None
        if self._as_original(group) and self.contrast_anchors:
            raise NotImplementedError(
                "original_gradients and gather_across_devices=True need contrast_anchors=False in GISTEmbedLoss: "
                "the original contrasts the anchors of each process with one another alone"
            )
        sentence_features = list(sentence_features)
        guide_features = [dict(features) for features in sentence_features]
        embeddings = embed_columns(self.model, sentence_features)
        with torch.no_grad():
            if self.must_retokenize:
                guide_features = [self._tokens_of_guide(features) for features in sentence_features]
            guides = embed_columns(self.guide, guide_features)
        if len(embeddings) not in (2, 3):
            raise ValueError(f"Expected 2 or 3 embeddings, got {len(embeddings)}")
        queries, positives, *negatives = embeddings
        return self._of_group(
            guided_ranking_loss,
            queries,
            positives,
            negatives[0] if negatives else None,
            guides,
            self.temperature,
            margin=self.margin,
            relative=self.margin_strategy == "relative",
            contrast_anchors=self.contrast_anchors,
            contrast_positives=self.contrast_positives,
            group=group,
        )

    def _tokens_of_guide(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens: Any = features["input_ids"]
        if "cu_seq_lens_q" in features:
            flat, ends = tokens[0].tolist(), features["cu_seq_lens_q"].tolist()
            tokens = [flat[start:end] for start, end in pairwise(ends)]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return batch_to_device(self.guide.preprocess(texts), self.guide.device)


_SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """sentence-transformers' MultipleNegativesSymmetricRankingLoss, which it deprecates."""

    def __init__(self, model, scale=20.0, similarity_fct=cos_sim, gather_across_devices=False):
        super().__init__(model, scale, similarity_fct, gather_across_devices, **_SYMMETRIC)


class CachedMultipleNegativesSymmetricRankingLoss(CachedMultipleNegativesRankingLoss):
    """sentence-transformers' CachedMultipleNegativesSymmetricRankingLoss, which it deprecates."""

    def __init__(
        self,
        model,
        scale=20.0,
        similarity_fct=cos_sim,
        mini_batch_size=32,
        mini_batch_num_tokens=None,
        gather_across_devices=False,
        show_progress_bar=False,
    ):
        super().__init__(
            model,
            scale,
            similarity_fct,
            mini_batch_size,
            mini_batch_num_tokens,
            gather_across_devices,
            show_progress_bar=show_progress_bar,
            **_SYMMETRIC,
        )
