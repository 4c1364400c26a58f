"""Files as a tower sees them: to the bit what the transform makes of them, or decoded no larger than is needed."""

import io

import numpy as np
import pytest
from PIL import Image

from mobileclip.data import ImageError, ImageTransform
from mobileclip.data.images import read_tower_image
from mobileclip.inputs import ImageInput
from tests.errors import fails

TRANSFORM = ImageTransform(ImageInput(size=64))


def encoded(kind, size=(300, 200), *, orientation=None, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, **({} if orientation is None else {"exif": exif}))
    return stream.getvalue()


@pytest.mark.parametrize("orientation", [None, 3, 6, 7])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_whole_pixels_are_those_of_the_transform(kind, orientation):
    data = encoded(kind, orientation=orientation)
    found = read_tower_image(data, TRANSFORM, name="a picture")
    np.testing.assert_array_equal(found.pixels, TRANSFORM.pixels(data))
    assert (found.width, found.height) == ((200, 300) if orientation in (6, 7) else (300, 200))
    assert (found.exif is None) == (orientation is None)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_other_colours_are_read_too(mode):
    data = encoded("JPEG", mode=mode)
    found = read_tower_image(data, TRANSFORM, name="a picture")
    np.testing.assert_array_equal(found.pixels, TRANSFORM.pixels(data))


@pytest.mark.parametrize("orientation", [None, 6])
def test_a_reduced_picture_is_nearly_the_whole_one(orientation):
    data = encoded("JPEG", (1200, 900), orientation=orientation)
    whole = read_tower_image(data, TRANSFORM, name="a picture")
    reduced = read_tower_image(data, TRANSFORM, reduced=True, name="a picture")
    assert (reduced.width, reduced.height) == (whole.width, whole.height)
    difference = np.abs(reduced.pixels.astype(int) - whole.pixels)
    assert 0 < difference.mean() < 2


def test_a_small_picture_is_not_reduced():
    data = encoded("JPEG", (100, 90))
    whole, reduced = (read_tower_image(data, TRANSFORM, reduced=one, name="a picture") for one in (False, True))
    np.testing.assert_array_equal(whole.pixels, reduced.pixels)


def test_what_cannot_be_read_is_named():
    for data in (b"", b"no picture", encoded("PNG")[:80], encoded("JPEG")[:300]):
        with pytest.raises(ImageError, match=r"^image 'x\.jpg'"):
            read_tower_image(data, TRANSFORM, name="image 'x.jpg'")
    with fails("data.would-resized-pixels-before"):
        read_tower_image(encoded("PNG", (1, 200_000)), TRANSFORM, name="image 'x.jpg'")
