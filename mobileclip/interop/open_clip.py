"""Image-text models in open_clip: the `open_clip_config.json` of a model folder."""

from __future__ import annotations

from typing import Any

from mobileclip.encoders import DualEncoderSpec, ImageEncoderSpec, TextEncoderSpec, TextTransformerSpec
from mobileclip.inputs import TextInput
from mobileclip.interop.timm import timm_model

_FIXED_SIZE = 224


def open_clip_config(spec: DualEncoderSpec) -> dict[str, Any]:
    """Return the content of a folder's `open_clip_config.json`, from which open_clip builds the model.

    Args:
        spec: spec of the model, in training form.

    Raises:
        ValueError: if open_clip does not support the model's towers, image size or tokenizer.

    Examples:
        >>> open_clip_config(mobileclip.specs.mobileclip_s2())["model_cfg"]["embed_dim"]
        512
    """
    text, vision, image = _text(spec.text), _vision(spec.image), spec.image.input
    return {
        "model_cfg": {
            "embed_dim": spec.image.embedding_dim,
            "vision_cfg": vision,
            "text_cfg": text,
            "custom_text": True,
        },
        "preprocess_cfg": {
            "mean": list(image.mean),
            "std": list(image.std),
            "interpolation": image.interpolation,
            "resize_mode": "shortest",
        },
    }


def _vision(spec: ImageEncoderSpec) -> dict[str, Any]:
    model = timm_model(spec)
    if model.fixed_size and spec.input.size != _FIXED_SIZE:
        raise ValueError(
            f"open_clip builds timm's ViTs for images of {_FIXED_SIZE} pixels, but this ViT has position embeddings "
            f"for {spec.input.size} pixels"
        )
    if model.arguments:
        raise ValueError(
            "open_clip builds timm's image towers by name only, but this tower has different arguments from timm's "
            f"{model.architecture}"
        )
    return {
        "timm_model_name": model.architecture,
        "timm_model_pretrained": False,
        "timm_pool": model.pooling,
        "timm_proj": None,
        "timm_drop": 0.0,
        "timm_drop_path": 0.0,
        "image_size": spec.input.size,
    }


def _text(spec: TextEncoderSpec) -> dict[str, Any]:
    if not isinstance(spec, TextTransformerSpec):
        raise ValueError(f"open_clip has no text tower like {type(spec).__name__}")
    if spec.input.tokenizer is not None:
        raise ValueError("open_clip would use CLIP's tokenizer, but this model has its own tokenizer")
    if spec.input != TextInput(context_length=spec.input.context_length):
        raise ValueError(
            "open_clip uses CLIP's 49,408 tokens and pads with 0, but this model has different tokens or padding"
        )
    return {
        "context_length": spec.input.context_length,
        "vocab_size": spec.input.vocab_size,
        "width": spec.width,
        "heads": spec.num_heads,
        "layers": spec.depth,
        "no_causal_mask": not spec.causal,
    }
