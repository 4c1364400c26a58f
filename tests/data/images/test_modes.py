"""Transparency on a background, and integers of more than 8 bits."""

import io

import numpy as np
import pytest
from PIL import Image

from mobileclip.data import ImageTransform, load_image
from mobileclip.inputs import ImageInput
from tests.odd_images import encoded, glass, stamp

SALMON = (250, 128, 114)


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), SALMON])
def test_every_alpha_is_mixed_with_the_background(background):
    pixels = np.asarray(glass()).astype(float)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + np.array(background) * (1 - alpha)
    found = np.asarray(load_image(encoded(glass(), "PNG"), background=background)).astype(float)
    assert np.abs(found - expected).max() <= 0.51


def transparent_files():
    """A black disc on nothing in every mode that a file may have it in."""
    gray, color = stamp().convert("LA"), stamp()
    mask = np.asarray(color)[..., 3]
    keyed = Image.fromarray(np.where(mask > 0, 0, 200).astype(np.uint8))
    sixteen = Image.fromarray(np.where(mask > 0, 0, 51400).astype(np.uint16))
    yield "RGBA", encoded(color, "PNG")
    yield "LA", encoded(gray, "PNG")
    yield "P", encoded(color.quantize(4), "PNG")
    yield "L, one grey transparent", encoded(keyed, "PNG", transparency=200)
    yield "RGB, one colour transparent", encoded(keyed.convert("RGB"), "PNG", transparency=(200, 200, 200))
    yield "I;16, one grey transparent", encoded(sixteen, "PNG", transparency=51400)
    yield "GIF", encoded(color, "GIF")
    yield "WebP", encoded(color, "WEBP", lossless=True)


@pytest.mark.parametrize(("mode", "data"), [*transparent_files()])
def test_a_background_shows_in_every_mode(mode, data):
    disc = np.asarray(stamp())[..., 3] > 0
    for source in (data, Image.open(io.BytesIO(data))):
        found = np.asarray(load_image(source, background=SALMON))
        assert (found[~disc] == SALMON).all(), mode
        assert (found[disc] == 0).all(), mode


@pytest.mark.parametrize("name", ["white", "black", "#fa8072"])
def test_a_contract_names_its_background(name):
    contract = ImageInput(size=8, background=name)
    found = ImageTransform(contract).pixels(encoded(stamp(), "PNG"))
    assert tuple(found[0, 0]) == contract.background_color
    assert tuple(found[4, 4]) == (0, 0, 0)
