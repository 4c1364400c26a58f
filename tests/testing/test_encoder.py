"""The contract of encoders: ours and others' keep it, and each way to break it is one error."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from mobileclip.blocks import image_encoders, text_encoders
from mobileclip.encoders import (
    ImageEncoderSpec,
    TextEncoderSpec,
    image_encoder_families,
    load_model,
    save_model,
    text_encoder_families,
)
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.testing import check_encoder
from tests.encoders.towers import SMALL
from tests.errors import fails
from tests.foreign_towers import IMAGE, TEXT
from tests.lazily import lazily

timm = lazily("timm")

NAMED = {**image_encoders, **text_encoders}


@attrs.frozen(kw_only=True)
class OthersImageSpec(ImageEncoderSpec):
    """A tower of timm whose file does not hold all that it computes with."""

    embedding_dim: int = 12
    input: ImageInput = ImageInput(size=64)
    trunk: str = "swin"

    def build(self):
        if self.trunk == "swin":
            options = {"embed_dim": 16, "depths": (2, 1), "num_heads": (2, 2), "window_size": 4, "img_size": 64}
            return Held(self, timm.create_model("swin_tiny_patch4_window7_224", num_classes=12, **options))
        options = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 64, "patch_size": 16}
        return Held(self, timm.create_model("eva02_tiny_patch14_224", num_classes=12, **options))


@attrs.frozen(kw_only=True)
class OthersTextSpec(TextEncoderSpec):
    """A tower of transformers, the same."""

    embedding_dim: int = 12
    input: TextInput = TextInput(context_length=12, vocab_size=60)
    trunk: str = "bert"

    def build(self):
        import transformers

        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        size |= {"vocab_size": 60, "pad_token_id": 0, "max_position_embeddings": 16}
        if self.trunk == "bert":
            trunk = transformers.BertModel(transformers.BertConfig(**size), add_pooling_layer=False)
        else:
            config = transformers.ModernBertConfig(**size, attn_implementation="sdpa")
            trunk = transformers.ModernBertModel(config)
        return Read(self, trunk)


class Held(nn.Module):
    def __init__(self, spec, trunk):
        super().__init__()
        self.spec = spec
        self.trunk = trunk

    def forward(self, inputs):
        return self.trunk(inputs)


class Read(Held):
    def __init__(self, spec, trunk):
        super().__init__(spec, trunk)
        self.project = nn.Linear(16, spec.embedding_dim)

    def forward(self, inputs):
        return self.project(self.trunk(input_ids=inputs).last_hidden_state[:, 0])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for registry in (image_encoder_families, text_encoder_families):
        monkeypatch.setattr(registry, "_values", dict(registry._values))
    for cls in (type(IMAGE), OthersImageSpec):
        image_encoder_families.register(f"testing_{cls.__name__}")(cls)
    for cls in (type(TEXT), OthersTextSpec):
        text_encoder_families.register(f"testing_{cls.__name__}")(cls)


@pytest.mark.parametrize("name", SMALL)
def test_ours_keep_it(name):
    check_encoder(SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_those_known_by_name_keep_it(name):
    check_encoder(NAMED[name], export=False)


OTHERS = {
    "timm": IMAGE,
    "PyTorch": TEXT,
    "Swin": OthersImageSpec(),
    "EVA": OthersImageSpec(trunk="eva"),
    "BERT": OthersTextSpec(),
    "ModernBERT": OthersTextSpec(trunk="modernbert"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_those_of_others_keep_it(name):
    check_encoder(OTHERS[name], export=name in ("timm", "PyTorch"))


@pytest.mark.parametrize("name", ["Swin", "EVA", "BERT", "ModernBERT"])
def test_what_a_file_does_not_hold_is_filled_in(name, tmp_path):
    """Each has a buffer that is not persistent."""
    model = OTHERS[name].build().eval()
    held = dict(model.named_buffers())
    assert held.keys() - model.state_dict().keys()
    save_model(model, tmp_path / "m.safetensors")
    before = torch.get_rng_state()
    loaded = load_model(tmp_path / "m.safetensors", fold=False)
    assert torch.equal(torch.get_rng_state(), before)
    for key, buffer in loaded.named_buffers():
        torch.testing.assert_close(buffer, held[key], rtol=0, atol=0)


class Mean(nn.Module):
    """The smallest encoder: colours, averaged and projected."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.project = nn.Linear(3, spec.embedding_dim)

    def forward(self, images):
        return self.project(images.mean((2, 3)))


class Tied(Mean):
    def __init__(self, spec):
        super().__init__(spec)
        self.again = nn.Linear(3, spec.embedding_dim)
        self.again.weight = self.project.weight


class Narrow(Mean):
    def forward(self, images):
        return super().forward(images)[:, 1:]


class Mixed(Mean):
    def forward(self, images):
        return super().forward(images - images.mean())


class Nameless(Mean):
    def __init__(self, spec):
        super().__init__(spec)
        self.spec = None


class Branching(Mean):
    def forward(self, images):
        return super().forward(images) if images.mean().item() > 0 else images[:, :, 0, 0]


class Asking(Mean):
    def __init__(self, spec):
        super().__init__(spec)
        self.scale = torch.arange(5.0)[3].item()


class Random(Mean):
    def __init__(self, spec):
        super().__init__(spec)
        self.register_buffer("noise", torch.rand(3), persistent=False)

    def forward(self, images):
        return self.project(images.mean((2, 3)) + self.noise)


def spec_of(module, *, register=True, **fields):
    """An encoder's spec around a module, registered or not, with empty fields of some types."""

    def build(self):
        return module(self)

    cls = type(f"{module.__name__}Spec", (ImageEncoderSpec,), {"build": build, "__annotations__": fields})
    cls = attrs.frozen(kw_only=True)(cls)
    if register:
        image_encoder_families.register(f"testing_{module.__name__}")(cls)
    return cls(embedding_dim=12, input=ImageInput(size=64), **{name: kind() for name, kind in fields.items()})


def test_the_smallest_keeps_it():
    check_encoder(spec_of(Mean))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (lambda: spec_of(Mean, register=False), "MeanSpec is not a registered image encoder family"),
        (lambda: spec_of(Mean, places=list), "MeanSpec cannot be hashed .* tuples instead of lists"),
        (lambda: spec_of(Mean, kind=str), "MeanSpec has a field `kind`"),
        (lambda: spec_of(Tied), "project.weight and again.weight are one tensor"),
        (lambda: spec_of(Narrow), r"NarrowSpec returned \(2, 11\) for 2 examples, .* \(2, 12\)"),
        (lambda: spec_of(Mixed), "MixedSpec returned different embeddings for single examples"),
        (lambda: spec_of(Nameless), r"NamelessSpec.build\(\) has no `.spec`"),
        (lambda: spec_of(Branching), "torch.export cannot export BranchingSpec"),
        (lambda: spec_of(Asking), r"AskingSpec.build\(\) reads values of tensors"),
        (lambda: spec_of(Random), "RandomSpec returned different embeddings after saving and loading"),
    ],
)
def test_each_way_to_break_it_is_one_error(spec, said):
    with pytest.raises(AssertionError, match=said):
        check_encoder(spec())


def test_a_spec_that_cannot_be_hashed_is_named_where_it_is_saved(tmp_path):
    with fails(ValueError, "MeanSpec"):
        save_model(spec_of(Mean, places=list).build(), tmp_path / "never.safetensors")
