"""The research release's own entry points, so that code written for it runs unchanged: only the import is another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mobileclip.encoders import DualEncoder, DualEncoderSpec, load_model
from mobileclip.encoders.checkpoints import resolve_spec
from mobileclip.reparam import reparameterize as folded

if TYPE_CHECKING:
    from mobileclip.data.image import ImageTransform
    from mobileclip.data.tokenizer import Tokenizer


def create_model_and_transforms(
    model_name: str,
    pretrained: str | None = None,
    reparameterize: bool = True,  # noqa: FBT001, FBT002 - the release's signature
    device: str | torch.device = "cpu",
) -> tuple[DualEncoder, None, ImageTransform]:
    """Return a model in evaluation mode, None, and the transform of its images.

    Args:
        model_name: such as `mobileclip_s0`.
        pretrained: a checkpoint file in any known layout, or `hf-hub:owner/name`; without it, weights are random.
        reparameterize: fold the model for inference.
        device: where to.

    Raises:
        ValueError: if the name is unknown or is a single tower's.
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file does not fit the model.

    Differs: folding leaves no batch norm behind, and a checkpoint that does not fit is an error, not a silent mix.

    Examples:
        >>> from PIL import Image
        >>> model, _, preprocess = create_model_and_transforms("mobileclip_s0")
        >>> preprocess(Image.new("RGB", (640, 480))).shape, model.training
        (torch.Size([3, 256, 256]), False)
    """
    from mobileclip.data.image import ImageTransform

    spec = _dual(model_name)
    if pretrained is not None:
        model = load_model(pretrained, spec, fold=reparameterize, device=device)
        assert isinstance(model, DualEncoder)
    else:
        model = spec.build().eval().to(device)
        model = folded(model) if reparameterize else model
    return model, None, ImageTransform(model.spec.image.input)


def get_tokenizer(model_name: str) -> Tokenizer:
    """Return the tokenizer of a model: texts to ids `(batch, context_length)`.

    Raises:
        ValueError: if the name is unknown or is a single image tower's.

    Examples:
        >>> get_tokenizer("mobileclip_s0")(["a cat"])[0, :5]
        tensor([49406,   320,  2368, 49407,     0])
    """
    from mobileclip.data.tokenizer import Tokenizer

    return Tokenizer(_dual(model_name).text.input)


def _dual(model_name: str) -> DualEncoderSpec:
    spec = resolve_spec(model_name)
    if not isinstance(spec, DualEncoderSpec):
        raise ValueError(f"{model_name!r} is a single tower; mobileclip.build_model({model_name!r}) builds it")
    return spec
