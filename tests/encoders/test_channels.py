"""Image towers for images of one channel, or of more than red, green and blue."""

from __future__ import annotations

import attrs
import pytest
import torch
from PIL import Image
from torch import nn

from mobileclip import build_model, reparameterize
from mobileclip.data import ImageTransform, normalize_pixels
from mobileclip.encoders import ClassifierSpec, ImageEncoderSpec, ViTSpec, load_model, save_model
from mobileclip.export import ExportSpec, export_model
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput
from mobileclip.interop import timm_config
from mobileclip.serialization import from_json, to_json
from tests.blocks.filling import noise
from tests.encoders.small import IMAGE, SMALL, VIT, randomised
from tests.errors import fails
from tests.interop.models import TOWER
from tests.lazily import lazily

timm = lazily("timm")

PATCHES = ViTSpec(width=32, depth=1, num_heads=2, patch_size=32, stem="patch", embedding_dim=24)
TOWERS = {"mci": IMAGE, "vit": VIT, "patches": PATCHES}
FIRST = {
    "mci": ("stem.0.branches.0.conv.weight", "stem.0.scale.conv.weight"),
    "vit": ("stem.conv1.conv.weight",),
    "patches": ("stem.conv.weight",),
}


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_of_other_channels_is_folded_saved_and_loaded(name, channels, tmp_path):
    tower = randomised(TOWERS[name].with_channels(channels))
    images = noise(2, channels, tower.spec.input.size, tower.spec.input.size)
    expected = tower(images)
    assert expected.shape == (2, 24)
    assert tower.spec.input.channels == channels == len(tower.spec.input.std)
    assert from_json(to_json(tower.spec, unstructure_as=ImageEncoderSpec), ImageEncoderSpec) == tower.spec
    torch.testing.assert_close(reparameterize(tower)(images), expected, rtol=1e-4, atol=1e-4)
    save_model(tower, tmp_path / "tower.safetensors")
    loaded = load_model(tmp_path / "tower.safetensors", fold=False)
    assert loaded.spec == tower.spec
    assert torch.equal(loaded(images), expected)


def test_models_are_built_by_name():
    assert build_model("mci0", in_channels=1)(torch.rand(2, 1, 64, 64)).shape == (2, 512)
    assert build_model("fastvit_t8", in_channels=4)(torch.rand(2, 4, 64, 64)).shape == (2, 768)
    assert build_model(SMALL, in_channels=2).spec.image.input.channels == 2
    classifier = ClassifierSpec(image=IMAGE, num_classes=3)
    assert build_model(classifier, in_channels=5)(torch.rand(2, 5, 64, 64)).shape == (2, 3)
    with fails(TypeError, "TextTransformerSpec"):
        build_model("text_base", in_channels=1)
    with fails(ValueError, "1024", "0"):
        build_model("mci0", in_channels=0)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize("name", TOWERS)
def test_weights_of_colours_are_adapted_as_timm_does(name, channels, tmp_path):
    tower = randomised(attrs.evolve(TOWERS[name], input=attrs.evolve(TOWERS[name].input, mean=OPENAI_MEAN)))
    save_model(tower, tmp_path / "tower.safetensors")
    loaded = load_model(tmp_path / "tower.safetensors", fold=False, in_channels=channels)
    assert loaded.spec == tower.spec.with_channels(channels)
    weights = tower.state_dict()
    for first in FIRST[name]:
        weights[first] = timm.models.adapt_input_conv(channels, weights[first])
    torch.testing.assert_close(dict(loaded.state_dict()), dict(weights), rtol=1e-6, atol=1e-7)
    torch.save(tower.state_dict(), tmp_path / "plain.pt")  # which has no spec
    assert load_model(tmp_path / "plain.pt", tower.spec, in_channels=channels).spec == loaded.spec


@pytest.mark.parametrize("name", TOWERS)
def test_a_gray_picture_gives_what_its_colours_gave(name, tmp_path):
    """For weights of one channel are the sum of those of three."""
    tower = randomised(TOWERS[name])
    save_model(reparameterize(tower), tmp_path / "tower.safetensors")  # folded weights are adapted too
    gray = noise(2, 1, tower.spec.input.size, tower.spec.input.size)
    loaded = load_model(tmp_path / "tower.safetensors", in_channels=1)
    torch.testing.assert_close(loaded(gray), tower(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_the_contract_is_of_as_many_channels():
    image = ImageInput(size=8, mean=OPENAI_MEAN, std=OPENAI_STD)
    assert image.of_channels(3) is image
    assert image.of_channels(5).mean == (*OPENAI_MEAN, *OPENAI_MEAN[:2])
    assert image.of_channels(1).std == (pytest.approx(sum(OPENAI_STD) / 3),)
    pixels = torch.full((2, 2, 4, 4), 255, dtype=torch.uint8)
    normal = normalize_pixels(pixels, ImageInput(size=4, mean=(0.5, 0.0), std=(0.5, 0.25)))
    assert normal[:, 0].eq(1).all()
    assert normal[:, 1].eq(4).all()
    with fails(ValueError, "3"):
        normalize_pixels(pixels, image)
    with fails(ValueError, "2", "3"):
        ImageInput(size=8, mean=(0.0, 0.0))


def test_what_has_colours_alone_is_refused(tmp_path):
    model = build_model(SMALL, in_channels=4).eval()
    with fails(ValueError, "ImageTransform", "4"):
        ImageTransform(model.spec.image.input)(Image.new("RGB", (64, 64)))
    with fails(ValueError, "ImageTransform", "4"):
        export_model(model, ExportSpec(target="torch", output=tmp_path / "export"), show_progress=False)
    with fails(ValueError, "4, 64, 64"):
        model.encode_image(torch.rand(1, 3, 64, 64))
    with fails(ValueError, "MeanColourSpec", "3", "1"):
        build_model(MeanColourSpec(), in_channels=1)


@attrs.frozen(kw_only=True)
class MeanColourSpec(ImageEncoderSpec):
    def build(self):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, self.embedding_dim))


@pytest.mark.parametrize("channels", [1, 4])
def test_timm_builds_the_same_tower(channels, tmp_path):
    tower = randomised(attrs.evolve(TOWER, projection_bias=True).with_channels(channels))
    save_model(tower, tmp_path / "tower.pt", layout="timm")
    config = timm_config(tower.spec, licence="mit")
    assert config["pretrained_cfg"]["input_size"][0] == channels
    theirs = timm.create_model(
        config["architecture"], num_classes=tower.spec.embedding_dim, **config["model_args"]
    ).eval()
    theirs.load_state_dict(torch.load(tmp_path / "tower.pt"))
    images = noise(2, channels, 64, 64)
    torch.testing.assert_close(theirs(images), tower(images), rtol=1e-4, atol=1e-4)
