"""Towers that somebody else wrote: a backbone of timm, and a text encoder of PyTorch's own layers."""

from contextlib import contextmanager

import attrs
import pytest
from torch import nn

from mobileclip.encoders import (
    DualEncoderSpec,
    ImageEncoderSpec,
    MCiSpec,
    TextEncoderSpec,
    image_encoder_families,
    text_encoder_families,
)
from mobileclip.inputs import ImageInput, TextInput
from tests.lazily import lazily

timm = lazily("timm")


@attrs.frozen(kw_only=True)
class TimmSpec(ImageEncoderSpec):
    model: str = "test_resnet"

    def build(self):
        return TimmEncoder(self)

    def weights_for_size(self, weights, size):  # noqa: ARG002  convolutions
        return weights


class TimmEncoder(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.trunk = timm.create_model(spec.model, num_classes=spec.embedding_dim)
        self.dims = tuple(stage["num_chs"] for stage in self.trunk.feature_info)
        self.strides = tuple(stage["reduction"] for stage in self.trunk.feature_info)

    def forward(self, images):
        return self.trunk(images)

    def embedding_and_features(self, images, stages=None):
        last, maps = self.trunk.forward_intermediates(images, indices=list(stages))
        return self.trunk.forward_head(last), tuple(maps)


@attrs.frozen(kw_only=True)
class WordsSpec(TextEncoderSpec):
    width: int = 16

    def build(self):
        return WordsEncoder(self)

    def weights_for_context(self, weights, context_length):  # noqa: ARG002  no positions
        return weights


class WordsEncoder(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.words = nn.Embedding(spec.input.vocab_size, spec.width, padding_idx=spec.input.pad_id)
        options = {"dim_feedforward": 32, "dropout": 0.0, "batch_first": True, "norm_first": True}
        self.layer = nn.TransformerEncoderLayer(spec.width, nhead=2, **options)
        self.project = nn.Linear(spec.width, spec.embedding_dim)

    def forward(self, tokens):
        there = (tokens != self.spec.input.pad_id)[..., None]
        seen = self.layer(self.words(tokens)) * there
        return self.project(seen.sum(1) / there.sum(1).clamp_min(1))


IMAGE = TimmSpec(embedding_dim=24, input=ImageInput(size=64))
TEXT = WordsSpec(embedding_dim=24, input=TextInput(context_length=12, vocab_size=600))
FOREIGN = DualEncoderSpec(image=IMAGE, text=TEXT)


@attrs.frozen(kw_only=True)
class NarrowSpec(MCiSpec):
    """A kind of one's own below one of ours."""

    ffn_ratio: float = 2.0


@contextmanager
def registered():
    """Let all of these be read from JSON meanwhile, as where their decorators had run; other tests do not know them."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in (image_encoder_families, text_encoder_families):
            patch.setattr(registry, "_values", dict(registry._values))
        image_encoder_families.register("test_timm")(TimmSpec)
        image_encoder_families.register("test_narrow")(NarrowSpec)
        text_encoder_families.register("test_words")(WordsSpec)
        yield
