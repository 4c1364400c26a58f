"""Raw files of cameras: the picture that the camera put into them."""

import io

import numpy as np
import pytest
from PIL import Image

from mobileclip.data import ImageError, ImageLimits, ImageTransform, load_image
from mobileclip.data.images.metadata import read_camera_notes
from mobileclip.data.images.opening import open_image, raw_preview
from mobileclip.data.images.transform import read_tower_image
from mobileclip.inputs import ImageInput
from tests.build.image_files import encoded, noise, raw, tiff
from tests.errors import fails

pytestmark = pytest.mark.extra("raw")
LIMITS = ImageLimits()
SIZE = (640, 480)
PREVIEW = encoded(noise(8, 6).resize(SIZE, Image.Resampling.NEAREST), "JPEG", quality=90)


def test_the_picture_in_it_is_read_and_turned():
    data = raw(PREVIEW, preview_size=SIZE, orientation=6)
    assert Image.open(io.BytesIO(raw_preview(data, LIMITS, "x"))).size == SIZE
    image = load_image(data)
    assert image.size == SIZE[::-1]
    expected = np.asarray(load_image(PREVIEW).transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(np.asarray(image), expected)
    seen = read_tower_image(data, ImageTransform(ImageInput(size=64)), reduced=True, name="x")
    assert (seen.width, seen.height) == SIZE[::-1]
    notes = read_camera_notes(seen.exif)
    assert (notes.camera, notes.taken) == ("Maker Model X", "2024-05-01T12:30:00")
    assert open_image(data, LIMITS).kind.name == "JPEG"


@pytest.mark.parametrize(
    "data", [PREVIEW, tiff(), encoded(noise(), "TIFF"), encoded(noise(), "PNG"), b"", b"II*\0", b"II*\0" + b"\xff" * 9]
)
def test_pictures_of_other_kinds_are_none(data):
    assert raw_preview(data, LIMITS, "x") is None


@pytest.mark.parametrize("start", [b"II*\0\x10\0\0\0CR\2\0", b"IIRO\x08\0\0\0", b"IIU\0\x18\0\0\0", b"MMOR\0\0\0\x08"])
def test_damage_ends_in_an_error(start):
    with fails(ImageError, "x") as caught:
        load_image(start + bytes(range(256)) * 40, name="x")
    assert caught.value.reason == "corrupt"


@pytest.mark.parametrize("place", range(0, 600, 23))
def test_damaged_tags_end_in_a_picture_or_in_an_error(place):
    data = bytearray(raw(PREVIEW, preview_size=SIZE))
    data[len(data) - 600 + place] ^= 0xA5
    try:
        size = load_image(bytes(data)).size
    except ImageError as error:
        size = None if len(str(error)) < 500 else error
    assert size in (None, SIZE, SIZE[::-1])


@pytest.mark.parametrize("limits", [{"num_pixels": 640 * 480 - 1}, {"num_file_bytes": 1000}])
def test_limits_hold(limits):
    with pytest.raises(ImageError) as caught:
        load_image(raw(PREVIEW, preview_size=SIZE), limits=ImageLimits(**limits))
    assert caught.value.reason == "too_large"
