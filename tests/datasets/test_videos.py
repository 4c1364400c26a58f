"""Frames of videos by their times, and that a file from a stranger opens nothing but itself."""

import os
import random
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mobileclip.data import ImageError, ImageLimits
from mobileclip.datasets import videos
from mobileclip.datasets.videos import VIDEO_FORMATS, VideoFile, find_video_format, is_video_name
from tests.datasets.made_videos import film, scene
from tests.errors import fails
from tests.preloaded import preloaded

LIMITS = ImageLimits()
IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def shown(path, *times, limits=LIMITS):
    with VideoFile(path, limits, "v") as video:
        return [video.frame(time) for time in times]


def is_scene(image, seed, **how):
    return np.abs(np.asarray(image).astype(int) - np.asarray(scene(seed, **how))).mean() < 6


def refused(path, **limits):
    with pytest.raises(ImageError) as caught:
        shown(path, 0, 1, limits=ImageLimits(**limits))
    assert str(caught.value).startswith("v ")
    return caught.value.reason


KINDS = (("a.mp4", "libx264", 5), ("b.mkv", "libx264", 1000), ("c.webm", "libvpx", 5), ("d.avi", "mpeg4", 5))


@pytest.mark.parametrize(("name", "codec", "keys"), [*KINDS, ("e.mov", "mjpeg", 5)])
def test_a_frame_is_the_one_that_is_shown_at_the_time(tmp_path, name, codec, keys):
    path = film(tmp_path / name, [1, 2, 3, 4], codec=codec, keys=keys)
    with VideoFile(path, LIMITS, name) as video:
        assert video.seconds == pytest.approx(8, abs=0.1)
        for time in (0, 2, 3.99, 4, 7.8, 9, 1.9, 6, 0.1):
            assert is_scene(video.frame(time), min(4, 1 + int(time / 2))), time
        with fails(ImageError, "20"):
            video.frame(20)
        assert is_scene(video.frame(3), 2)


def test_frames_are_upright_with_square_pixels(tmp_path):
    path = film(tmp_path / "a.mp4", [1])
    data = path.read_bytes()
    assert data.count(IDENTITY) == 2  # of the film, and of the pictures
    phone = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(phone.join(data.rsplit(IDENTITY, 1)))
    (image,) = shown(path, 0)
    assert image.size == (64, 96)
    # As a phone that stands upright writes it: a quarter to the right brings it upright.
    assert is_scene(image.rotate(90, expand=True), 1)
    (image,) = shown(film(tmp_path / "b.mkv", [1], shape=2), 0)
    assert image.size == (192, 64)


def test_what_the_camera_noted_is_read(tmp_path):
    apple = "com.apple.quicktime."
    notes = {f"{apple}make": "Apple", f"{apple}model": "Phone\x1b 9", "creation_time": "2024-05-01T12:30:00Z"}
    notes |= {f"{apple}creationdate": "2024-05-01T14:30:00+0200", f"{apple}location.ISO6709": "+52.52+013.405+034.0/"}
    wrong = notes | {f"{apple}location.ISO6709": "+99.0+013.4/", f"{apple}creationdate": "now"}
    for given, expected in (
        (notes, ("Apple Phone 9", "2024-05-01T14:30:00", 52.52, 13.405)),
        (wrong, ("Apple Phone 9", None, None, None)),
    ):
        path = film(tmp_path / "a.mov", [1], notes=given, options={"movflags": "use_metadata_tags"})
        with VideoFile(path, LIMITS, "v") as video:
            found = video.notes
        assert (found.camera, found.taken, found.latitude, found.longitude) == expected


def test_only_known_kinds_are_opened(tmp_path):
    import av

    assert is_video_name("a/b.MP4")
    assert not any(map(is_video_name, ("mp4", "a.mp4.part", "a.m3u8", "a.gif", "a.")))
    starts = [b"\0\0\0\x20ftypisom", b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81", b"RIFF1234AVI "]
    assert [find_video_format(start) for start in starts] == list(VIDEO_FORMATS)
    secret, clip = film(tmp_path / "secret.mp4", [1]), tmp_path / "clip.mp4"
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{secret}'\n",
        "#EXTM3U\nhttp://127.0.0.1:9/a.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "<html>",
        "",
    ):
        clip.write_text(text)
        assert refused(clip) == "not_an_image"
    for codec in ("rawvideo", "ffv1"):
        assert refused(film(tmp_path / "a.mkv", [1], codec=codec)) in {"unsupported_format", "corrupt"}
    with av.open(clip, "w") as out:  # sound alone is no video
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        out.mux([*stream.encode(frame), *stream.encode(None)])
    assert refused(clip) == "not_an_image"
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refused(tmp_path / "pipe.mp4") == refused(tmp_path) == "unreadable"
    assert refused(tmp_path / "gone.mp4") == "missing_file"


def test_limits_hold(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", [1, 2])
    assert shown(path, 0, limits=ImageLimits(num_pixels=96 * 64))
    assert refused(path, num_pixels=96 * 64 - 1) == "too_large"
    long = film(tmp_path / "b.mkv", [1, 2], keys=1000)
    monkeypatch.setattr(videos, "_MOST_DECODED_PIXELS", 5 * 96 * 64)
    assert shown(long, 0.5)
    with fails(ImageError, "3"):
        shown(long, 3)
    assert len(shown(film(tmp_path / "c.mp4", [1, 2, 3, 4]), 0, 6)) == 2, "what lies between is not decoded"
    monkeypatch.setattr(videos, "MOST_SECONDS", 3)
    assert refused(path) == "too_large"


def test_a_table_of_times_larger_than_memory(tmp_path):
    content = bytearray(film(tmp_path / "a.mp4", [1]).read_bytes())
    at = content.rindex(b"stts") + 8
    content[at : at + 4] = (500_000_000).to_bytes(4, "big")
    (tmp_path / "b.mp4").write_bytes(content)
    assert refused(tmp_path / "b.mp4") == "out_of_memory"


AVI = pytest.param(b"RIFF\0\0\0\0AVI LIST\0\0\0\0hdrl", marks=pytest.mark.slow)


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypisom", b"\x1a\x45\xdf\xa3", AVI])
def test_a_large_file_that_only_begins_like_a_video_is_soon_refused(tmp_path, start):
    path = tmp_path / "clip.mp4"
    path.write_bytes(start)
    os.truncate(path, 50 * 2**30)
    done = preloaded().call("tests.datasets.test_videos:print_reason", str(path), folder=tmp_path, seconds=120)
    assert done.output.split()[-1] in {"not_an_image", "corrupt"}, done.output


def print_reason(path):
    print(refused(Path(path)))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("b.webm", "libvpx"), ("c.avi", "mjpeg")])
def test_damage_ends_in_a_picture_or_in_an_error(tmp_path, name, codec):
    path = film(tmp_path / name, [1, 2], codec=codec)
    data = path.read_bytes()
    draw = random.Random(0)
    for _ in range(40):
        damaged = bytearray(data[: draw.randrange(12, len(data))] if draw.random() < 0.3 else data)
        for _ in range(draw.randrange(1, 20)):
            damaged[draw.randrange(12, len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        with suppress(ImageError):
            assert shown(path, 0, 3, limits=ImageLimits(num_pixels=10**6))[1].size == (96, 64)
