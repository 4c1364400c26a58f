"""What a camera noted, as Pillow writes notes, and what of them may be damaged."""

import tracemalloc

import pytest
from hypothesis import given, strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from mobileclip.data.images.metadata import CameraNotes, read_camera_notes
from tests.build.image_files import overlapping


def notes(*, maker="Canon", model="Canon EOS 5D", taken="2024:05:01 12:30:00", place=(48, 30, 36, "N", 3, 15, 0, "W")):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = maker, model
    exif.get_ifd(0x8769)[0x9003] = taken
    if place:
        degrees = [IFDRational(value) if not isinstance(value, str) else value for value in place]
        exif.get_ifd(0x8825).update({1: place[3], 2: tuple(degrees[:3]), 3: place[7], 4: tuple(degrees[4:7])})
    return exif.tobytes()


def test_camera_time_and_place_are_read():
    assert read_camera_notes(notes()) == CameraNotes(
        camera="Canon EOS 5D", taken="2024-05-01T12:30:00", latitude=48.51, longitude=-3.25
    )
    assert read_camera_notes(notes(maker="Apple", model="iPhone 12")).camera == "Apple iPhone 12"
    southern = read_camera_notes(notes(place=(33, 0, 0, "S", 151, 30, 0, "E")))
    assert (southern.latitude, southern.longitude) == (-33.0, 151.5)


@pytest.mark.parametrize(
    "exif",
    [
        *(None, b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", notes()[:60]),
        notes(maker="", model="\0", taken="yesterday", place=None),
        notes(maker="", model="", taken="", place=(91, 0, 0, "N", 0, 0, 0, "E")),
        notes(maker="", model="", taken="", place=(1, IFDRational(1, 0), 0, "N", 0, 0, 0, "E")),
    ],
)
def test_what_is_missing_or_damaged_is_nothing(exif):
    found = read_camera_notes(exif)
    assert (found.taken, found.latitude, found.longitude) == (None, None, None)


def test_names_of_cameras_are_one_printable_line():
    assert read_camera_notes(notes(maker="A\x1b[2J\nB", model="c")).camera == "A [2J B c"
    assert len(read_camera_notes(notes(maker="", model="x" * 5000)).camera) == 100


@pytest.mark.parametrize("num_more", [0, 2**18])
def test_tags_that_overlap_take_no_more_memory_than_the_notes(num_more):
    data = overlapping(5000, 60_000) + bytes(num_more)
    tracemalloc.start()
    try:
        assert read_camera_notes(data) == CameraNotes()
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    whole = notes() + bytes(num_more)
    assert (read_camera_notes(whole) == CameraNotes()) == (num_more > 0), "beyond 256 KiB nothing is read"


@given(st.data())
def test_no_bytes_raise_anything(data):
    stored = bytearray(notes())
    for _ in range(data.draw(st.integers(1, 6))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(read_camera_notes(bytes(stored)), CameraNotes)
