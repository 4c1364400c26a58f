"""Classifiers: what they compute, their files, and backbones out of every kind of checkpoint."""

import attrs
import pytest
import torch
from torch import nn

import mobileclip
from mobileclip import reparameterize, specs
from mobileclip.encoders import (
    CheckpointError,
    Classifier,
    ClassifierSpec,
    DualEncoderSpec,
    ImageEncoderSpec,
    load_backbone,
    load_model,
    save_model,
)
from mobileclip.reparam import is_folded
from mobileclip.serialization import from_json, to_json
from tests.encoders.small import IMAGE, SMALL, VIT, randomised
from tests.encoders.timm_pairs import mci_pair
from tests.errors import fails
from tests.lazily import lazily

timm = lazily("timm")

BARE = IMAGE.without_projection()
SPEC = ClassifierSpec(image=attrs.evolve(BARE, drop_path=0.2), num_classes=5, class_names=tuple("abcde"))
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def saved(path, spec=SMALL, layout="mobileclip"):
    model = randomised(spec)
    save_model(model, path, layout=layout)
    return model


@torch.inference_mode()
def test_logits_are_those_of_timm_s_classifier():
    """An MCi without its projection and a linear layer is timm's FastViT with as many classes."""
    encoder, model = mci_pair(1)
    assert isinstance(model, timm.models.FastVit)
    spec = ClassifierSpec(image=encoder.spec.without_projection(), num_classes=7)
    classifier = spec.build().eval()
    classifier.image_encoder.load_state_dict(
        {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("head.project")}
    )
    model.reset_classifier(7)
    model.head.fc.load_state_dict(classifier.head.state_dict())
    torch.testing.assert_close(classifier(IMAGES), model.eval()(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tower", [BARE, VIT, VIT.without_projection()], ids=["mci", "vit-projected", "vit"])
@torch.inference_mode()
def test_any_encoder_carries_a_head(tower, tmp_path):
    spec = ClassifierSpec(image=tower, num_classes=5)
    assert from_json(to_json(spec), ClassifierSpec) == spec
    model = randomised(spec)
    expected = model(IMAGES)
    torch.testing.assert_close(expected, model.head(model.image_encoder(IMAGES)))
    folded = reparameterize(model)
    torch.testing.assert_close(folded(IMAGES), expected, rtol=1e-4, atol=1e-4)
    for name, each in (("training", model), ("folded", folded)):
        save_model(each, tmp_path / f"{name}.safetensors")
        loaded = load_model(tmp_path / f"{name}.safetensors")
        assert isinstance(loaded, Classifier)
        assert is_folded(loaded)
        assert loaded.spec == spec
        torch.testing.assert_close(loaded(IMAGES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "changes", "named"),
    [
        (SPEC, {"class_names": ("a", "b")}, ("5", "2")),
        (SPEC, {"class_names": ("a", "b", "c", "d", "a")}, ("a",)),
        (IMAGE, {"projection": False}, ("128", "24")),
        (VIT, {"projection": False}, ("32", "24")),
        (BARE, {"projection_bias": True}, ()),
    ],
)
def test_specs_refuse_what_is_none(spec, changes, named):
    with fails(ValueError, *named):
        attrs.evolve(spec, **changes)


def test_the_backbone_of_a_file_is_an_image_tower(tmp_path):
    model = saved(tmp_path / "c.safetensors", SPEC)
    tower = load_model(tmp_path / "c.safetensors", tower="image", fold=False)
    assert tower.spec == SPEC.image
    torch.testing.assert_close(tower(IMAGES), model.image_encoder(IMAGES))
    with fails(ValueError):
        mobileclip.load(tmp_path / "c.safetensors")


def test_a_classifier_is_loaded_for_another_size(tmp_path):
    saved(tmp_path / "c.safetensors", ClassifierSpec(image=VIT, num_classes=5))
    loaded = load_model(tmp_path / "c.safetensors", image_size=96)
    assert loaded.spec.image.input.size == 96
    assert loaded(torch.rand(1, 3, 96, 96)).shape == (1, 5)
    with fails(ValueError):
        loaded(torch.rand(1, 3, 96, 64))


class TestBackbone:
    @pytest.mark.parametrize(
        ("spec", "layout"), [(SMALL, "mobileclip"), (SMALL, "official"), (SMALL, "open_clip"), (SPEC, "mobileclip")]
    )
    def test_the_tower_of_any_layout_and_of_a_classifier_of_other_classes(self, spec, layout, tmp_path):
        path = tmp_path / ("m.safetensors" if layout == "mobileclip" else "m.pt")
        model, classifier = saved(path, spec, layout), ClassifierSpec(image=SPEC.image, num_classes=2).build()
        head = classifier.head.weight.clone()
        load_backbone(classifier, path, None if layout == "mobileclip" else SMALL)
        ours, theirs = classifier.image_encoder.state_dict(), model.image_encoder.state_dict()
        assert ours.keys() == theirs.keys() - {"head.project.weight"}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert torch.equal(classifier.head.weight, head)
        assert all(parameter.requires_grad for parameter in classifier.parameters())
        with pytest.raises(FileNotFoundError):
            load_backbone(classifier, tmp_path / "none.safetensors")

    def test_with_its_projection_and_at_another_size(self, tmp_path):
        model = saved(tmp_path / "m.safetensors", DualEncoderSpec(image=VIT, text=SMALL.text))
        image = attrs.evolve(VIT, input=attrs.evolve(VIT.input, size=96))
        classifier = ClassifierSpec(image=image, num_classes=2).build()
        load_backbone(classifier, tmp_path / "m.safetensors")
        assert torch.equal(classifier.image_encoder.project.weight, model.image_encoder.project.weight)
        assert len(classifier.image_encoder.position) == 36

    def test_an_encoder_that_has_no_bare_form(self, tmp_path):
        class Colours(ImageEncoderSpec):
            def build(self):
                encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, self.embedding_dim))
                encoder.spec = self
                return encoder

        spec = ClassifierSpec(image=Colours(embedding_dim=4, input=IMAGE.input), num_classes=2)
        assert spec.build()(IMAGES).shape == (3, 2)
        with fails(ValueError, "Colours"):
            spec.image.without_projection()
        saved(tmp_path / "m.safetensors")
        with fails(CheckpointError, "a MCiSpec, not a Colours"):
            load_backbone(spec.build(), tmp_path / "m.safetensors")


def test_a_full_file_is_recognised_without_a_name(s0_shapes):
    classifier = ClassifierSpec(image=specs.mci0().without_projection(), num_classes=3).build()
    assert classifier.image_encoder.head.conv.branches[0].conv.weight.any()
    load_backbone(classifier, s0_shapes)
    assert not classifier.image_encoder.head.conv.branches[0].conv.weight.any(), "the file has zeros"
