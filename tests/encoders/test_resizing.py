"""Models loaded for images of another size and texts of another length."""

import copy

import attrs
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import mobileclip
from mobileclip import reparameterize
from mobileclip.encoders import DualEncoderSpec, ImageEncoderSpec, load_model, save_model
from mobileclip.inputs import ImageInput
from mobileclip.strict import strict
from tests.blocks.filling import filled, noise
from tests.encoders.towers import SMALL, texts
from tests.errors import fails
from tests.golden.checkpoints import relative_error
from tests.lazily import lazily

timm = lazily("timm")


@pytest.fixture
def stored(tmp_path):
    """Build the model of some towers, and save it."""

    def store(image="vit", text="text_causal", *, layout="mobileclip", form=lambda model: model):
        model = filled(DualEncoderSpec(image=SMALL[image], text=SMALL[text]).build())
        path = tmp_path / "model.safetensors"
        save_model(form(model), path, layout=layout)
        return path, model

    return store


@pytest.mark.parametrize("form", [lambda model: model, reparameterize], ids=["training", "folded"])
@pytest.mark.parametrize("layout", ["mobileclip", "official"])
@torch.inference_mode()
def test_positions_of_a_vit_are_resampled_as_timm_does(stored, layout, form):
    path, model = stored(layout=layout, form=form)
    loaded = load_model(path, model.spec, image_size=96)
    assert loaded.spec == attrs.evolve(
        model.spec, image=attrs.evolve(model.spec.image, input=attrs.evolve(model.spec.image.input, size=96))
    )
    position = model.image_encoder.position
    expected = timm.layers.resample_abs_pos_embed(position[None], [6, 6], [4, 4], num_prefix_tokens=0)[0]
    torch.testing.assert_close(loaded.image_encoder.position, expected, rtol=0, atol=1e-6)
    images = noise(2, 3, 96, 96)
    model.image_encoder.position = nn.Parameter(expected)
    assert relative_error(loaded.encode_image(images), model.image_encoder(images)) < 1e-5


@torch.inference_mode()
def test_the_class_tokens_position_is_kept(stored):
    path, model = stored(image="vit_patch")
    loaded = load_model(path, tower="image", image_size=160)
    position = model.image_encoder.position
    expected = timm.layers.resample_abs_pos_embed(position[None], [5, 5], [2, 2], num_prefix_tokens=1)[0]
    torch.testing.assert_close(loaded.position, expected, rtol=0, atol=1e-6)
    assert torch.equal(loaded.position[0], position[0])
    images = noise(2, 3, 160, 160)
    for ours, theirs in zip(loaded.layer_tokens(images), model.image_encoder.layer_tokens(images), strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_positions_stored_in_half_precision_are_resampled_in_float32(stored):
    path, model = stored(form=lambda model: copy.deepcopy(model).half())
    loaded = load_model(path, tower="image", image_size=128)
    position = model.image_encoder.position.detach().half().float()
    expected = timm.layers.resample_abs_pos_embed(position[None], [8, 8], [4, 4], num_prefix_tokens=0)[0]
    torch.testing.assert_close(loaded.position.detach(), expected, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_an_mci_keeps_its_weights(stored):
    path, model = stored(image="mci")
    loaded = load_model(path, fold=False, image_size=96)
    assert loaded.spec.image.input.size == 96
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    images = noise(2, 3, 96, 96)
    assert relative_error(loaded.encode_image(images), model.image_encoder(images)) < 1e-6
    with fails(ValueError, "96"):
        loaded.encode_image(noise(2, 3, 64, 64))


@pytest.mark.parametrize(("text", "same"), [("text_causal", True), ("text", False), ("mct", False)])
@torch.inference_mode()
def test_a_shorter_context_changes_nothing_for_causal_towers_alone(stored, text, same):
    path, model = stored(text=text)
    loaded = load_model(path, context_length=7)
    assert loaded.spec.text.input == attrs.evolve(model.spec.text.input, context_length=7)
    assert loaded.text_encoder.position.shape == (7, 16)
    tokens = texts()
    cut, whole = loaded.encode_text(tokens[:, :7]), model.encode_text(tokens)
    assert (relative_error(cut, whole) < 1e-5) == same
    assert relative_error(cut, model.text_encoder(tokens[:, :7])) < 1e-5


@torch.inference_mode()
def test_what_comes_out_is_saved_and_loaded_as_any_model(stored, tmp_path):
    path, _ = stored()
    loaded = load_model(path, fold=False, image_size=32, context_length=5)
    save_model(loaded, tmp_path / "other.safetensors")
    again = load_model(tmp_path / "other.safetensors", fold=False)
    assert again.spec == loaded.spec
    torch.testing.assert_close(dict(again.state_dict()), dict(loaded.state_dict()), rtol=0, atol=0)


@torch.inference_mode()
def test_the_models_transform_and_tokenizer_follow(small_file):
    clip = mobileclip.load(small_file, image_size=96, context_length=6)
    assert clip.transform(Image.new("RGB", (120, 100))).shape == (3, 96, 96)
    assert clip.tokenizer(["a photo of a dog in the rain"]).shape == (1, 6)
    assert clip.encode_image(Image.new("RGB", (120, 100))).shape == (1, 24)
    assert clip.encode_text("a photo of a dog in the rain").shape == (1, 24)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"context_length": 13}, ("12", "13")),
        ({"image_size": 100}, ("100", "16")),
        ({"tower": "text", "image_size": 96}, ("image",)),
        ({"tower": "image", "context_length": 7}, ("text",)),
    ],
)
def test_what_no_tower_takes_is_refused(stored, options, named):
    path, _ = stored(text="mct")
    with fails(ValueError, *named):
        load_model(path, **options)
    assert load_model(path, context_length=12).spec.text.input.context_length == 12


@attrs.frozen(kw_only=True, field_transformer=strict)
class PixelsSpec(ImageEncoderSpec):
    """An encoder of one's own, whose weights depend on the size: of each pixel one, which tells nothing of others."""

    def build(self):
        tower = nn.Sequential(nn.Flatten(), nn.Linear(3 * self.input.size**2, self.embedding_dim))
        tower.spec = self
        return tower


def test_an_encoder_of_ones_own_that_does_not_say_how_is_refused(tmp_path):
    spec = PixelsSpec(embedding_dim=4, input=ImageInput(size=8))
    save_file(spec.build().state_dict(), tmp_path / "pixels.safetensors")
    with fails(ValueError, "PixelsSpec", "8"):
        load_model(tmp_path / "pixels.safetensors", spec, image_size=16)
