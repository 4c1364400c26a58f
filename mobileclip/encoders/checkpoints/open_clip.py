"""The layout of open_clip's checkpoints, whose image tower is timm's (MobileCLIP S1, S2, B and all of MobileCLIP2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import attrs
import torch
from torch import Tensor

from mobileclip.blocks import (
    AttentionBlock,
    ConvNorm,
    LargeKernelConv,
    MobileOneBlock,
    RepCPE,
    RepMixer,
    RepMixerBlock,
    TransformerLayer,
)
from mobileclip.encoders.checkpoints.layouts import (
    ONE_EMPTY_DIM,
    TRANSPOSED,
    TWO_EMPTY_DIMS,
    As,
    Layout,
    Tables,
    TowerSpec,
    layouts,
    names,
)
from mobileclip.encoders.families import ImageEncoderSpec
from mobileclip.encoders.mci import MCi, MCiSpec, Stage
from mobileclip.encoders.text import MCtSpec, TextEncoder
from mobileclip.encoders.vit import ViT, ViTSpec

TIMM_VIT = (0, 1e-6)  # stem padding, epsilon of the norms of a ViT with a convolutional stem

GATE = {"squeeze_excite.reduce": As("se.fc1"), "squeeze_excite.expand": As("se.fc2")}

IMAGE_TABLES: Tables = {
    MCi: {"head.conv": As("final_conv"), "head.project": As("head.fc")},
    Stage: {"downsample": As("downsample.proj"), "position": As("pos_emb")},
    ViT: {
        "stem.conv1": As("patch_embed.backbone.0"),
        "stem.conv2": As("patch_embed.backbone.1"),
        "stem.conv3": As("patch_embed.backbone.2.conv"),
        "stem.conv": As("patch_embed.proj"),
        "class_token": As("cls_token", TWO_EMPTY_DIMS),
        "position": As("pos_embed", ONE_EMPTY_DIM),
        "norm_before": As("norm_pre"),
        "layers": As("blocks"),
        "project": As("head"),
    },
    ConvNorm: names(norm="bn"),
    MobileOneBlock: {
        **names(branches="conv_kxk", scale="conv_scale", skip="identity", conv="reparam_conv"),
        **GATE,
    },
    RepMixer: {"weight": As("reparam_conv.weight"), "bias": As("reparam_conv.bias")},
    RepMixerBlock: names(ffn="mlp"),
    LargeKernelConv: {**names(large="large_conv", small="small_conv", conv="reparam_conv"), **GATE},
    RepCPE: {"conv": As("pos_enc"), "weight": As("reparam_conv.weight"), "bias": As("reparam_conv.bias")},
    AttentionBlock: {
        "attention.qkv": As("token_mixer.qkv"),
        "attention.project": As("token_mixer.proj"),
        "attention_scale": As("layer_scale_1"),
        "ffn": As("mlp"),
        "ffn_scale": As("layer_scale_2"),
    },
    TransformerLayer: {
        "attention_norm": As("norm1"),
        "attention.qkv": As("attn.qkv"),
        "attention.project": As("attn.proj"),
        "ffn_norm": As("norm2"),
        "ffn": As("mlp"),
    },
}


TEXT_TABLES: Tables = {
    TextEncoder: {
        "position": As("positional_embedding"),
        "layers": As("transformer.resblocks"),
        "norm": As("ln_final"),
        "project.weight": As("text_projection", TRANSPOSED),
    },
    TransformerLayer: {
        "attention_norm": As("ln_1"),
        "attention.qkv.weight": As("attn.in_proj_weight"),
        "attention.qkv.bias": As("attn.in_proj_bias"),
        "attention.project": As("attn.out_proj"),
        "ffn_norm": As("ln_2"),
        "ffn.fc1": As("mlp.c_fc"),
        "ffn.fc2": As("mlp.c_proj"),
    },
}


class OpenClipLayout(Layout):
    """The layout of `open_clip_pytorch_model.bin` and of timm's image towers inside it.

    Source: the public projects mlfoundations/open_clip and huggingface/pytorch-image-models.
    """

    name = "open_clip"
    image_prefix = "visual.trunk."
    text_prefix = "text."

    def tables(self, tower: TowerSpec) -> Tables:
        """Return the tables of the image towers or those of the text towers."""
        return IMAGE_TABLES if isinstance(tower, ImageEncoderSpec) else TEXT_TABLES

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
        if not _has_projection(tower):
            return tower
        bias = state.get(self._bias_name(tower))
        return attrs.evolve(tower, projection_bias=bias is not None and bool(bias.any()))

    def constants(self, tower: TowerSpec) -> dict[str, Tensor]:
        """Return the bias of the image projection, zero: timm's heads always have one."""
        if not isinstance(tower, ImageEncoderSpec) or tower.projection_bias or not _has_projection(tower):
            return {}
        return {self._bias_name(tower): torch.zeros(tower.embedding_dim)}

    def _bias_name(self, tower: ImageEncoderSpec) -> str:
        return self.image_prefix + ("head.fc.bias" if isinstance(tower, MCiSpec) else "head.bias")


def _has_projection(tower: ImageEncoderSpec) -> bool:
    return not isinstance(tower, (MCiSpec, ViTSpec)) or tower.projection


def _timm_differs(tower: TowerSpec) -> TypeGuard[ViTSpec]:
    return isinstance(tower, ViTSpec) and tower.stem == "convolutional"


layouts.add(OpenClipLayout.name, OpenClipLayout())
