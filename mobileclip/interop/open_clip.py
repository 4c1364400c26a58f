"""Dual encoders as open_clip builds them: the `open_clip_config.json` of a folder."""

from __future__ import annotations

from typing import Any

from mobileclip.encoders import DualEncoderSpec, ImageEncoderSpec, TextEncoderSpec, TextTransformerSpec
from mobileclip.inputs import TextInput
from mobileclip.interop.timm import timm_model

_FIXED_SIZE = 224


def open_clip_config(spec: DualEncoderSpec) -> dict[str, Any]:
    """Return the `open_clip_config.json` from which open_clip builds a model around the weights beside it.

    Args:
        spec: of the model, in training form.

    Raises:
        ValueError: if open_clip builds no such model.

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
            f"open_clip builds timm's ViTs for images of {_FIXED_SIZE} pixels, and this one has positions for "
            f"{spec.input.size}"
        )
    if model.arguments:
        raise ValueError(
            f"open_clip builds image towers of timm by name, and of another shape than {model.architecture}'s none"
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
        raise ValueError("open_clip would give it CLIP's tokens, and it has a tokenizer of its own")
    if spec.input != TextInput(context_length=spec.input.context_length):
        raise ValueError("open_clip pads CLIP's 49,408 tokens with 0, and this model takes others")
    return {
        "context_length": spec.input.context_length,
        "vocab_size": spec.input.vocab_size,
        "width": spec.width,
        "heads": spec.num_heads,
        "layers": spec.depth,
        "no_causal_mask": not spec.causal,
    }
