"""What an image may cost is told from its bytes, and held; metadata decides nothing but how it is turned."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps

from mobileclip.data import (
    AugmentationParams,
    BadSampleError,
    ImageError,
    ImageLimits,
    ReinforcedPipelineSpec,
    crop_augmentation,
    load_image,
    write_shard,
)
from mobileclip.data.images.jpeg import read_jpeg
from mobileclip.data.images.limits import IMAGE_FORMATS
from mobileclip.data.images.metadata import read_camera_notes
from mobileclip.data.images.opening import open_image
from mobileclip.data.loading.examples import SourceImage
from mobileclip.extras import install
from mobileclip.inputs import DECODES, Decode, ImageInput
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
    turned_notes,
    with_segments,
)
from tests.data.made_samples import make_sample
from tests.errors import fails

KINDS = [kind.name for kind in IMAGE_FORMATS]
# Whatever is wrong with bytes; what is wrong with a file is not among them.
REASONS = {
    *("not_an_image", "truncated", "corrupt", "too_large", "too_many_scans"),
    *("unsupported_mode", "unsupported_format"),
}


def reason(data: bytes, **limits: int) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(data, limits=ImageLimits(**limits))
    with pytest.raises(BadSampleError) as sample:
        SourceImage(data, ImageLimits(**limits))
    assert sample.value.reason == f"image_{caught.value.reason}"
    return caught.value.reason


def rgb(data: bytes, **options: object) -> np.ndarray:
    return np.asarray(load_image(data, **options))


class TestLimits:
    def test_every_one_is_held_to_the_last(self):
        data = many_scans(40, 30, 3)
        num_scans = data.count(b"\xff\xda")
        for name, most in (
            ("num_scans", num_scans),
            ("num_pixels", 1200),
            ("num_scan_pixels", 1200 * num_scans),
            ("num_file_bytes", len(data)),
        ):
            assert load_image(data, limits=ImageLimits(**{name: most})).size == (40, 30)
            assert reason(data, **{name: most - 1}) == ("too_many_scans" if "scan" in name else "too_large")

    @pytest.mark.parametrize("value", [0, -1, 1.5, "9", None])
    def test_they_are_whole_numbers(self, value):
        for field in attrs.fields(ImageLimits):
            with pytest.raises((ValueError, TypeError)):
                ImageLimits(**{field.name: value})

    def test_they_are_part_of_the_pipelines_spec(self, tmp_path):
        sound = make_sample(0)
        path = write_shard(
            tmp_path / "0.tar", [sound, attrs.evolve(make_sample(1), image=encoded(noise(90, 90), "PNG"))]
        )
        width, height = Image.open(io.BytesIO(sound.image)).size
        spec = ReinforcedPipelineSpec(
            shards=[str(path)],
            batch_size=1,
            image=ImageInput(size=8),
            reinforced=False,
            limits=ImageLimits(num_pixels=width * height),
        )
        pipeline = spec.build(tokenizer=lambda texts: np.zeros((len(texts), 1)))
        assert len(list(pipeline)) == 1
        assert pipeline.report.counts == {"image_too_large": 1}


class TestScans:
    @settings(max_examples=60, deadline=None)
    @given(
        num_scans=st.integers(1, 30),
        between=st.sampled_from([b"", b"\xff", b"\xff\x01", b"\xff\xd3", b"\xff\xd0\xff\x02", b"\xff\xfe\0\0", b"\0"]),
    )
    def test_none_hides_from_the_count(self, num_scans, between):
        """Counted by cutting scans off until a decoder that counts warnings has none: here, by what was written."""
        data = many_scans(40, 30, num_scans, between=between)
        jpeg = read_jpeg(data)
        made = data.count(b"\xff\xda")
        with fails(ImageError, str(made)):
            jpeg.check(ImageLimits(num_scans=made - 1), "x")
        jpeg.check(ImageLimits(num_scans=made), "x")

    @pytest.mark.parametrize("progressive", [True, False])
    def test_other_pictures_in_a_file_do_not_count(self, progressive):
        data = encoded(noise(), "JPEG", progressive=progressive)
        thumbnail = exif_segment(b"\xff\xda" * 1000)
        behind = data + data * 30
        limits = ImageLimits(num_scans=data.count(b"\xff\xda"))
        for odd in (with_segments(data, thumbnail), behind, data + b"\xff\xda" * 900):
            assert np.array_equal(rgb(odd, limits=limits), rgb(data))


class TestMetadata:
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_a_jpeg_without_it_has_the_same_pixels(self, mode, progressive):
        exif = Image.Exif()
        exif[0x010E] = "a picture"
        data = encoded(
            noise(mode=mode),
            "JPEG",
            progressive=progressive,
            exif=exif,
            icc_profile=bytes(200_000),
            comment=b"x",
            dpi=(9, 9),
        )
        bare = read_jpeg(data)
        assert len(bare.data) < len(data) - 200_000
        assert b"a picture" in bare.exif
        assert b"a picture" not in bare.data
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(bare.data))), np.asarray(Image.open(io.BytesIO(data))))

    def test_nothing_is_copied_where_nothing_is_left_out(self):
        data = encoded(noise(), "JPEG")
        assert read_jpeg(data).data is data

    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])
    def test_a_png_without_it_has_the_same_pixels(self, mode):
        image = Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4)) if mode == "I;16" else noise(mode=mode)
        options = {"transparency": bytes(range(256))} if mode == "P" else {}
        data = encoded(image, "PNG", icc_profile=b"x" * 999, dpi=(9, 9), **options)
        opened = open_image(data, ImageLimits()).image
        expected = Image.open(io.BytesIO(data))
        assert opened.mode == expected.mode
        assert np.array_equal(np.asarray(opened.convert("RGBA")), np.asarray(expected.convert("RGBA")))
        assert "icc_profile" not in opened.info

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
    @pytest.mark.parametrize("orientation", range(10))
    @pytest.mark.parametrize("order", "<>")
    def test_it_says_how_a_picture_is_turned_as_pillow_reads_it(self, kind, orientation, order):
        options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
        notes = b"Exif\0\0" + turned_notes(orientation, order=order)
        data = encoded(noise(24, 16), kind, exif=notes, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert np.array_equal(rgb(data), np.asarray(expected))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_heic_is_turned_once(self, orientation):
        image = noise(3, 2).resize((96, 64), Image.Resampling.NEAREST)
        data = encoded(image, "HEIF", quality=100, exif=turned_notes(orientation))
        stream = io.BytesIO()
        image.save(stream, "PNG", exif=turned_notes(orientation))
        expected = rgb(stream.getvalue()).astype(int)
        assert np.abs(rgb(data) - expected).mean() < 4

    def test_a_heic_keeps_the_notes_of_its_camera(self):
        exif = Image.Exif()
        exif[0x0110], exif[0x0112], exif[0x0132] = "Phone 9", 6, "2024:05:01 12:30:00"
        opened = open_image(encoded(noise(64, 64), "HEIF", exif=exif.tobytes()), ImageLimits())
        notes = read_camera_notes(opened.exif)
        assert (notes.camera, notes.taken, opened.orientation) == ("Phone 9", "2024-05-01T12:30:00", 1)

    @pytest.mark.parametrize("text", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
    def test_xmp_counts_where_a_camera_says_nothing(self, text):
        note = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text.encode())
        plain = encoded(noise(24, 16), "JPEG")
        for data, size in (
            (with_segments(plain, note), (16, 24)),
            (with_segments(plain, exif_segment(turned_notes(3)), note), (24, 16)),
            (with_segments(plain, exif_segment(directory([])), note), (16, 24)),
        ):
            assert load_image(data).size == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == size

    def test_png_texts_turn_too(self):
        notes = turned_notes(6).hex()
        for kind in (
            chunk(b"tEXt", b"Raw profile type exif\0\nexif\n      26\n" + notes.encode()),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'tiff:Orientation="6"'),
        ):
            assert load_image(png(40, 30, before=[kind])).size == (30, 40)
            assert load_image(png(40, 30, after=[kind])).size == (30, 40)

    def test_tags_that_overlap_are_never_read(self, monkeypatch):
        from PIL import TiffImagePlugin

        def read(*_: object) -> None:
            raise AssertionError("Pillow reads notes")

        data = [
            with_segments(encoded(noise(), "JPEG"), exif_segment(overlapping(2000, 30_000))),
            png(before=[chunk(b"eXIf", overlapping(2000, 30_000))]),
        ]
        monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "load", read)
        for one in data:
            assert load_image(one).mode == "RGB"


class TestBarrier:
    @pytest.mark.parametrize(
        ("raised", "kind"),
        [
            *((error, ImageError) for error in (RecursionError, AssertionError, KeyError)),
            (MemoryError, ResourceExhaustedError),
            (KeyboardInterrupt, KeyboardInterrupt),
        ],
    )
    def test_whatever_a_decoder_raises_is_an_image_error_but_what_is_not_its_fault(self, monkeypatch, raised, kind):
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
    def test_what_needs_a_package_says_which_also_out_of_a_worker(self, monkeypatch, package, extra, data):
        monkeypatch.setitem(sys.modules, package, None)
        with fails(ImageError, "x", package, "pip") as caught:
            open_image(data, ImageLimits(), "x")
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.reason, str(again)) == ("missing_package", str(caught.value))
        assert again.install.endswith(f"needs {package}: `{install(extra)}`")

    @pytest.mark.parametrize("place", ["pipe", "folder"])
    def test_what_never_ends_is_not_read(self, tmp_path, place):
        if place == "pipe":
            os.mkfifo(tmp_path / "pipe")
        else:
            (tmp_path / "folder").mkdir()
        with pytest.raises(ImageError) as caught:
            load_image(tmp_path / place)
        assert caught.value.reason == "unreadable"
        with fails(ImageError, "1,000"):
            load_image(_Endless(), limits=ImageLimits(num_file_bytes=1000))

    @pytest.mark.extra("video")
    @pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="a file of Linux")
    def test_a_file_of_the_kernel_that_never_ends_is_not_read(self):
        code = """
