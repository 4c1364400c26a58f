"""Specs of the published models. Each function returns a spec, registered under the function's name.

Source: MobileCLIP section 3.1 and Table 9 (mci0-2, vit_b16, text_base, text_mct); MobileCLIP2 (mci3-4, vit_l14); Vasu
et al., "FastViT", Table 1 (fastvit). Differs: FastViT's classifiers crop the central 90 % of an image; these specs
resize the whole image.

Examples:
    >>> mobileclip.specs.mobileclip_s2().image == mobileclip.specs.mci2()
    True
    >>> mobileclip.specs.mobileclip_b().text.causal
    True
"""

from __future__ import annotations

from collections.abc import Callable

from mobileclip.blocks import image_encoders, models, text_encoders
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.encoders.families import ImageEncoderSpec, TextEncoderSpec, TokenMixerSpec
from mobileclip.encoders.mci import AttentionSpec, MCiSpec, RepMixerSpec, StageSpec
from mobileclip.encoders.text import MCtSpec, TextTransformerSpec
from mobileclip.encoders.vit import ViTSpec
from mobileclip.inputs import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD, ImageInput


def mci0() -> MCiSpec:
    """Return the spec of MobileCLIP-S0's image encoder."""
    return _four_stages((64, 128, 256, 512), depths=(2, 6, 10, 2))


def mci1() -> MCiSpec:
    """Return the spec of MobileCLIP-S1's image encoder."""
    return _four_stages((64, 128, 256, 512), depths=(4, 12, 20, 4))


def mci2() -> MCiSpec:
    """Return the spec of MobileCLIP-S2's image encoder."""
    return _four_stages((80, 160, 320, 640), depths=(4, 12, 24, 4))


def mci3() -> MCiSpec:
    """Return the spec of MobileCLIP2-S3's image encoder."""
    return _five_stages((96, 192, 384, 768, 1536), depths=(2, 12, 24, 4, 2))


def mci4() -> MCiSpec:
    """Return the spec of MobileCLIP2-S4's image encoder."""
    return _five_stages((128, 256, 512, 1024, 2048), depths=(2, 12, 24, 4, 4))


def fastvit_t8() -> MCiSpec:
    """Return the spec of FastViT-T8 without its classifier; embeddings are the pooled features."""
    return _fastvit((48, 96, 192, 384), depths=(2, 2, 4, 2), ffn_ratio=3.0)


def fastvit_t12() -> MCiSpec:
    """Return the spec of FastViT-T12 without its classifier."""
    return _fastvit((64, 128, 256, 512), depths=(2, 2, 6, 2), ffn_ratio=3.0)


def fastvit_s12() -> MCiSpec:
    """Return the spec of FastViT-S12 without its classifier."""
    return _fastvit((64, 128, 256, 512), depths=(2, 2, 6, 2))


def fastvit_sa12() -> MCiSpec:
    """Return the spec of FastViT-SA12 without its classifier, with attention in the last stage."""
    return _fastvit((64, 128, 256, 512), depths=(2, 2, 6, 2), attention=(AttentionSpec(),))


def fastvit_sa24() -> MCiSpec:
    """Return the spec of FastViT-SA24 without its classifier."""
    return _fastvit((64, 128, 256, 512), depths=(4, 4, 12, 4), attention=(AttentionSpec(),))


def fastvit_sa36() -> MCiSpec:
    """Return the spec of FastViT-SA36 without its classifier."""
    return _fastvit((64, 128, 256, 512), depths=(6, 6, 18, 6), attention=(AttentionSpec(),))


def fastvit_ma36() -> MCiSpec:
    """Return the spec of FastViT-MA36 without its classifier."""
    return _fastvit((76, 152, 304, 608), depths=(6, 6, 18, 6), attention=(AttentionSpec(),))


def vit_b16() -> ViTSpec:
    """Return the spec of MobileCLIP-B's image encoder: ViT-B/16 with a convolutional stem."""
    return ViTSpec()


def vit_l14() -> ViTSpec:
    """Return the spec of MobileCLIP2-L-14's image encoder."""
    return ViTSpec(
        width=1024,
        depth=24,
        num_heads=16,
        patch_size=14,
        stem="patch",
        class_position=True,
        norm_before=True,
        embedding_dim=768,
        input=ImageInput(size=224, interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD),
    )


def text_base() -> TextTransformerSpec:
    """Return the spec of the 12-layer text encoder of width 512."""
    return TextTransformerSpec()


def text_base_768() -> TextTransformerSpec:
    """Return the spec of the 12-layer text encoder of width 768 (S3, S4, L-14)."""
    return TextTransformerSpec(width=768, num_heads=12, embedding_dim=768)


def text_mct() -> MCtSpec:
    """Return the spec of MobileCLIP-S0's text encoder: four transformer layers between two Text-RepMixer blocks."""
    return MCtSpec()


def text_mct_768() -> MCtSpec:
    """Return the spec of MobileCLIP-S0's text encoder at width 768."""
    return MCtSpec(width=768, num_heads=12, embedding_dim=768)


def mobileclip_s0() -> DualEncoderSpec:
    """Return the spec of MobileCLIP-S0."""
    return DualEncoderSpec(image=mci0(), text=text_mct())


def mobileclip_s1() -> DualEncoderSpec:
    """Return the spec of MobileCLIP-S1."""
    return DualEncoderSpec(image=mci1(), text=text_base())


