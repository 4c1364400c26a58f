"""The layouts of open_clip's checkpoints (MobileCLIP S1, S2, B, all of MobileCLIP2), and of timm's towers in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeGuard

import attrs
import torch
from torch import Tensor

from mobileclip.encoders.checkpoints.layouts import (
    ONE_EMPTY_DIM,
    TRANSPOSED,
    TWO_EMPTY_DIMS,
    Layout,
    Rule,
    TowerSpec,
    layouts,
)
from mobileclip.encoders.families import ImageEncoderSpec
from mobileclip.encoders.mci import MCiSpec
from mobileclip.encoders.text import MCtSpec
from mobileclip.encoders.vit import ViTSpec

TIMM_VIT = (0, 1e-6)  # stem padding, epsilon of the norms of a ViT with a convolutional stem

_TIMM_RULES: Sequence[Rule] = (
    (r"(\.branches\.\d+|\.scale|\.large|\.small|\.ffn\.conv|\.stem\.conv\d)\.norm\.", r"\1.bn."),
    # Folded branches; where a mixer or a position itself is the convolution, it has no name of its own.
    (r"(\.stem\.\d+|\.downsample\.\d|\.head\.conv)\.conv\.(weight|bias)$", r"\1.reparam_conv.\2"),
    (r"(\.token_mixer|\.stages\.\d+\.position)\.(weight|bias)$", r"\1.reparam_conv.\2"),
    (r"(\.stages\.\d+\.position)\.conv\.", r"\1.pos_enc."),
    (r"(\.stages\.\d+)\.position\.", r"\1.pos_emb."),
    (r"(\.stages\.\d+\.downsample)\.", r"\1.proj."),
    (r"\.branches\.", ".conv_kxk."),
    (r"\.scale\.", ".conv_scale."),
    (r"\.skip\.", ".identity."),
    (r"\.(large|small)\.", r".\1_conv."),
    (r"\.squeeze_excite\.reduce\.", ".se.fc1."),
    (r"\.squeeze_excite\.expand\.", ".se.fc2."),
    (r"\.attention_scale\.", ".layer_scale_1."),
    (r"\.ffn_scale\.", ".layer_scale_2."),
    (r"(\.blocks\.\d+)\.attention\.qkv\.", r"\1.token_mixer.qkv."),
    (r"(\.blocks\.\d+)\.attention\.project\.", r"\1.token_mixer.proj."),
    (r"^(image_encoder\..*)\.ffn\.", r"\1.mlp."),
    (r"^(image_encoder\.layers\.\d+)\.attention_norm\.", r"\1.norm1."),
    (r"^(image_encoder\.layers\.\d+)\.ffn_norm\.", r"\1.norm2."),
    (r"^(image_encoder\.layers\.\d+)\.attention\.qkv\.", r"\1.attn.qkv."),
    (r"^(image_encoder\.layers\.\d+)\.attention\.project\.", r"\1.attn.proj."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"^image_encoder\.stem\.conv1\.", "image_encoder.patch_embed.backbone.0."),
    (r"^image_encoder\.stem\.conv2\.", "image_encoder.patch_embed.backbone.1."),
    (r"^image_encoder\.stem\.conv3\.", "image_encoder.patch_embed.backbone.2.conv."),
    (r"^image_encoder\.stem\.conv\.", "image_encoder.patch_embed.proj."),
    (r"^image_encoder\.class_token$", "image_encoder.cls_token"),
    (r"^image_encoder\.position$", "image_encoder.pos_embed"),
    (r"^image_encoder\.norm_before\.", "image_encoder.norm_pre."),
    (r"^image_encoder\.project\.", "image_encoder.head."),
    (r"^image_encoder\.head\.conv\.", "image_encoder.final_conv."),
    (r"^image_encoder\.head\.project\.", "image_encoder.head.fc."),
)
_TEXT_RULES: Sequence[Rule] = (
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.ffn_norm\.", ".ln_2."),
    (r"\.attention\.qkv\.", ".attn.in_proj_"),
    (r"\.attention\.project\.", ".attn.out_proj."),
    (r"\.ffn\.fc1\.", ".mlp.c_fc."),
    (r"\.ffn\.fc2\.", ".mlp.c_proj."),
    (r"^text_encoder\.layers\.", "text_encoder.transformer.resblocks."),
    (r"^text_encoder\.position$", "text_encoder.positional_embedding"),
    (r"^text_encoder\.norm\.", "text_encoder.ln_final."),
    (r"^text_encoder\.project\.weight$", "text_encoder.text_projection"),
    (r"^text_encoder\.", "text."),
)


class OpenClipLayout(Layout):
    """The layout of `open_clip_pytorch_model.bin` and of timm's image towers inside it.

    Source: the public projects mlfoundations/open_clip and huggingface/pytorch-image-models.
    """

    def check(self, tower: TowerSpec) -> None:
        """Raise for towers that open_clip cannot build."""
        if isinstance(tower, MCtSpec):
            raise ValueError(
                "open_clip has no Text-RepMixer encoder, so its layout has no place for this model's text tower; "
                "use the official layout or our own"
            )
        if _timm_differs(tower) and (tower.stem_padding, tower.norm_eps) != TIMM_VIT:
            raise ValueError(
                f"timm's ViT pads its convolutional stem by {TIMM_VIT[0]} with norm_eps={TIMM_VIT[1]}, this one by "
                f"{tower.stem_padding} with {tower.norm_eps} (as the release builds it): open_clip would compute other "
                "embeddings from the same weights; use the official layout or our own"
            )

    def adapted(self, tower: ImageEncoderSpec, state: Mapping[str, Tensor]) -> ImageEncoderSpec:
        """Return `tower` with timm's stem padding, and with the image projection's bias where it is not zero."""
        if _timm_differs(tower):
            padding, eps = TIMM_VIT
            tower = attrs.evolve(tower, stem_padding=padding, norm_eps=eps)
        if not has_projection(tower):
            return tower
        bias = state.get(self._bias_name(tower))
        return attrs.evolve(tower, projection_bias=bias is not None and bool(bias.any()))

    def constants(self, tower: TowerSpec) -> dict[str, Tensor]:
        """Return the bias of the image projection, zero: timm's heads always have one."""
        if not isinstance(tower, ImageEncoderSpec) or tower.projection_bias or not has_projection(tower):
            return {}
        return {self._bias_name(tower): torch.zeros(tower.embedding_dim)}

    def _bias_name(self, tower: ImageEncoderSpec) -> str:
        return self.image_prefix + ("head.fc.bias" if isinstance(tower, MCiSpec) else "head.bias")


