"""The layout of the research release's checkpoints (MobileCLIP S0, S1, S2, B)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import attrs
from torch import Tensor

from mobileclip.encoders.checkpoints.layouts import TRANSPOSED, TWO_EMPTY_DIMS, Layout, Rule, TowerSpec, layouts
from mobileclip.encoders.families import ImageEncoderSpec
from mobileclip.encoders.vit import ViTSpec

RELEASE_VIT = (1, 1e-5)  # stem padding, epsilon of the norms

_RULES: Sequence[Rule] = (
    (r"(\.branches\.\d+|\.scale|\.large|\.small|ffn\.conv)\.norm\.", r"\1.bn."),
    # Folded branches; where a mixer or a position itself is the convolution, it has no name of its own.
    (r"(\.stem\.\d+|\.downsample\.1|\.head\.conv)\.conv\.(weight|bias)$", r"\1.reparam_conv.\2"),
    (r"(\.downsample\.0)\.conv\.(weight|bias)$", r"\1.lkb_reparam.\2"),
    (r"(\.token_mixer|\.stages\.\d+\.position)\.(weight|bias)$", r"\1.reparam_conv.\2"),
    (r"(\.stages\.\d+\.position)\.conv\.", r"\1.pe."),
    (r"\.branches\.", ".rbr_conv."),
    (r"\.(scale|skip)\.", r".rbr_\1."),
    (r"\.large\.", ".lkb_origin."),
    (r"\.small\.", ".small_conv."),
    (r"(\.downsample\.0)\.squeeze_excite\.reduce\.", r"\1.se.fc1."),
    (r"(\.downsample\.0)\.squeeze_excite\.expand\.", r"\1.se.fc2."),
    (r"\.squeeze_excite\.", ".se."),
    (r"\.layer_scale\.gamma$", ".layer_scale"),
    (r"\.attention_scale\.gamma$", ".layer_scale_1"),
    (r"\.ffn_scale\.gamma$", ".layer_scale_2"),
    (r"(\.blocks\.\d+)\.attention\.qkv\.", r"\1.token_mixer.qkv."),
    (r"(\.blocks\.\d+)\.attention\.project\.", r"\1.token_mixer.proj."),
    (r"(\.blocks\.\d+)\.ffn\.", r"\1.convffn."),
    (r"\.attention_norm\.", ".pre_norm_mha.0."),
    (r"\.attention\.qkv\.", ".pre_norm_mha.1.qkv_proj."),
    (r"\.attention\.project\.", ".pre_norm_mha.1.out_proj."),
    (r"\.ffn_norm\.", ".pre_norm_ffn.0."),
    (r"\.ffn\.fc1\.", ".pre_norm_ffn.1."),
    (r"\.ffn\.fc2\.", ".pre_norm_ffn.4."),
    (r"^(\w+_encoder)\.layers\.", r"\1.transformer."),
    (r"^image_encoder\.stem\.conv1\.", "image_encoder.patch_emb.0.block."),
    (r"^image_encoder\.stem\.conv2\.", "image_encoder.patch_emb.1.block."),
    (r"^image_encoder\.stem\.conv3\.", "image_encoder.patch_emb.2.block.conv."),
    (r"^image_encoder\.stem\.", "image_encoder.patch_embed."),
    (r"^image_encoder\.class_token$", "image_encoder.cls_token"),
    (r"^image_encoder\.position$", "image_encoder.pos_embed.pos_embed.pos_embed"),
    (r"^image_encoder\.norm\.", "image_encoder.post_transformer_norm."),
    (r"^image_encoder\.project\.weight$", "image_encoder.classifier.proj"),
    (r"^image_encoder\.head\.conv\.", "image_encoder.conv_exp."),
    (r"^image_encoder\.head\.project\.weight$", "image_encoder.head.proj"),
    (r"^image_encoder\.", "image_encoder.model."),
    (r"^text_encoder\.token_embedding\.", "text_encoder.embedding_layer."),
    (r"^text_encoder\.position$", "text_encoder.positional_embedding.pos_embed.pos_embed"),
    (r"^text_encoder\.norm\.", "text_encoder.final_layer_norm."),
    (r"^text_encoder\.project\.weight$", "text_encoder.projection_layer"),
)
_PARTS = ("downsample", "position", "blocks")
_PART = re.compile(rf"image_encoder\.stages\.(\d+)\.({'|'.join(_PARTS)})\.")
_TEXT_MIXER = re.compile(r"text_encoder\.layers\.(\d+)\.token_mixer\.")


class OfficialLayout(Layout):
    """The layout of `mobileclip_s0.pt` and its kin.

    Source: the public repository apple/ml-mobileclip.
    """

    def rules_of(self, names: Collection[str]) -> Sequence[Rule]:
        """Return the rules; the release counts downsampling, positions and blocks through all stages."""
        parts = {(int(found[1]), _PARTS.index(found[2])) for found in map(_PART.match, names) if found}
        numbered = [
            (rf"\.model\.stages\.{stage}\.{_PARTS[part]}\.", f".model.network.{index}.{'' if part else 'proj.'}")
            for index, (stage, part) in enumerate(sorted(parts))
        ]
        mixers = {found[1] for found in map(_TEXT_MIXER.match, names) if found}
        mixed = [(rf"^(text_encoder\.layers\.{number})\.ffn\.", r"\1.convffn.") for number in sorted(mixers)]
        return [*mixed, *self.rules, *numbered]

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


layouts.add(
    "official",
    OfficialLayout(
        "official",
        image_prefix="image_encoder.model.",
        rules=_RULES,
        shapes=(
            (r"^image_encoder\.class_token$|^\w+_encoder\.position$", TWO_EMPTY_DIMS),
            (r"^\w+_encoder\.(head\.)?project\.weight$", TRANSPOSED),
        ),
    ),
)