def mobileclip_s2() -> DualEncoderSpec:
    """Return the spec of MobileCLIP-S2."""
    return DualEncoderSpec(image=mci2(), text=text_base())


def mobileclip_b() -> DualEncoderSpec:
    """Return the spec of MobileCLIP-B."""
    return DualEncoderSpec(image=vit_b16(), text=TextTransformerSpec(causal=True))


def mobileclip_blt() -> DualEncoderSpec:
    """Return the spec of MobileCLIP-B (LT): MobileCLIP-B's architecture, trained longer."""
    return mobileclip_b()


def mobileclip_s3() -> DualEncoderSpec:
    """Return the spec of MobileCLIP-S3: the architecture of MobileCLIP2-S3, trained on DataCompDR-1B."""
    return DualEncoderSpec(image=mci3(), text=text_base_768())


def mobileclip_s4() -> DualEncoderSpec:
    """Return the spec of MobileCLIP-S4: the architecture of MobileCLIP2-S4, trained on DataCompDR-1B."""
    return DualEncoderSpec(image=mci4(), text=text_base_768())


def mobileclip_l14() -> DualEncoderSpec:
    """Return the spec of MobileCLIP-L-14: the architecture of MobileCLIP2-L-14, trained on DataCompDR-1B."""
    return DualEncoderSpec(image=vit_l14(), text=text_base_768())


def mobileclip2_s0() -> DualEncoderSpec:
    """Return the spec of MobileCLIP2-S0: MobileCLIP-S0's image encoder and the 12-layer text encoder."""
    return DualEncoderSpec(image=mci0(), text=text_base())


def mobileclip2_s2() -> DualEncoderSpec:
    """Return the spec of MobileCLIP2-S2."""
    return mobileclip_s2()


def mobileclip2_b() -> DualEncoderSpec:
    """Return the spec of MobileCLIP2-B, trained with timm's image tower: no padding in the stem, norm epsilon 1e-6."""
    return DualEncoderSpec(image=ViTSpec(stem_padding=0, norm_eps=1e-6), text=TextTransformerSpec(causal=True))


def mobileclip2_s3() -> DualEncoderSpec:
    """Return the spec of MobileCLIP2-S3."""
    return mobileclip_s3()


def mobileclip2_s4() -> DualEncoderSpec:
    """Return the spec of MobileCLIP2-S4."""
    return mobileclip_s4()


def mobileclip2_l14() -> DualEncoderSpec:
    """Return the spec of MobileCLIP2-L-14."""
    return mobileclip_l14()


def _stages(
    dims: tuple[int, ...], depths: tuple[int, ...], *, attention: tuple[AttentionSpec, ...], num_gated: int = 0
) -> tuple[StageSpec, ...]:
    """Return stages with RepMixers, then stages with attention; the last `num_gated` have squeeze-and-excitation."""
    mixers: list[TokenMixerSpec] = [*(RepMixerSpec() for _ in dims[len(attention) :]), *attention]
    return tuple(
        StageSpec(dim=dim, depth=depth, mixer=mixer, squeeze_excite=stage >= len(dims) - num_gated)
        for stage, (dim, depth, mixer) in enumerate(zip(dims, depths, mixers, strict=True))
    )


def _four_stages(dims: tuple[int, int, int, int], *, depths: tuple[int, int, int, int]) -> MCiSpec:
    return MCiSpec(stages=_stages(dims, depths, attention=(AttentionSpec(),), num_gated=2))


def _five_stages(dims: tuple[int, int, int, int, int], *, depths: tuple[int, int, int, int, int]) -> MCiSpec:
    return MCiSpec(
        stages=_stages(dims, depths, attention=(AttentionSpec(norm="layer"),) * 2),
        ffn_ratio=4.0,
        stem_scale_branch=False,
        embedding_dim=768,
        input=ImageInput(size=256, mean=OPENAI_MEAN, std=OPENAI_STD),
    )


def _fastvit(
    dims: tuple[int, int, int, int],
    *,
    depths: tuple[int, int, int, int],
    ffn_ratio: float = 4.0,
    attention: tuple[AttentionSpec, ...] = (),
) -> MCiSpec:
    spec = MCiSpec(
        stages=_stages(dims, depths, attention=attention),
        ffn_ratio=ffn_ratio,
        downsample_activation=False,
        input=ImageInput(size=256, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )
    return spec.without_projection()


_image: Callable[[], ImageEncoderSpec]
_text: Callable[[], TextEncoderSpec]
for _image in (
    *(mci0, mci1, mci2, mci3, mci4, vit_b16, vit_l14),
    *(fastvit_t8, fastvit_t12, fastvit_s12, fastvit_sa12, fastvit_sa24, fastvit_sa36, fastvit_ma36),
):
    image_encoders.add(_image.__name__, _image())
    if _image.__name__.startswith("mci"):
        image_encoders.add_alias(f"fastvit_{_image.__name__}", _image.__name__)  # timm's name
for _text in (text_base, text_base_768, text_mct, text_mct_768):
    text_encoders.add(_text.__name__, _text())
for _model in (
    *(mobileclip_s0, mobileclip_s1, mobileclip_s2, mobileclip_b, mobileclip_blt),
    *(mobileclip_s3, mobileclip_s4, mobileclip_l14),
    *(mobileclip2_s0, mobileclip2_s2, mobileclip2_b, mobileclip2_s3, mobileclip2_s4, mobileclip2_l14),
):
    models.add(_model.__name__, _model())
