"""Towers, the dual encoder, specs of the published models, and checkpoints.

This subpackage composes blocks into towers; new blocks belong in `blocks`, new losses in `losses`.
"""

from mobileclip.encoders.checkpoints import (
    PACKAGED as PACKAGED,  # used by `mobileclip.collections`, like the other aliases below
    CheckpointError,
    ModelSpec,
    load_backbone,
    load_model,
    packaged as packaged,
    save_model,
)
from mobileclip.encoders.checkpoints.loading import is_other_model as is_other_model
from mobileclip.encoders.checkpoints.published import is_export as is_export
from mobileclip.encoders.classifier import Classifier, ClassifierSpec
from mobileclip.encoders.coca import CoCa, CoCaSpec
from mobileclip.encoders.dual import DualEncoder, DualEncoderSpec
from mobileclip.encoders.families import (
    ImageEncoderSpec,
    TextEncoderSpec,
    TokenMixerSpec,
    image_encoder_families,
    text_encoder_families,
    token_mixers,
)
from mobileclip.encoders.foreign import (
    ForeignTower,
    OpenClipImageSpec,
    OpenClipTextSpec,
    TransformersImageSpec,
    TransformersTextSpec,
)
from mobileclip.encoders.mci import AttentionSpec, MCi, MCiSpec, RepMixerSpec, StageSpec
from mobileclip.encoders.text import MCtSpec, TextEncoder, TextTransformerSpec
from mobileclip.encoders.towers import SupportsLocalEmbeddings
from mobileclip.encoders.vit import ViT, ViTSpec

__all__ = [
    "AttentionSpec",
    "CheckpointError",
    "Classifier",
    "ClassifierSpec",
    "CoCa",
    "CoCaSpec",
    "DualEncoder",
    "DualEncoderSpec",
    "ForeignTower",
    "ImageEncoderSpec",
    "MCi",
    "MCiSpec",
    "MCtSpec",
    "ModelSpec",
    "OpenClipImageSpec",
    "OpenClipTextSpec",
    "RepMixerSpec",
    "StageSpec",
    "SupportsLocalEmbeddings",
    "TextEncoder",
    "TextEncoderSpec",
    "TextTransformerSpec",
    "TokenMixerSpec",
    "TransformersImageSpec",
    "TransformersTextSpec",
    "ViT",
    "ViTSpec",
    "image_encoder_families",
    "load_backbone",
    "load_model",
    "save_model",
    "text_encoder_families",
    "token_mixers",
]
