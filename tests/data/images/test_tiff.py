"""What tags of TIFF files claim, small and big ones, as Pillow writes them and by hand."""

import struct

import numpy as np
import pytest

from mobileclip.data import ImageError, ImageLimits, load_image
from mobileclip.data.images.opening import open_image
from tests.build.image_files import encoded, noise
from tests.errors import fails


@pytest.mark.parametrize("big", [False, True])
def test_small_and_big_files_are_read_alike(big):
    data = encoded(noise(5, 7), "TIFF", big_tiff=big, description="x" * 30)
    assert data[2] == (43 if big else 42)
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(noise(5, 7)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_tags_that_claim_more_than_the_file_has_are_refused(order, big):
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8)
    word, length = ("Q", "Q") if big else ("I", "H")
    entries = [struct.pack(f"{order}HH{word}{word}", 40_000 + tag, 7, 500, 8) for tag in range(100)]
    data = head + struct.pack(order + length, len(entries)) + b"".join(entries) + bytes(9)
    with fails(ImageError, "50,000", f"{len(data):,}") as caught:
        open_image(data, ImageLimits())
    assert caught.value.reason == "corrupt"
