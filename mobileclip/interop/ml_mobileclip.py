"""Entry points of Apple's ml-mobileclip, so that code for ml-mobileclip only needs a different import.

`OfficialLayout` in `mobileclip.encoders.checkpoints.layouts` maps the tensor names of Apple's files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mobileclip.blocks import models
from mobileclip.encoders import DualEncoder, DualEncoderSpec, load_model
from mobileclip.encoders.checkpoints import PRETRAINED, TAGS, resolve_spec, tagged
from mobileclip.encoders.checkpoints.tensors import spec_of_size
from mobileclip.reparam import reparameterize as folded

if TYPE_CHECKING:
    from mobileclip.data.images.transform import ImageTransform
    from mobileclip.data.text.tokenizer import Tokenizer


def create_model_and_transforms(
    model_name: str,
    pretrained: str | None = None,
    reparameterize: bool = True,  # noqa: FBT001, FBT002 - the release's signature
    device: str | torch.device = "cpu",
    *,
    image_size: int | None = None,
    context_length: int | None = None,
) -> tuple[DualEncoder, None, ImageTransform]:
    """Return a model in evaluation mode, the value None, and the model's image transform.

    Args:
        model_name: name of a model, such as `mobileclip_s0`.
        pretrained: a checkpoint file in any known layout, `hf-hub:owner/name`, or open_clip's tag of published weights:
            `datacompdr`, `datacompdr_lt` or `dfndr2b`. None for random weights.
        reparameterize: whether to reparameterize the model for inference.
        device: device of the model.
        image_size: image size in pixels; None for the model's image size. See `mobileclip.encoders.load_model`.
        context_length: number of ids per text, at most the model's context length; None for the model's context length.
            Pass the same value to `get_tokenizer`.

    Raises:
        ValueError: if the name is unknown or names a single tower, the model has no published weights with the tag, or
            the model does not support the image size or context length.
        FileNotFoundError: if the file does not exist.
        CheckpointError: if names or shapes of tensors in the file do not match the model.

    Differs: folding removes all batch norms, and a checkpoint that does not match raises an error instead of being
        loaded partially.

    Examples:
        >>> from PIL import Image
        >>> model, _, preprocess = create_model_and_transforms("mobileclip_s0")
        >>> preprocess(Image.new("RGB", (640, 480))).shape, model.training
        (torch.Size([3, 256, 256]), False)
    """
    from mobileclip.data.images.transform import ImageTransform

    spec = _dual(model_name)
    if pretrained in TAGS and not Path(pretrained).exists():
        pretrained = PRETRAINED[tagged(models.named(model_name), pretrained)]
    if pretrained is not None:
        model = load_model(
            pretrained,
            spec,
            fold=reparameterize,
            device=device,
            image_size=image_size,
            context_length=context_length,
        )
        assert isinstance(model, DualEncoder)
    else:
        model = spec_of_size(spec, image_size=image_size, context_length=context_length).build().eval().to(device)
        model = folded(model) if reparameterize else model
    return model, None, ImageTransform(model.spec.image.input)


def get_tokenizer(model_name: str, *, context_length: int | None = None) -> Tokenizer:
    """Return the tokenizer of a model, which maps texts to ids `(batch, context_length)`.

    Args:
        model_name: name of a model, such as `mobileclip_s0`.
        context_length: number of ids per text; None for the model's context length.

    Raises:
        ValueError: if the name is unknown or names a single tower.

    Examples:
        >>> get_tokenizer("mobileclip_s0")(["a cat"])[0, :5]
        tensor([49406,   320,  2368, 49407,     0])
    """
    from mobileclip.data.text.tokenizer import Tokenizer

    return Tokenizer(spec_of_size(_dual(model_name), context_length=context_length).text.input)


def _dual(model_name: str) -> DualEncoderSpec:
    spec = resolve_spec(model_name)
    if not isinstance(spec, DualEncoderSpec):
        raise ValueError(f"{model_name!r} is a single tower; build it with mobileclip.build_model({model_name!r})")
    return spec
