"""What the ranges of int8 are found with."""

import attrs
import torch
from PIL import Image

from mobileclip.export import Samples, bundled_samples
from mobileclip.export.int8 import calibration_inputs
from tests.build.image_files import encoded
from tests.errors import fails
from tests.export.models import PIXELS


def test_every_picture_gives_several_crops(transformers):
    crops = calibration_inputs(transformers.image_encoder, bundled_samples(), "uint8")
    assert (crops.dtype, tuple(crops.shape)) == (torch.uint8, (96, 3, 64, 64))
    assert len(torch.unique(crops.flatten(1), dim=0)) == 96
    # Crops of one picture are nearer to each other than to those of others, in colour at least.
    colours = crops.float().mean(dim=(2, 3)).reshape(12, 8, 3)
    centres = colours.mean(dim=1)
    own = (colours - centres[:, None]).norm(dim=-1).mean()
    others = torch.cdist(centres, centres).sum() / (12 * 11)
    assert own < 0.5 * others


def test_crops_are_the_same_every_time_and_as_the_file_takes_them(transformers):
    encoder, samples = transformers.image_encoder, bundled_samples()
    raw = calibration_inputs(encoder, samples, "uint8")
    torch.testing.assert_close(calibration_inputs(encoder, samples, "uint8"), raw, rtol=0, atol=0)
    torch.testing.assert_close(calibration_inputs(encoder, samples, "float32"), raw.float(), rtol=0, atol=0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXELS.mean, PIXELS.std))
    expected = (raw.float() / 255 - mean) / std
    torch.testing.assert_close(calibration_inputs(encoder, samples, "host"), expected)


def test_half_of_the_crops_are_mirrored(transformers):
    """A picture that is dark on its left and bright on its right tells."""
    gradient = encoded(Image.linear_gradient("L").rotate(90).convert("RGB"), "PNG")
    samples = Samples(name="gradient", image_names=("a", "b"), images=(gradient,) * 2, captions=("a", "b"))
    crops = calibration_inputs(transformers.image_encoder, samples, "uint8").float()
    assert len(crops) == 96
    to_the_right = (crops[..., -1] > crops[..., 0]).all(dim=(1, 2))
    to_the_left = (crops[..., -1] < crops[..., 0]).all(dim=(1, 2))
    assert bool((to_the_right | to_the_left).all())
    assert 0.3 < float(to_the_right.double().mean()) < 0.7


def test_many_images_give_one_crop_each(transformers):
    images = bundled_samples().images[:2] * 60
    names = tuple(map(str, range(120)))
    samples = Samples(name="many", image_names=names, images=images, captions=("a", "b"))
    assert len(calibration_inputs(transformers.image_encoder, samples, "uint8")) == 96


def test_images_that_cannot_be_read_are_left_out(transformers):
    good = bundled_samples()
    samples = attrs.evolve(good, images=(b"torn", *good.images[1:]))
    assert len(calibration_inputs(transformers.image_encoder, samples, "uint8")) == 11 * 8
    samples = Samples(name="torn", image_names=("a", "b"), images=(b"no", b"no"), captions=("a", "b"))
    with fails(ValueError, "2", "torn"):
        calibration_inputs(transformers.image_encoder, samples, "uint8")
