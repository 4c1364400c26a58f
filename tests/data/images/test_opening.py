"""What an image may cost is told from its bytes, and held; metadata decides nothing but how it is turned."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import tracemalloc
import warnings
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps, TiffImagePlugin
from PIL.TiffImagePlugin import IFDRational

from mobileclip.data import (
    BadSampleError,
    ImageError,
    ImageLimits,
    ImageTransform,
    ReinforcedPipelineSpec,
    SkipReport,
    load_image,
    write_shard,
)
from mobileclip.data.images.jpeg import read_jpeg
from mobileclip.data.images.metadata import CameraMetadata, read_camera_metadata
from mobileclip.data.images.opening import open_image, raw_preview
from mobileclip.data.images.transform import read_tower_image
from mobileclip.data.loading.replay import SourceImage
from mobileclip.data.shards.files import read_shard
from mobileclip.datasets.videos import VideoFile
from mobileclip.extras import install
from mobileclip.inputs import ImageInput
from mobileclip.machine import ResourceExhaustedError
from tests.build.image_files import (
    chunk,
    directory,
    encoded,
    exif_segment,
    many_scans,
    noise,
    overlapping,
    png,
    raw,
    segment,
    tiff,
    turned_notes,
    with_segments,
)
from tests.data.made_samples import make_sample
from tests.errors import fails

LIMITS = ImageLimits()
JPEG = encoded(noise(), "JPEG")


def refused(data: object, reason: str, *words: str, **limits: int) -> None:
    """An image and the image of a sample are refused for the same reason."""
    with fails(ImageError, *words) as caught:
        load_image(data, limits=ImageLimits(**limits), name="x")
    assert caught.value.reason == reason
    if isinstance(data, bytes):
        with pytest.raises(BadSampleError) as sample:
            SourceImage(data, ImageLimits(**limits))
        assert sample.value.reason == f"image_{reason}"


def rgb(data: bytes, **options: object) -> np.ndarray:
    return np.asarray(load_image(data, **options))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# Limits.


def test_every_limit_is_held_to_the_last():
    data = many_scans(40, 30, 3)
    num_scans = data.count(b"\xff\xda")
    most = {"num_scans": num_scans, "num_pixels": 1200, "num_scan_pixels": 1200 * num_scans}
    for name, value in {**most, "num_file_bytes": len(data)}.items():
        assert load_image(data, limits=ImageLimits(**{name: value})).size == (40, 30)
        refused(data, "too_many_scans" if "scan" in name else "too_large", **{name: value - 1})


@pytest.mark.parametrize("value", [0, -1, 1.5, "9", None])
def test_limits_are_whole_numbers(value):
    for field in attrs.fields(ImageLimits):
        with fails((ValueError, TypeError)):
            ImageLimits(**{field.name: value})


def test_limits_are_part_of_the_pipelines_spec(tmp_path):
    sound = make_sample(0)
    large = attrs.evolve(make_sample(1), image=encoded(noise(90, 90), "PNG"))
    shard = str(write_shard(tmp_path / "0.tar", [sound, large]))
    spec = ReinforcedPipelineSpec(shards=[shard], batch_size=1, image=ImageInput(size=8), reinforced=False)
    width, height = opened(sound.image).size
    spec = attrs.evolve(spec, limits=ImageLimits(num_pixels=width * height))
    pipeline = spec.build(tokenizer=lambda texts: np.zeros((len(texts), 1)))
    assert len(list(pipeline)) == 1
    assert pipeline.report.counts == {"image_too_large": 1}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.sampled_from([b"", b"\xff", b"\xff\x01", b"\xff\xd3", b"\xff\xd0\xff\x02", b"\xff\xfe\0\0", b"\0"]),
)
def test_no_scan_hides_from_the_count(num_scans, between):
    data = many_scans(40, 30, num_scans, between=between)
    made = data.count(b"\xff\xda")
    with fails(ImageError, str(made)):
        read_jpeg(data).check(ImageLimits(num_scans=made - 1), "x")
    read_jpeg(data).check(ImageLimits(num_scans=made), "x")


@pytest.mark.parametrize("progressive", [True, False])
def test_scans_of_other_pictures_in_a_file_do_not_count(progressive):
    data = encoded(noise(), "JPEG", progressive=progressive)
    limits = ImageLimits(num_scans=data.count(b"\xff\xda"))
    thumbnail = exif_segment(b"\xff\xda" * 1000)
    for odd in (with_segments(data, thumbnail), data + data * 30, data + b"\xff\xda" * 900):
        assert np.array_equal(rgb(odd, limits=limits), rgb(data))


# Metadata.


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_metadata_has_the_same_pixels(mode, progressive):
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    notes = {"exif": exif, "icc_profile": bytes(200_000), "comment": b"x", "dpi": (9, 9)}
    data = encoded(noise(mode=mode), "JPEG", progressive=progressive, **notes)
    bare = read_jpeg(data)
    assert len(bare.data) < len(data) - 200_000
    assert (b"a picture" in bare.exif, b"a picture" in bare.data) == (True, False)
    assert np.array_equal(np.asarray(opened(bare.data)), np.asarray(opened(data)))
    assert read_jpeg(JPEG).data is JPEG, "nothing is copied where nothing is left out"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])
def test_a_png_without_metadata_has_the_same_pixels(mode):
    image = Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4)) if mode == "I;16" else noise(mode=mode)
    options = {"transparency": bytes(range(256))} if mode == "P" else {}
    data = encoded(image, "PNG", icc_profile=b"x" * 999, dpi=(9, 9), **options)
    bare, expected = open_image(data, LIMITS).image, opened(data)
    assert (bare.mode, "icc_profile" in bare.info) == (expected.mode, False)
    assert np.array_equal(np.asarray(bare.convert("RGBA")), np.asarray(expected.convert("RGBA")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("order", "<>")
def test_metadata_says_how_a_picture_is_turned_as_pillow_reads_it(kind, order):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
    for orientation in range(10):
        notes = b"Exif\0\0" + turned_notes(orientation, order=order)
        data = encoded(noise(24, 16), kind, exif=notes, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = ImageOps.exif_transpose(opened(data)).convert("RGB")
        assert np.array_equal(rgb(data), np.asarray(expected)), orientation


def test_a_heic_is_turned_once_and_keeps_the_notes_of_its_camera():
    image = noise(3, 2).resize((96, 64), Image.Resampling.NEAREST)
    for orientation in range(1, 9):
        found, expected = (
            rgb(encoded(image, kind, quality=100, exif=turned_notes(orientation))).astype(int)
            for kind in ("HEIF", "PNG")
        )
        assert np.abs(found - expected).mean() < 4, orientation
    exif = Image.Exif()
    exif[0x0110], exif[0x0112], exif[0x0132] = "Phone 9", 6, "2024:05:01 12:30:00"
    kept = open_image(encoded(noise(64, 64), "HEIF", exif=exif.tobytes()), LIMITS)
    notes = read_camera_metadata(kept.exif)
    assert (notes.camera, notes.taken, kept.orientation) == ("Phone 9", "2024-05-01T12:30:00", 1)


@pytest.mark.parametrize("text", [b'tiff:Orientation="6"', b"<tiff:Orientation>6</tiff:Orientation>"])
def test_xmp_counts_where_a_camera_says_nothing(text):
    note, plain = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text), encoded(noise(24, 16), "JPEG")
    for segments, size in (
        ([note], (16, 24)),
        ([exif_segment(turned_notes(3)), note], (24, 16)),
        ([exif_segment(directory([])), note], (16, 24)),
    ):
        data = with_segments(plain, *segments)
        assert load_image(data).size == ImageOps.exif_transpose(opened(data)).size == size


def test_png_texts_turn_too():
    notes = turned_notes(6).hex().encode()
    for kind in (
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n      26\n" + notes),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'tiff:Orientation="6"'),
    ):
        for place in ("before", "after"):
            assert load_image(png(40, 30, **{place: [kind]})).size == (30, 40)


def test_tags_that_overlap_are_never_read(monkeypatch):
    notes = overlapping(2000, 30_000)
    data = (with_segments(JPEG, exif_segment(notes)), png(before=[chunk(b"eXIf", notes)]))
    monkeypatch.delattr(TiffImagePlugin.ImageFileDirectory_v2, "load")
    for one in data:
        assert load_image(one).mode == "RGB"


@pytest.mark.parametrize("big", [False, True])
def test_tags_of_small_and_big_tiffs_are_read_and_refused_where_they_claim_more_than_the_file_has(big):
    data = encoded(noise(5, 7), "TIFF", big_tiff=big, description="x" * 30)
    assert data[2] == (43 if big else 42)
    np.testing.assert_array_equal(rgb(data), np.asarray(noise(5, 7)))
    for order, mark in (("<", b"II"), (">", b"MM")):
        head = struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8)
        word, length = ("Q", "Q") if big else ("I", "H")
        entries = [struct.pack(f"{order}HH{word}{word}", 40_000 + tag, 7, 500, 8) for tag in range(100)]
        data = mark + head + struct.pack(order + length, len(entries)) + b"".join(entries) + bytes(9)
        refused(data, "corrupt", "50,000", f"{len(data):,}")


# What a camera noted, as Pillow writes notes, and what of them may be damaged.


def notes(*, maker="Canon", model="Canon EOS 5D", taken="2024:05:01 12:30:00", place=(48, 30, 36, "N", 3, 15, 0, "W")):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = maker, model
    exif.get_ifd(0x8769)[0x9003] = taken
    if place:
        degrees = [IFDRational(value) if not isinstance(value, str) else value for value in place]
        exif.get_ifd(0x8825).update({1: place[3], 2: tuple(degrees[:3]), 3: place[7], 4: tuple(degrees[4:7])})
    return exif.tobytes()


def test_camera_time_and_place_are_read():
    expected = CameraMetadata(camera="Canon EOS 5D", taken="2024-05-01T12:30:00", latitude=48.51, longitude=-3.25)
    assert read_camera_metadata(notes()) == expected
    southern = read_camera_metadata(notes(place=(33, 0, 0, "S", 151, 30, 0, "E")))
    assert (southern.latitude, southern.longitude) == (-33.0, 151.5)
    cameras = {
        ("Apple", "iPhone 12"): "Apple iPhone 12",
        ("A\x1b[2J\nB", "c"): "A [2J B c",
        ("", "x" * 5000): "x" * 100,
    }
    assert {names: read_camera_metadata(notes(maker=names[0], model=names[1])).camera for names in cameras} == cameras


@pytest.mark.parametrize(
    "exif",
    [
        *(None, b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", notes()[:60]),
        notes(maker="", model="\0", taken="yesterday", place=None),
        *(notes(taken="", place=(*one, 0, "N", 0, 0, 0, "E")) for one in ((91, 0), (1, IFDRational(1, 0)))),
    ],
)
def test_what_is_missing_or_damaged_is_nothing(exif):
    found = read_camera_metadata(exif)
    assert (found.taken, found.latitude, found.longitude) == (None, None, None)


@pytest.mark.parametrize("num_more", [0, 2**18])
def test_tags_that_overlap_take_no_more_memory_than_the_notes(num_more):
    data = overlapping(5000, 60_000) + bytes(num_more)
    tracemalloc.start()
    try:
        assert read_camera_metadata(data) == CameraMetadata()
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    whole = notes() + bytes(num_more)
    assert (read_camera_metadata(whole) == CameraMetadata()) == (num_more > 0), "beyond 256 KiB nothing is read"


@given(st.data())
def test_no_bytes_raise_anything(data):
    stored = bytearray(notes())
    for _ in range(data.draw(st.integers(1, 6))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(read_camera_metadata(bytes(stored)), CameraMetadata)


# Raw files of cameras: the picture that the camera put into them.

SIZE = (640, 480)
PREVIEW = encoded(noise(8, 6).resize(SIZE, Image.Resampling.NEAREST), "JPEG", quality=90)


@pytest.mark.extra("raw")
def test_the_picture_in_a_raw_file_is_read_and_turned_and_limits_hold():
    data = raw(PREVIEW, preview_size=SIZE, orientation=6)
    assert opened(raw_preview(data, LIMITS, "x")).size == SIZE
    expected = np.asarray(load_image(PREVIEW).transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(rgb(data), expected)
    seen = read_tower_image(data, ImageTransform(ImageInput(size=64)), reduced=True, name="x")
    assert (seen.width, seen.height) == SIZE[::-1]
    notes = read_camera_metadata(seen.exif)
    assert (notes.camera, notes.taken) == ("Maker Model X", "2024-05-01T12:30:00")
    assert open_image(data, LIMITS).kind.name == "JPEG"
    refused(data, "too_large", num_pixels=640 * 480 - 1)
    refused(data, "too_large", num_file_bytes=1000)
    for other in (PREVIEW, tiff(), encoded(noise(), "TIFF"), png(), b"", b"II*\0", b"II*\0" + b"\xff" * 9):
        assert raw_preview(other, LIMITS, "x") is None


@pytest.mark.extra("raw")
@pytest.mark.parametrize("start", [b"II*\0\x10\0\0\0CR\2\0", b"IIRO\x08\0\0\0", b"IIU\0\x18\0\0\0", b"MMOR\0\0\0\x08"])
def test_damage_of_a_raw_file_ends_in_an_error(start):
    refused(start + bytes(range(256)) * 40, "corrupt", "x")


# Whatever goes wrong.


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        *((error, ImageError) for error in (RecursionError, AssertionError, KeyError)),
        (MemoryError, ResourceExhaustedError),
        (KeyboardInterrupt, KeyboardInterrupt),
    ],
)
def test_whatever_a_decoder_raises_is_an_image_error_but_what_is_not_its_fault(monkeypatch, raised, kind):
    def load(_: object) -> None:
        raise raised

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", load)
    with fails(kind, raised.__name__ if kind is ImageError else "") as caught:
        load_image(png())
    assert kind is not ImageError or caught.value.reason == "corrupt"


@pytest.mark.parametrize(
    ("package", "extra", "data"),
    [
        ("pillow_heif", "heif", encoded(noise(64, 64), "HEIF")),
        ("rawpy", "raw", raw(encoded(noise(64, 48), "JPEG"), preview_size=(64, 48))),
    ],
    ids=["heif", "raw"],
)
def test_what_needs_a_package_says_which_also_out_of_a_worker(monkeypatch, package, extra, data):
    monkeypatch.setitem(sys.modules, package, None)
    with fails(ImageError, "x", package, "pip") as caught:
        open_image(data, LIMITS, "x")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, str(again)) == ("missing_package", str(caught.value))
    assert again.install.endswith(f"needs {package}: `{install(extra)}`")


class _Endless(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        buffer[:] = b"x" * len(buffer)
        return len(buffer)


def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        refused(path, "unreadable")
    refused(_Endless(), "too_large", "1,000", num_file_bytes=1000)


@pytest.mark.extra("video")
@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="a file of Linux")
def test_a_file_of_the_kernel_that_never_ends_is_not_read():
    for read in (load_image, lambda path: VideoFile(Path(path), LIMITS, "v")):
        with fails(ValueError) as caught:
            read("/proc/kmsg")
        assert caught.value.reason in ("not_an_image", "unreadable")
    report = SkipReport(log=False)
    assert list(read_shard("/proc/kmsg", report.add)) == []
    assert report.num_skipped == 1
