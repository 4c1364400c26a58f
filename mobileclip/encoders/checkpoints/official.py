"""The layout of the research release's checkpoints (MobileCLIP S0, S1, S2, B)."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
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
from mobileclip.encoders.mci import MCi, MCiSpec
from mobileclip.encoders.text import TextEncoder
from mobileclip.encoders.vit import ViT, ViTSpec

RELEASE_VIT = (1, 1e-5)  # stem padding, epsilon of the norms

BLOCKS: Tables = {
    ConvNorm: names(norm="bn"),
    MobileOneBlock: {
        **names(branches="rbr_conv", scale="rbr_scale", skip="rbr_skip", squeeze_excite="se"),
        "conv": As("reparam_conv"),
    },
    RepMixer: {
        "layer_scale.gamma": As("layer_scale"),
        "weight": As("reparam_conv.weight"),
        "bias": As("reparam_conv.bias"),
    },
    RepMixerBlock: {"layer_scale.gamma": As("layer_scale"), "ffn": As("convffn")},
    TransformerLayer: {
        "attention_norm": As("pre_norm_mha.0"),
        "attention.qkv": As("pre_norm_mha.1.qkv_proj"),
        "attention.project": As("pre_norm_mha.1.out_proj"),
        "ffn_norm": As("pre_norm_ffn.0"),
        "ffn.fc1": As("pre_norm_ffn.1"),
        "ffn.fc2": As("pre_norm_ffn.4"),
    },
}

MCI_BLOCKS: Tables = {
    LargeKernelConv: {
        **names(large="lkb_origin", small="small_conv", conv="lkb_reparam"),
        "squeeze_excite.reduce": As("se.fc1"),
        "squeeze_excite.expand": As("se.fc2"),
    },
    RepCPE: {
        "conv": As("pe"),
        "weight": As("reparam_conv.weight"),
        "bias": As("reparam_conv.bias"),
    },
    AttentionBlock: {
        "attention.qkv": As("token_mixer.qkv"),
        "attention.project": As("token_mixer.proj"),
        "attention_scale.gamma": As("layer_scale_1"),
        "ffn": As("convffn"),
        "ffn_scale.gamma": As("layer_scale_2"),
    },
}

VIT: Tables = {
    ViT: {
        "stem.conv1.conv": As("patch_emb.0.block.conv"),
        "stem.conv1.norm": As("patch_emb.0.block.norm"),
        "stem.conv2.conv": As("patch_emb.1.block.conv"),
        "stem.conv2.norm": As("patch_emb.1.block.norm"),
        "stem.conv3": As("patch_emb.2.block.conv"),
        "class_token": As("cls_token", TWO_EMPTY_DIMS),
        "position": As("pos_embed.pos_embed.pos_embed", TWO_EMPTY_DIMS),
        "layers": As("transformer"),
        "norm": As("post_transformer_norm"),
        "project.weight": As("classifier.proj", TRANSPOSED),
    },
}


TEXT: Tables = {
    TextEncoder: {
        "token_embedding": As("embedding_layer"),
        "position": As("positional_embedding.pos_embed.pos_embed", TWO_EMPTY_DIMS),
        "layers": As("transformer"),
        "norm": As("final_layer_norm"),
        "project.weight": As("projection_layer", TRANSPOSED),
    },
}


class OfficialLayout(Layout):
    """The layout of `mobileclip_s0.pt` and its kin.

    Source: the public repository apple/ml-mobileclip.
    """

    name = "official"
    image_prefix = "image_encoder.model."
    text_prefix = "text_encoder."

    def tables(self, tower: TowerSpec) -> Tables:
        """Return the tables; the release counts downsampling, positional encoding and blocks through all stages."""
        if not isinstance(tower, MCiSpec):
            return {**BLOCKS, **VIT, **TEXT}
        encoder = {
            "stem": As("patch_embed"),
            **_numbered_network(tower),
            "head.conv": As("conv_exp"),
            "head.project.weight": As("head.proj", TRANSPOSED),
        }
        return {**BLOCKS, **MCI_BLOCKS, MCi: encoder}

    def check(self, tower: TowerSpec) -> None:
        """Raise for towers that the release cannot build."""
        if isinstance(tower, ImageEncoderSpec) and tower.projection_bias:
            raise ValueError(
                "the official layout has no place for the bias of the image projection that this model has "
                "(it came with an open_clip checkpoint); convert it to the open_clip layout or to our own"
            )
        if isinstance(tower, ViTSpec) and tower.stem != "convolutional":
            raise ValueError("the official layout has no ViT with a patch stem; use the open_clip layout or our own")
        if isinstance(tower, ViTSpec) and (tower.stem_padding, tower.norm_eps) != RELEASE_VIT:
            raise ValueError(
                f"the release's ViT pads its stem by {RELEASE_VIT[0]} with norm_eps={RELEASE_VIT[1]}, this one by "
                f"{tower.stem_padding} with {tower.norm_eps} (as timm builds it): the release would compute other "
                "embeddings from the same weights; use the open_clip layout or our own"
            )

    def adapted(self, tower: ImageEncoderSpec, state: Mapping[str, Tensor]) -> ImageEncoderSpec:
        """Return `tower` with the release's stem padding and without a bias on the image projection."""
        del state
        if isinstance(tower, ViTSpec) and tower.stem == "convolutional":
            padding, eps = RELEASE_VIT
            tower = attrs.evolve(tower, stem_padding=padding, norm_eps=eps)
        return attrs.evolve(tower, projection_bias=False)


def _numbered_network(spec: MCiSpec) -> dict[str, As]:
    parts: list[tuple[str, str]] = []
    for number, stage in enumerate(spec.stages):
        if number:
            parts.append((f"stages.{number}.downsample", ".proj"))
        if stage.mixer.has_position:
            parts.append((f"stages.{number}.position", ""))
        parts.append((f"stages.{number}.blocks", ""))
    return {own: As(f"network.{index}{suffix}") for index, (own, suffix) in enumerate(parts)}


layouts.add(OfficialLayout.name, OfficialLayout())
