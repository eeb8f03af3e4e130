"""open_clip's ClipLoss, SigLipLoss, CoCaLoss and DistillClipLoss (of 3.3.0), without the logits."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import loss as original
from torch import Tensor

from ..losses import clip_loss, siglip_loss
from ..operator.computation import without_autocast
from ..operator.global_batch import GlobalBatch, Shards
from ..operator.sharded import all_columns
from ..scores import PairwiseScores
from ._processes import SeveralProcesses, with_whole_gradient, world
from ._small import is_small


class ClipLoss(SeveralProcesses, original.ClipLoss):
    """open_clip's ClipLoss. A logit_bias has gradient 0, as there, where the softmax is the same for any.

    With world_size above 1 every process has the loss of the whole batch and, once DDP has averaged them, its
    gradients, whatever local_loss and gather_with_grad say. With original_gradients = True they say it as there:
    local_loss=True gives each process the loss of its own anchors; without gather_with_grad candidates of others get no
    gradient, so that features have 1/W of it or, where the loss is local, that of anchors alone.
    """

    def forward(self, image_features, text_features, logit_scale, logit_bias=None, output_dict=False):
        group = self._group()
        if self._is_local(group):
            both = self._of_own_anchors(self._pairs(image_features, text_features, group), logit_scale, group)
            loss = torch.stack([scores.cross_entropy(1) for scores in both]).mean()
            loss = loss if logit_bias is None else loss + 0 * logit_bias
        else:
            scale = self._scale(logit_scale, group)
            loss = clip_loss(image_features, text_features, scale, logit_bias, group=group)
        return {"contrastive_loss": loss} if output_dict else loss

    def _group(self) -> Any:
        group = world(f"{type(self).__name__}(world_size=)", self.world_size)
        if not self._as_original(group):
            return group
        if self.use_horovod:
            raise NotImplementedError("original_gradients cannot be had with use_horovod=True, which scales them anew")
        return GlobalBatch(group, averaging=self.gather_with_grad)

    def _is_local(self, group: Any) -> bool:
        """Whether each process has the loss of its own anchors."""
        return self._as_original(group) and self.local_loss

    def _pairs(self, x: Tensor, y: Tensor, group: Any) -> list[tuple[Tensor, Tensor]]:
        """Anchors and candidates both ways."""
        if self._is_local(group) and not self.gather_with_grad:
            return [(x, y.detach()), (y, x.detach())]
        return [(x, y), (y, x)]

    def _of_own_anchors(
        self, pairs: list[tuple[Tensor, Tensor]], scale: float | Tensor, group: Any
    ) -> list[PairwiseScores]:
        """Scores whose rows alone are to be looked at: as rows and columns of one matrix they would take half the work,
        but what a process has of the scale's gradient would then be another part than in the original.
        """
        return [PairwiseScores(*pair, scale=scale, group=group) for pair in pairs]

    def _scale(self, scale: float | Tensor, group: Any) -> float | Tensor:
        """Of scores of the whole batch: in the original every process has all of its gradient."""
        return with_whole_gradient(scale, group) if self._as_original(group) else scale


class CoCaLoss(original.CoCaLoss, ClipLoss):
    """open_clip's CoCaLoss: its forward, with the contrastive part of ClipLoss above."""


class DistillClipLoss(original.DistillClipLoss, ClipLoss):
    """open_clip's DistillClipLoss: CLIP's loss, and the cross entropy of student and teacher."""

    def forward(
        self,
        image_features,
        text_features,
        logit_scale,
        dist_image_features,
        dist_text_features,
        dist_logit_scale,
        output_dict=False,
    ):
        group = self._group()
        student = self._pairs(image_features, text_features, group)
        teacher = self._pairs(dist_image_features, dist_text_features, group)
        if self._is_local(group):
            scores, back = self._of_own_anchors(student, logit_scale, group)
            rows, columns, joint = scores.logsumexp(1), back.logsumexp(1), (scores.joint + back.joint) / 2
            mean: Callable[[Tensor], Tensor] = torch.mean
        else:
            logit_scale, dist_logit_scale = (self._scale(scale, group) for scale in (logit_scale, dist_logit_scale))
            scores = PairwiseScores(*student[0], scale=logit_scale, group=group)
            (rows, columns), joint, mean = scores.logsumexps(), scores.joint, scores.mean
        contrastive_loss = mean((rows + columns) / 2 - joint)
        taught = sum(_taught(*both, dist_logit_scale, scores._shards) for both in zip(student, teacher, strict=True))
        distill_loss = mean((rows + columns - logit_scale * taught) / 2)
        if output_dict:
            return {"contrastive_loss": contrastive_loss, "distill_loss": distill_loss}
        return contrastive_loss, distill_loss


def _taught(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], scale: float | Tensor, shards: Shards | None
) -> Tensor:
    """(N,) mean of <x_i, y_j> of the student under the teacher's softmax over j, by attention of the teacher's."""
    (x, y), (query, key) = student, teacher
    if shards is not None:
        y, key = (all_columns(t, shards) for t in (y, key))
    query = scale * query
    # One width for all, which the attention that makes no matrix asks for.
    width = max(y.shape[1], key.shape[1])
    query, key, value = (F.pad(t, (0, width - t.shape[1]))[None, None] for t in (query, key, y))
    with without_autocast(x.device):
        mean = F.scaled_dot_product_attention(query, key.to(query.dtype), value.to(query.dtype), scale=1.0)[0, 0]
        return (x * mean[:, : y.shape[1]]).sum(1)


class SigLipLoss(SeveralProcesses, original.SigLipLoss):
    """open_clip's SigLipLoss, which runs itself up to 2^14 pairs.

    With world_size above 1 as ClipLoss above, whatever dist_impl says; with original_gradients = True each process has
    the loss of its own images, as there, and the same gradients.
    """

    dense_pairs = 2**14

    def forward(self, image_features, text_features, logit_scale, logit_bias, output_dict=False):
        if self.world_size == 1 and is_small(image_features, text_features, self.dense_pairs):
            return super().forward(image_features, text_features, logit_scale, logit_bias, output_dict)
        group = world("SigLipLoss(world_size=)", self.world_size)
        loss = self._of_group(siglip_loss, image_features, text_features, logit_scale, logit_bias, group=group)
        return {"contrastive_loss": loss} if output_dict else loss
