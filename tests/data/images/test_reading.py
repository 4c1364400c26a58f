"""Files as a tower sees them: to the bit what the transform makes of them, or decoded no larger than is needed."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mobileclip.data import ImageError, ImageLimits, ImageTransform, load_image
from mobileclip.data.images.transform import read_pixels, read_tower_image
from mobileclip.inputs import ImageInput
from tests.build.image_files import encoded as file_of
from tests.errors import fails

TRANSFORM = ImageTransform(ImageInput(size=64))


def encoded(kind, size=(300, 200), *, orientation=None, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    return file_of(image, kind, **({} if orientation is None else {"exif": exif}))


@pytest.mark.parametrize("orientation", [None, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_whole_pixels_are_those_of_the_transform(kind, orientation):
    data = encoded(kind, orientation=orientation)
    found = read_tower_image(data, TRANSFORM, name="a picture")
    np.testing.assert_array_equal(found.pixels, TRANSFORM.pixels(data))
    assert (found.width, found.height) == ((200, 300) if orientation in (5, 6, 7, 8) else (300, 200))
    assert (found.exif is None) == (orientation is None)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("orientation", [None, 6])
@pytest.mark.parametrize("size", [(40, 30), (64, 64), (64, 90), (500, 64), (207, 380), (63, 1031), (830, 850)], ids=str)
def test_rows_and_columns_that_count_are_resized_as_if_all_were(size, orientation, interpolation, monkeypatch):
    """Pillow's two passes apart, on a part of the rows each, give what it gives at once."""
    transform = ImageTransform(ImageInput(size=64, interpolation=interpolation))
    data = encoded("JPEG", size, orientation=orientation)
    expected = transform.pixels(load_image(data))
    found = read_tower_image(data, transform, name="a picture")
    np.testing.assert_array_equal(found.pixels, expected)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refused)
    found = read_tower_image(data, transform, name="a picture")
    np.testing.assert_array_equal(found.pixels, expected)


def refused(*_, **__):
    raise ValueError("Pillow is to decode it")


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_other_colours_are_read_too(mode):
    data = encoded("JPEG", mode=mode)
    found = read_tower_image(data, TRANSFORM, name="a picture")
    np.testing.assert_array_equal(found.pixels, TRANSFORM.pixels(data))


@pytest.mark.parametrize("orientation", [None, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("size", [(1200, 900), (900, 1203)], ids=str)
def test_a_reduced_picture_is_nearly_the_whole_one(size, orientation, monkeypatch):
    data = encoded("JPEG", size, orientation=orientation)
    whole = read_tower_image(data, TRANSFORM, name="a picture")
    reduced = read_tower_image(data, TRANSFORM, reduced=True, name="a picture")
    assert (reduced.width, reduced.height) == (whole.width, whole.height)
    difference = np.abs(reduced.pixels.astype(int) - whole.pixels)
    assert 0 < difference.mean() < 0.5
    assert difference.max() < 6
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refused)
    by_pillow = read_tower_image(data, TRANSFORM, reduced=True, name="a picture")
    np.testing.assert_array_equal(by_pillow.pixels, reduced.pixels)


@pytest.mark.parametrize("as_source", [io.BytesIO, bytes, Image.open, lambda data: np.asarray(Image.open(data))])
def test_any_source_is_read_and_files_alone_are_reduced(as_source):
    data = encoded("JPEG", (1200, 900))
    source = as_source(data if as_source in (io.BytesIO, bytes) else io.BytesIO(data))
    whole, reduced = (read_pixels(source, TRANSFORM, reduced=one) for one in (False, True))
    np.testing.assert_array_equal(whole, TRANSFORM.pixels(data))
    assert np.array_equal(whole, reduced) == (as_source not in (io.BytesIO, bytes))


def shaded(width, height, orientation=None):
    """A large JPEG that compresses well: dark at the left, light at the right, and darker below."""
    across = np.linspace(0, 255, width, dtype=np.float32).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(across, (height, width)).copy())
    image.paste(0, (0, height // 2, width, height))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    return file_of(image.convert("RGB"), "JPEG", quality=30, exif=exif)


@pytest.mark.parametrize("decoder", ["simplejpeg", "Pillow"])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_jpeg_with_more_pixels_than_the_limit_is_decoded_smaller(decoder, reduced, monkeypatch):
    if decoder == "Pillow":
        monkeypatch.setattr(simplejpeg, "decode_jpeg", refused)
    for orientation in (None, 6):
        data = shaded(13_000, 9_600, orientation)
        found = read_tower_image(data, TRANSFORM, reduced=reduced, name="a picture")
        assert (found.width, found.height) == ((13_000, 9_600) if orientation is None else (9_600, 13_000))
        small = TRANSFORM.pixels(shaded(1_300, 960, orientation))
        assert np.abs(found.pixels.astype(int) - small).mean() < 2
    limits = ImageLimits(num_pixels=400 * 400)
    with pytest.raises(ImageError) as caught:
        read_tower_image(data, TRANSFORM, reduced=reduced, name="a picture", limits=limits)
    assert (caught.value.reason, "MOBILECLIP_MAX_PIXELS" in str(caught.value)) == ("too_large", True)


def test_a_cmyk_jpeg_with_more_pixels_than_the_limit_is_decoded_smaller():
    data = file_of(Image.new("CMYK", (1200, 800), (9, 90, 30, 2)), "JPEG")
    limits = ImageLimits(num_pixels=600 * 400)
    found = read_tower_image(data, TRANSFORM, name="a picture", limits=limits)
    assert (found.width, found.height) == (1200, 800)
    assert np.abs(found.pixels.astype(int) - TRANSFORM.pixels(data)).max() <= 2


def test_the_time_that_a_jpeg_takes_is_bounded_at_any_size():
    limits = ImageLimits(num_scan_pixels=1000)
    with pytest.raises(ImageError) as caught:
        read_tower_image(encoded("JPEG"), TRANSFORM, reduced=True, name="a picture", limits=limits)
    assert caught.value.reason == "too_many_scans"


def test_a_small_picture_is_not_reduced():
    data = encoded("JPEG", (100, 90))
    whole, reduced = (read_tower_image(data, TRANSFORM, reduced=one, name="a picture") for one in (False, True))
    np.testing.assert_array_equal(whole.pixels, reduced.pixels)


def test_what_cannot_be_read_is_named():
    for data in (b"", b"no picture", encoded("PNG")[:80], encoded("JPEG")[:300]):
        with pytest.raises(ImageError, match=r"^image 'x\.jpg'"):
            read_tower_image(data, TRANSFORM, name="image 'x.jpg'")
    with fails(ImageError):
        read_tower_image(encoded("PNG", (1, 200_000)), TRANSFORM, name="image 'x.jpg'")