class TimmLayout(OpenClipLayout):
    """The layout of an image tower, or a classifier, that `timm.create_model` builds: a part of open_clip's.

    Source: the public project huggingface/pytorch-image-models.
    """

    def check(self, tower: TowerSpec) -> None:
        """Raise for text towers, and for image towers that timm cannot build."""
        if not isinstance(tower, ImageEncoderSpec):
            raise ValueError(
                "timm has image towers alone, so its layout has no place for a text tower; save the image tower "
                "(model.image_encoder, or --tower image), or use the open_clip layout or our own"
            )
        super().check(tower)

    def rules_of(self, names: Collection[str]) -> Sequence[Rule]:
        """Return the rules; a classifier's last layer is where the projection would be."""
        is_mci = any(name.startswith("image_encoder.stages.") for name in names)
        return [(r"^head\.", "image_encoder.head.project." if is_mci else "head."), *self.rules]


def has_projection(tower: TowerSpec) -> bool:
    """Return whether a tower ends with a projection."""
    return not isinstance(tower, (MCiSpec, ViTSpec)) or tower.projection


def _timm_differs(tower: TowerSpec) -> TypeGuard[ViTSpec]:
    return isinstance(tower, ViTSpec) and tower.stem == "convolutional"


_IMAGE_SHAPES = ((r"^image_encoder\.class_token$", TWO_EMPTY_DIMS), (r"^image_encoder\.position$", ONE_EMPTY_DIM))
layouts.add(
    "open_clip",
    OpenClipLayout(
        "open_clip",
        image_prefix="visual.trunk.",
        text_prefix="text.",
        rules=(*_TIMM_RULES, (r"^image_encoder\.", "visual.trunk."), *_TEXT_RULES),
        shapes=(*_IMAGE_SHAPES, (r"^text_encoder\.project\.weight$", TRANSPOSED)),
    ),
)
layouts.add(
    "timm",
    TimmLayout(
        "timm",
        image_prefix="",
        text_prefix="",
        rules=(*_TIMM_RULES, (r"^image_encoder\.", "")),
        shapes=_IMAGE_SHAPES,
        has_bare_towers=True,
    ),
)
