"""CLIP's and SigLIP's loss inside transformers' models (of 5.24), without the logits."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, SiglipModel
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.models.siglip.modeling_siglip import SiglipOutput

from ..losses import clip_loss, siglip_loss

Model = TypeVar("Model", CLIPModel, SiglipModel)


def apply_to_clip(model: CLIPModel) -> CLIPModel:
    """Has a CLIPModel make its loss without logits, and returns it.

    In training mode and with return_loss=True, as a Trainer has it, `loss` and the embeddings come back, and None for
    both logits; in evaluation, and without return_loss, all is as before.
    """

    def loss(text: Tensor, image: Tensor) -> Tensor:
        return clip_loss(text, image, model.logit_scale.exp())

    return _patched(model, CLIPModel, CLIPOutput, loss)


def apply_to_siglip(model: SiglipModel) -> SiglipModel:
    """Has a SiglipModel make its loss without logits, and returns it; as `apply_to_clip`."""

    def loss(text: Tensor, image: Tensor) -> Tensor:
        return siglip_loss(text, image, model.logit_scale.exp(), model.logit_bias)

    return _patched(model, SiglipModel, SiglipOutput, loss)


def _patched(model: Model, kind: type, output: type, loss: Callable[[Tensor, Tensor], Tensor]) -> Model:
    if not isinstance(model, kind):
        raise TypeError(f"model must be a {kind.__name__}, got {type(model).__name__}")
    original = model.forward

    @functools.wraps(original)
    def forward(
        input_ids=None, pixel_values=None, attention_mask=None, position_ids=None, return_loss=None,
        interpolate_pos_encoding=False, **kwargs,
    ):  # fmt: skip
        texts = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        images = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding}
        if not (return_loss and model.training):
            return original(**texts, **images, return_loss=return_loss, **kwargs)
        as_tuple = not kwargs.pop("return_dict", model.config.return_dict)
        image_output = model.get_image_features(**images, **kwargs, return_dict=True)
        text_output = model.get_text_features(**texts, **kwargs, return_dict=True)
        image, text = (F.normalize(found.pooler_output, dim=-1) for found in (image_output, text_output))
        found = output(
            loss=loss(text, image.to(text.device)),
            text_embeds=text,
            image_embeds=image,
            text_model_output=text_output,
            vision_model_output=image_output,
        )
        return found.to_tuple() if as_tuple else found

    model.forward = forward
    return model
