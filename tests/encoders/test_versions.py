"""A file of this version is read by the one before: a field that was added since is left out where it says nothing."""

from __future__ import annotations

import attrs
import pytest

from mobileclip.encoders import (
    AttentionSpec,
    ClassifierSpec,
    DualEncoderSpec,
    MCiSpec,
    MCtSpec,
    RepMixerSpec,
    StageSpec,
    TextTransformerSpec,
    ViTSpec,
    image_encoder_families,
    text_encoder_families,
    token_mixers,
)
from mobileclip.inputs import ImageInput, TextInput, TokenizerFile
from mobileclip.strict import LEFT_OUT_AT_DEFAULT, NOT_IN_JSON

IMAGE, TEXT = "embedding_dim input projection_bias", "embedding_dim input"
# What is in every file so far. A new field is not added here: it gets a default, and metadata=LEFT_OUT_AT_DEFAULT.
ALWAYS = {
    DualEncoderSpec: "image text",
    ClassifierSpec: "image num_classes",
    MCiSpec: f"{IMAGE} stages ffn_ratio layer_scale drop_path stem_scale_branch downsample_activation",
    ViTSpec: f"{IMAGE} width depth num_heads patch_size stem stem_padding class_position norm_before norm_eps",
    TextTransformerSpec: f"{TEXT} width num_heads depth causal",
    MCtSpec: f"{TEXT} width num_heads depth kernel_size layer_scale",
    StageSpec: "dim depth mixer squeeze_excite",
    RepMixerSpec: "kernel_size",
    AttentionSpec: "head_dim norm position_kernel_size",
    ImageInput: "size interpolation mean std",
    TextInput: "context_length vocab_size pad_id",
    TokenizerFile: "sha256 start_id end_id",
}


def is_marked(field, mark):
    return mark.items() <= field.metadata.items()


def unmarked(cls):
    """The fields of a class that each file has."""
    return {
        field.name
        for field in attrs.fields(cls)
        if not is_marked(field, LEFT_OUT_AT_DEFAULT) and not is_marked(field, NOT_IN_JSON)
    }


@pytest.mark.parametrize("cls", ALWAYS, ids=lambda cls: cls.__name__)
def test_a_field_that_was_added_since_is_marked(cls):
    assert unmarked(cls) == set(ALWAYS[cls].split())
    for field in attrs.fields(cls):
        assert not is_marked(field, LEFT_OUT_AT_DEFAULT) or field.default is not attrs.NOTHING, field.name


def test_a_field_without_its_mark_is_noticed():
    @attrs.frozen(kw_only=True)
    class Wider(StageSpec):
        added: int = 1

    assert unmarked(Wider) - set(ALWAYS[StageSpec].split()) == {"added"}


def test_every_part_of_ours_is_looked_at():
    ours = {
        cls
        for registry in (image_encoder_families, text_encoder_families, token_mixers)
        for cls in registry.values()
        if cls.__module__.startswith("mobileclip.") and not cls.__module__.endswith(".foreign")
    }
    assert ours <= ALWAYS.keys()
