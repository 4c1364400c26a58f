"""Files as a tower sees them: to the bit what the transform makes of them, or decoded no larger than is needed."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mobileclip.data import ImageError, ImageLimits, ImageTransform, load_image
from mobileclip.data.images.transform import read_pixels, read_tower_image
from mobileclip.inputs import ImageInput
from tests.build.image_files import encoded as file_of, noise, turned_notes
from tests.errors import fails

TRANSFORM = ImageTransform(ImageInput(size=64))
ORIENTATIONS = pytest.mark.parametrize("orientation", [None, 2, 3, 4, 5, 6, 7, 8])


def encoded(kind, size=(300, 200), *, orientation=None, mode="RGB"):
    image = noise(9, 6).resize(size, Image.Resampling.BICUBIC).convert(mode)
    return file_of(image, kind, **({} if orientation is None else {"exif": b"Exif\0\0" + turned_notes(orientation)}))


def read(data, transform=TRANSFORM, **options):
    return read_tower_image(data, transform, name="image 'x.jpg'", **options)


def refused(reason, data, *words, **options):
    with fails(ImageError, "image 'x.jpg'", *words) as caught:
        read(data, **options)
    assert caught.value.reason == reason


@pytest.fixture
def by_pillow(monkeypatch):
    """What makes Pillow decode from then on."""

    def refuse(*_, **__):
        raise ValueError("Pillow is to decode it")

    return lambda: monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)


@ORIENTATIONS
@pytest.mark.parametrize(("kind", "mode"), [(one, "RGB") for one in ("JPEG", "PNG", "WEBP")] + [("JPEG", "L")])
def test_whole_pixels_are_those_of_the_transform(kind, mode, orientation):
    data = encoded(kind, orientation=orientation, mode=mode)
    found = read(data)
    np.testing.assert_array_equal(found.pixels, TRANSFORM.pixels(data))
    assert (found.width, found.height) == ((200, 300) if orientation in (5, 6, 7, 8) else (300, 200))
    assert (found.exif is None) == (orientation is None)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("orientation", [None, 6])
@pytest.mark.parametrize("size", [(40, 30), (64, 64), (64, 90), (500, 64), (207, 380), (63, 1031), (830, 850)], ids=str)
def test_rows_and_columns_that_count_are_resized_as_if_all_were(size, orientation, interpolation, by_pillow):
    """Pillow's two passes apart, on a part of the rows each, give what it gives at once."""
    transform = ImageTransform(ImageInput(size=64, interpolation=interpolation))
    data = encoded("JPEG", size, orientation=orientation)
    expected = transform.pixels(load_image(data))
    np.testing.assert_array_equal(read(data, transform).pixels, expected)
    by_pillow()
    np.testing.assert_array_equal(read(data, transform).pixels, expected)


@ORIENTATIONS
@pytest.mark.parametrize("size", [(1200, 900), (900, 1203)], ids=str)
def test_a_reduced_picture_is_nearly_the_whole_one(size, orientation, by_pillow):
    data = encoded("JPEG", size, orientation=orientation)
    whole, reduced = read(data), read(data, reduced=True)
    assert (reduced.width, reduced.height) == (whole.width, whole.height)
    difference = np.abs(reduced.pixels.astype(int) - whole.pixels)
    assert 0 < difference.mean() < 0.5
    assert difference.max() < 6
    by_pillow()
    np.testing.assert_array_equal(read(data, reduced=True).pixels, reduced.pixels)


@pytest.mark.parametrize("as_source", [io.BytesIO, bytes, Image.open, lambda data: np.asarray(Image.open(data))])
def test_any_source_is_read_and_files_that_are_large_alone_are_reduced(as_source):
    is_file = as_source in (io.BytesIO, bytes)
    for size in ((1200, 900), (100, 90)):
        data = encoded("JPEG", size)
        source = as_source(data if is_file else io.BytesIO(data))
        whole, reduced = (read_pixels(source, TRANSFORM, reduced=one) for one in (False, True))
        np.testing.assert_array_equal(whole, TRANSFORM.pixels(data))
        assert np.array_equal(whole, reduced) == (not is_file or size == (100, 90))


def shaded(width, height, orientation):
    """A large JPEG that compresses well: dark at the left, light at the right, and darker below."""
    across = np.linspace(0, 255, width, dtype=np.float32).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(across, (height, width)).copy())
    image.paste(0, (0, height // 2, width, height))
    return file_of(image.convert("RGB"), "JPEG", quality=30, exif=b"Exif\0\0" + turned_notes(orientation))


@pytest.mark.parametrize("decoder", ["simplejpeg", "Pillow"])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_jpeg_with_more_pixels_than_the_limit_is_decoded_smaller(decoder, reduced, by_pillow, monkeypatch):
    """Also than Pillow's own limit, of whole pictures."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    if decoder == "Pillow":
        by_pillow()
    for orientation in (1, 6):
        data = shaded(1_300, 960, orientation)
        found = read(data, reduced=reduced, limits=ImageLimits(num_pixels=700 * 500))
        assert (found.width, found.height) == ((1_300, 960) if orientation == 1 else (960, 1_300))
        assert np.abs(found.pixels.astype(int) - TRANSFORM.pixels(data)).mean() < 2
    refused("too_large", data, "MOBILECLIP_MAX_PIXELS", reduced=reduced, limits=ImageLimits(num_pixels=40 * 40))


def test_a_cmyk_jpeg_with_more_pixels_than_the_limit_is_decoded_smaller():
    for size in ((1200, 800), (300, 200)):
        data = file_of(Image.new("CMYK", size, (9, 90, 30, 2)), "JPEG")
        found = read(data, limits=ImageLimits(num_pixels=600 * 400))
        assert (found.width, found.height) == size
        assert np.abs(found.pixels.astype(int) - TRANSFORM.pixels(data)).max() <= 2


def test_what_cannot_be_read_is_named():
    cut = {"not_an_image": b"no picture", "truncated": encoded("PNG")[:80]}
    for reason, data in (*cut.items(), ("not_an_image", b""), ("truncated", encoded("JPEG")[:300])):
        refused(reason, data)
    refused("extreme_shape", encoded("PNG", (1, 200_000)))
    refused("too_many_scans", encoded("JPEG"), reduced=True, limits=ImageLimits(num_scan_pixels=1000))
