"""What tags of TIFF files claim, small and big ones, as Pillow writes them and by hand."""

import struct

import numpy as np
import pytest

from mobileclip.data import ImageError, ImageLimits, load_image
from mobileclip.data.images.opening import open_image
from tests.errors import fails
from tests.trials.image_files import directory, encoded, noise, number, tiff

NOTES = 34665
# The values of a file of one strip, and of the entry that is added.
NUM_OWN = 10


@pytest.mark.parametrize("big", [False, True])
def test_small_and_big_files_are_read_alike(big):
    data = encoded(noise(5, 7), "TIFF", big_tiff=big, description="x" * 30)
    assert data[2] == (43 if big else 42)
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(noise(5, 7)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [16, 4])
def test_a_big_file_is_read_in_either_order_of_bytes(order, kind):
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HHHQ", 43, 8, 0, 16)
    value = struct.pack(f"{order}Q" if kind == 16 else f"{order}II", 70_000, *(() if kind == 16 else (0,)))
    entries = [struct.pack(f"{order}HHQ", tag, kind, 1) + value for tag in (256, 257)]
    with fails(ImageError, "70000", "89,478,485"):
        open_image(head + struct.pack(f"{order}Q", len(entries)) + b"".join(entries) + bytes(8), ImageLimits())


def check_num_values(data, num_values):
    open_image(data, ImageLimits(num_parts=num_values))
    with fails(ImageError):
        open_image(data, ImageLimits(num_parts=num_values - 1))


@pytest.mark.parametrize(
    ("entry", "num_values"), [((NOTES, 4, 1), 30), ((NOTES, 11, 1), 0), ((37_500, 4, 1), 0)], ids=str
)
def test_tags_in_directories_below_count_and_those_that_are_no_directory_do_not(entry, num_values):
    below = directory([(40_000 + place, 4, 1, number(7)) for place in range(30)])[8:]
    check_num_values(tiff(more=[(*entry, number(1000))]).ljust(1000, b"\0") + below, NUM_OWN + num_values)


@pytest.mark.parametrize("num_directories", [15, 40])
def test_a_chain_of_directories_is_followed_to_a_limit(num_directories):
    """Sixteen are read, the first one included; each has a value of its own beside the one that leads on."""
    data = tiff(more=[(NOTES, 4, 1, number(1000))]).ljust(1000, b"\0")
    for place in range(num_directories):
        entries = [(NOTES, 4, 1, number(1000 + 40 * (place + 1))), (40_000, 4, 1, number(7))]
        data += directory(entries)[8:].ljust(40, b"\0")
    check_num_values(data, NUM_OWN + 2 * min(num_directories, 15))
