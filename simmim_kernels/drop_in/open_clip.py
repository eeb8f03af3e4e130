"""open_clip's ClipLoss, SigLipLoss, CoCaLoss and DistillClipLoss (of 3.3.0), without the logits."""

import torch.nn.functional as F
from open_clip import loss as original
from torch import Tensor

from ..losses import clip_loss, siglip_loss
from ..operator.computation import without_autocast
from ..operator.global_batch import Shards
from ..operator.sharded import all_columns
from ..scores import PairwiseScores
from ._processes import world
from ._small import is_small


class ClipLoss(original.ClipLoss):
    """open_clip's ClipLoss. A logit_bias has gradient 0, as there, where the softmax is the same for any.

    With world_size above 1 every process has the loss of the whole batch and, once DDP has averaged them, its
    gradients, whatever local_loss and gather_with_grad say.
    """

    def forward(self, image_features, text_features, logit_scale, logit_bias=None, output_dict=False):
        group = world("ClipLoss(world_size=)", self.world_size)
        loss = clip_loss(image_features, text_features, logit_scale, logit_bias, group=group)
        return {"contrastive_loss": loss} if output_dict else loss


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
        group = world("DistillClipLoss(world_size=)", self.world_size)
        student = (image_features, text_features)
        teacher = (dist_image_features, dist_text_features)
        scores = PairwiseScores(*student, scale=logit_scale, group=group)
        rows, columns = scores.logsumexps()
        contrastive_loss = scores.mean((rows + columns) / 2 - scores.joint)
        taught = _taught(student, teacher, dist_logit_scale, scores._shards)
        taught = taught + _taught(student[::-1], teacher[::-1], dist_logit_scale, scores._shards)
        distill_loss = scores.mean((rows + columns - logit_scale * taught) / 2)
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


class SigLipLoss(original.SigLipLoss):
    """open_clip's SigLipLoss, which runs itself up to 2^14 pairs; of several processes as ClipLoss above, whatever
    dist_impl says.
    """

    dense_pairs = 2**14

    def forward(self, image_features, text_features, logit_scale, logit_bias, output_dict=False):
        if self.world_size == 1 and is_small(image_features, text_features, self.dense_pairs):
            return super().forward(image_features, text_features, logit_scale, logit_bias, output_dict)
        group = world("SigLipLoss(world_size=)", self.world_size)
        loss = siglip_loss(image_features, text_features, logit_scale, logit_bias, group=group)
        return {"contrastive_loss": loss} if output_dict else loss
