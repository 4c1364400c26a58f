"""The layout of transformers' vision-text dual encoder, with timm's image tower and a text tower."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from mobileclip.encoders.checkpoints.layouts import (
    IMAGE_SHAPES,
    TIMM_RULES,
    TWO_EMPTY_DIMS,
    ModelSpec,
    OpenClipLayout,
    Rule,
    TowerSpec,
    layouts,
    text_mixers,
)
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec
from mobileclip.encoders.text import MCtSpec
from mobileclip.encoders.vit import ViTSpec

_RULES: Sequence[Rule] = (
    (r"^(text_encoder\..*\.mixer)\.branches\.0\.norm\.", r"\1.batchnorm_conv."),
    (r"^(text_encoder\..*\.mixer)\.branches\.0\.conv\.", r"\1.conv."),
    (r"^(text_encoder\..*\.mixer)\.skip\.", r"\1.batchnorm_skip."),
    (r"^(text_encoder\..*\.token_mixer)\.norm\.skip\.", r"\1.reference_batchnorm."),
    (r"^(text_encoder\..*)\.ffn\.conv\.norm\.", r"\1.conv_feed_forward.depthwise_batchnorm."),
    (r"^(text_encoder\..*)\.ffn\.conv\.conv\.", r"\1.conv_feed_forward.depthwise_conv."),
    (r"^(text_encoder\..*)\.layer_scale\.gamma$", r"\1.layer_scale"),
    (r"^(text_encoder\..*)\.attention_norm\.", r"\1.layer_norm1."),
    (r"^(text_encoder\..*)\.ffn_norm\.", r"\1.layer_norm2."),
    (r"^(text_encoder\..*)\.attention\.qkv\.", r"\1.self_attn.qkv_proj."),
    (r"^(text_encoder\..*)\.attention\.project\.", r"\1.self_attn.out_proj."),
    (r"^(text_encoder\..*)\.ffn\.", r"\1.mlp."),
    (r"^text_encoder\.token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^text_encoder\.position$", "text_model.embeddings.position_embedding.position_embedding"),
    (r"^text_encoder\.norm\.", "text_model.final_layer_norm."),
    (r"^text_encoder\.project\.", "text_projection."),
    (r"^text_encoder\.", "text_model."),
    *TIMM_RULES,
    (r"^image_encoder\.head\.(fc\.)?", "visual_projection."),
    (r"^image_encoder\.", "vision_model.timm_model."),
)
_QKV, _EACH = ".self_attn.qkv_proj.", tuple(f".self_attn.{one}_proj." for one in "qkv")
_PROJECTION, _INNER = "text_projection.weight", "text_model.projection.weight"
_POSITION = "text_model.embeddings.position_embedding.position_embedding"
# Names of `sam3_lite_text_text_model`, which attends to the padding, and of `clip_text_model`, which is causal.
_CAUSAL = (
    ("text_model.layers.", "text_model.encoder.layers."),
    ("position_embedding.position_embedding", "position_embedding.weight"),
)


class TransformersLayout(OpenClipLayout):
    """The layout of `VisionTextDualEncoderModel` with `timm_wrapper` and a text model.

    The text model is `sam3_lite_text_text_model` or, for causal text towers, `clip_text_model`.

    Source: the public project huggingface/transformers.
    """

    def rules_of(self, names: Collection[str]) -> Sequence[Rule]:
        """Return the renaming rules, with transformers' different names for the MLPs of Text-RepMixer blocks."""
        mixed = [
            (rf"^(text_encoder\.layers\.{number})\.ffn\.fc", r"\1.conv_feed_forward.mlp.fc")
            for number in text_mixers(names)
        ]
        return [*mixed, *self.rules]

    def check(self, tower: TowerSpec) -> None:
        """Raise for towers that transformers cannot build."""
        if isinstance(tower, MCtSpec):
            return
        if isinstance(tower, ImageEncoderSpec) and tower.projection_bias:
            raise ValueError(
                "transformers projects images without a bias, but this model's projection has a bias; use the "
                "open_clip or mobileclip layout"
            )
        if isinstance(tower, ViTSpec):
            tower.input.require_rgb("transformers prepares images of")
        super().check(tower)

    def constants(self, tower: TowerSpec) -> dict[str, Tensor]:
        """Return no tensors, because the image projection has no bias."""
        del tower
        return {}

    def packed(self, tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """Return the tensors with separate queries, keys and values, under the names of transformers' text model.

        Raises:
            ValueError: if the model is a single tower.
        """
        if not isinstance(spec, DualEncoderSpec):
            raise ValueError("the transformers layout supports only image-text models; use the mobileclip layout")
        packed: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            parts = zip(_EACH, tensor.chunk(3), strict=True) if _QKV in name else [(_QKV, tensor)]
            packed |= {name.replace(_QKV, each): part.contiguous() for each, part in parts}
        if not _is_causal(spec):
            projection = packed[_PROJECTION]
            return {**packed, _INNER: torch.eye(projection.shape[1], dtype=projection.dtype)}
        packed[_POSITION] = packed[_POSITION][0, 0]
        return {_renamed(name, 0, 1): tensor for name, tensor in packed.items()}

    def unpacked(self, tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """Invert `packed`, and merge the two text projections into one projection."""
        held = {_renamed(name, 1, 0): one for name, one in tensors.items()} if _is_causal(spec) else dict(tensors)
        if _is_causal(spec) and _POSITION in held:
            held[_POSITION] = held[_POSITION][None, None]
        if _INNER in held and _PROJECTION in held and held[_INNER].shape[:1] == held[_PROJECTION].shape[1:]:
            held[_PROJECTION] = held[_PROJECTION] @ held.pop(_INNER)
        for name in [name for name in held if _EACH[0] in name]:
            each = [name.replace(_EACH[0], other) for other in _EACH]
            if all(one in held for one in each):
                held[name.replace(_EACH[0], _QKV)] = torch.cat([held.pop(one) for one in each])
        return held


def _is_causal(spec: ModelSpec) -> bool:
    return isinstance(spec, DualEncoderSpec) and bool(getattr(spec.text, "causal", False))


def _renamed(name: str, old: int, new: int) -> str:
    for pair in _CAUSAL:
        name = name.replace(pair[old], pair[new])
    return name


layouts.add(
    "transformers",
    TransformersLayout(
        "transformers",
        image_prefix="vision_model.timm_model.",
        text_prefix="text_model.",
        rules=_RULES,
        shapes=(*IMAGE_SHAPES, (r"^text_encoder\.position$", TWO_EMPTY_DIMS)),
    ),
)