from pathlib import Path
from mobileclip.data import ImageLimits, SkipReport, load_image
from mobileclip.data.shards.files import read_shard
from mobileclip.datasets.videos import VideoFile
report = SkipReport(log=False)
for read in (load_image, lambda path: VideoFile(Path(path), ImageLimits(), "v")):
    try:
        read("/proc/kmsg")
    except ValueError as error:
        print(error.reason)
print(len(list(read_shard("/proc/kmsg", report.add))), report.num_skipped)
"""
        done = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True, check=True)
        first, second, counts = done.stdout.splitlines()
        assert {first, second} <= {"not_an_image", "unreadable"}
        assert counts == "0 1"


class _Endless(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        buffer[:] = b"x" * len(buffer)
        return len(buffer)


def _mutated(data: st.DataObject) -> bytes:
    kind = data.draw(st.sampled_from([*KINDS, "progressive", "P", "I;16"]))
    image = noise(24, 16, "P" if kind in ("P", "GIF") else "RGB", seed=data.draw(st.integers(0, 2)))
    if kind == "I;16":
        made = bytearray(encoded(Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4)), "PNG"))
    elif kind == "progressive":
        made = bytearray(encoded(image, "JPEG", progressive=True, exif=turned_notes(6)))
    else:
        made = bytearray(encoded(image, "PNG" if kind == "P" else kind))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(made) - 1))
        match data.draw(st.sampled_from(["set", "insert", "cut", "repeat", "number"])):
            case "set":
                made[place] = data.draw(st.integers(0, 255))
            case "insert":
                made[place:place] = data.draw(st.binary(max_size=9))
            case "cut":
                del made[place : place + data.draw(st.integers(1, 40))]
            case "repeat":
                made[place:place] = made[place : place + data.draw(st.integers(1, 200))]
            case _:
                number = data.draw(st.sampled_from([0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
                made[place : place + 4] = struct.pack(data.draw(st.sampled_from([">I", "<I"])), number)
        made = made or bytearray(1)
    return bytes(made)


def _reason(use: Callable[[], object]) -> str:
    try:
        use()
    except (ImageError, BadSampleError) as error:
        return f"{error.reason}: {error}"
    return ""


def _try_every_way(data: bytes) -> None:
    limits = ImageLimits(num_pixels=10**6)

    def replay(decode: Decode) -> None:
        source = SourceImage(data, limits)
        crop = (0, 0, min(source.size[1], 16), min(source.size[0], 16))
        source.replay([crop_augmentation(8)], AugmentationParams(crop=crop), decode)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = _reason(lambda: load_image(data, limits=limits))
        assert len(told) < 600
        assert not told or told.partition(":")[0] in REASONS
        for decode in DECODES:
            sample = _reason(partial(replay, decode))
            assert not sample or sample.partition(":")[0].removeprefix("image_") in REASONS


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_bytes_give_an_image_or_say_why_not(data):
    _try_every_way(_mutated(data))


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(st.data())
def test_very_many_bytes_give_an_image_or_say_why_not(data):
    _try_every_way(_mutated(data))
