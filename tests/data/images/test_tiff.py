"""Tags of TIFF files, small and big ones, as Pillow writes them and by hand."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from mobileclip.data import ImageLimits, load_image
from mobileclip.data.images import read_tags
from tests.errors import fails
from tests.trials.image_files import directory, number, tiff

NOTES, LIMITS = 34665, ImageLimits()


@pytest.mark.parametrize("big", [False, True])
def test_small_and_big_files_are_read_alike(big):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "TIFF", big_tiff=big, description="x" * 30)
    data = stream.getvalue()
    assert data[2] == (43 if big else 42)
    tags = read_tags(data, LIMITS, "image")
    assert [tags.numbers(tag, ())[0] for tag in (256, 257, 277)] == [5, 7, 3]
    assert tags.numbers(258, ()) == (8, 8, 8), "which lie behind the directory in the small one"
    description = tags.tags[270]
    assert data[description.start :][: description.num_bytes] == b"x" * 30 + b"\0"
    assert (np.asarray(load_image(data)) == pixels).all()


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_big_file_is_read_in_either_order_of_bytes(order):
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HHHQ", 43, 8, 0, 16)
    entries = [struct.pack(f"{order}HHQQ", tag, 16, 1, value) for tag, value in ((256, 5), (257, 7))]
    tags = read_tags(head + struct.pack(f"{order}Q", len(entries)) + b"".join(entries) + bytes(8), LIMITS, "image")
    assert [tags.numbers(tag, ())[0] for tag in (256, 257)] == [5, 7]


def test_tags_in_directories_below_count_and_those_that_are_no_directory_do_not():
    values = [(40_000 + place, 4, 1, number(7)) for place in range(30)]
    below = directory(values)[8:]
    for entry, num_values in (
        ((NOTES, 4, 1, number(1000)), 30),
        ((NOTES, 11, 1, number(1000)), 0),
        ((37_500, 4, 1, number(1000)), 0),
    ):
        data = tiff(more=[entry]).ljust(1000, b"\0") + below
        num_own = len(read_tags(data, LIMITS, "image").tags)
        read_tags(data, ImageLimits(num_parts=num_own + num_values), "image")
        with fails("data.made-more-parts"):
            read_tags(data, ImageLimits(num_parts=num_own + num_values - 1), "image")


@pytest.mark.parametrize("num_directories", [15, 40])
def test_a_chain_of_directories_is_followed_to_a_limit(num_directories):
    """Sixteen are read, the first one included; each has a value of its own beside the one that leads on."""
    data = tiff(more=[(NOTES, 4, 1, number(1000))]).ljust(1000, b"\0")
    for place in range(num_directories):
        entries = [(NOTES, 4, 1, number(1000 + 40 * (place + 1))), (40_000, 4, 1, number(7))]
        data += directory(entries)[8:].ljust(40, b"\0")
    num_values = len(read_tags(data, LIMITS, "image").tags) + 2 * min(num_directories, 15)
    read_tags(data, ImageLimits(num_parts=num_values), "image")
    with fails("data.made-more-parts"):
        read_tags(data, ImageLimits(num_parts=num_values - 1), "image")
