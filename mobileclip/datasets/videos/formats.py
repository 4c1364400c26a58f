"""The kinds of video files that are read, and no others: what they are called, how they begin, and who decodes them.

FFmpeg, which PyAV brings, knows some three hundred. Among them are playlists, which make it open other files and
URLs, and decoders of games and of laboratories.
"""

from __future__ import annotations

import re

import attrs


@attrs.frozen(kw_only=True)
class VideoFormat:
    """A kind of video file.

    Args:
        name: of FFmpeg's demuxer, which is the only one that sees the file.
        extensions: that its files have, without the dot and in lower case.
        media_type: by which browsers play it, if they can.
        start: what its files begin with.
    """

    name: str
    extensions: tuple[str, ...]
    media_type: str
    start: re.Pattern[bytes]


VIDEO_FORMATS = (
    VideoFormat(
        name="mov",
        extensions=("mp4", "m4v", "mov"),
        media_type="video/mp4",
        start=re.compile(rb"(?s).{4}(?:ftyp|moov|mdat|wide|free|skip|pnot)"),
    ),
    VideoFormat(
        name="matroska",
        extensions=("mkv", "webm"),
        media_type="video/webm",
        start=re.compile(rb"\x1a\x45\xdf\xa3"),
    ),
    VideoFormat(
        name="avi",
        extensions=("avi",),
        media_type="video/x-msvideo",
        start=re.compile(rb"(?s)RIFF.{4}AVI "),
    ),
)

VIDEO_EXTENSIONS = tuple(extension for kind in VIDEO_FORMATS for extension in kind.extensions)
"""Every extension of a video file, without the dot; the only list of them."""

DECODERS = (
    "h264",
    "hevc",
    "libdav1d",
    "av1",
    "vp8",
    "vp9",
    "libvpx",
    "libvpx-vp9",
    "mpeg4",
    "msmpeg4v2",
    "msmpeg4",
    "mpeg1video",
    "mpeg2video",
    "h263",
    "mjpeg",
    "prores",
    "dvvideo",
)
"""FFmpeg's decoders that may be used."""

START_BYTES = 12
"""So many bytes tell a kind."""


def find_video_format(start: bytes) -> VideoFormat | None:
    """Return what kind of video file begins like this, or None if it is none that is read."""
    return next((kind for kind in VIDEO_FORMATS if kind.start.match(start)), None)


def named_format(name: str) -> VideoFormat | None:
    """Return what kind of video a file is called like, as `clip.MP4` is, or None."""
    _, dot, extension = name.rpartition(".")
    return next((kind for kind in VIDEO_FORMATS if dot and extension.lower() in kind.extensions), None)


def is_video_name(name: str) -> bool:
    """Return whether a file is called like a video."""
    return named_format(name) is not None
