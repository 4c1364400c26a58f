"""Reads single frames of video files by time; only a few formats within limits, and no other files.

FFmpeg, which PyAV brings, knows some three hundred formats. Among them are playlists, which make it open other files
and URLs, and decoders of games and of laboratories. Sound, subtitles and whatever else a file holds are never read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import attrs
from PIL import Image

from mobileclip import storage
from mobileclip.data.images.limits import ImageError, ImageLimits
from mobileclip.data.images.metadata import CameraNotes
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault

if TYPE_CHECKING:
    import av


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
        name="matroska", extensions=("mkv", "webm"), media_type="video/webm", start=re.compile(rb"\x1a\x45\xdf\xa3")
    ),
    VideoFormat(name="avi", extensions=("avi",), media_type="video/x-msvideo", start=re.compile(rb"(?s)RIFF.{4}AVI ")),
)

VIDEO_EXTENSIONS = tuple(extension for kind in VIDEO_FORMATS for extension in kind.extensions)
"""Every extension of a video file, without the dot; the only list of them."""

DECODERS = (
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "msmpeg4v2", "msmpeg4"),
    *("mpeg1video", "mpeg2video", "h263", "mjpeg", "prores", "dvvideo"),
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


MOST_SECONDS = 48 * 3600.0
"""A video that says to last longer is refused."""

_MOST_HEADER_BYTES = 2**28
# Beyond them, a frame that is asked for is given up: some 15 minutes of 1080p without a frame that stands on its own.
_MOST_DECODED_PIXELS = 2**36
# What is so little ahead is decoded on the way there, without a jump.
_NEAR_SECONDS = 2.0
# The last frame is shown for so long at least.
_LAST_SECONDS = 2.0
_DEGREES = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
_TAKEN = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")
_DURATION = re.compile(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,9})?)")
_PLACE = re.compile(r"([+-]\d{1,2}(?:\.\d+)?)([+-]\d{1,3}(?:\.\d+)?)")
_MOST_LETTERS = 100


class VideoFile:
    """An open video; close it, or use it in a `with` statement.

    Args:
        path: path of the file.
        limits: limits of the pixels of a frame.
        name: name of the video, for messages.

    Raises:
        ImageError: if it is missing, no video in a format that is read, broken, or beyond a limit; with the reason
            `missing_package` if PyAV is not installed.
    """

    def __init__(self, path: Path, limits: ImageLimits, name: str) -> None:
        self._limits, self._name = limits, name
        with ExitStack() as opened:
            try:
                self._container = opened.enter_context(_opened(opened, path, name))
                self._stream = self._checked_stream()
            except ImageError:
                raise
            except Exception as error:
                # FFmpeg's errors have a class for every number.
                raise _broken(error, name) from error
            self._closing = opened.pop_all()
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._shown: av.VideoFrame | None = None
        self._next: av.VideoFrame | None = None
        self._is_jumping_useless = False

    def __enter__(self) -> VideoFile:  # noqa: PYI034 - `Self` needs Python 3.11
        """Return the video."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._closing.close()

    @property
    def seconds(self) -> float:
        """How long it lasts, as it says: the images, where that is told apart from the sound."""
        noted = _DURATION.match(self._stream.metadata.get("DURATION", ""))
        if noted is not None:
            return 3600 * int(noted[1]) + 60 * int(noted[2]) + float(noted[3])
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        return (self._container.duration or 0) / 1e6

    @property
    def notes(self) -> CameraNotes:
        """What the camera noted; of the time, the camera's own where it says it, and else that of Greenwich."""
        noted = self._container.metadata
        taken = _TAKEN.match(noted.get("com.apple.quicktime.creationdate", noted.get("creation_time", "")))
        place = _PLACE.match(noted.get("com.apple.quicktime.location.ISO6709", noted.get("location", "")))
        latitude, longitude = (None, None) if place is None else (float(place[1]), float(place[2]))
        is_placed = latitude is not None and longitude is not None and abs(latitude) <= 90 and abs(longitude) <= 180
        maker, model = (_text(noted.get(f"com.apple.quicktime.{one}", "")) for one in ("make", "model"))
        parts = (model,) if model.lower().startswith(maker.lower()) else (maker, model)
        return CameraNotes(
            camera=" ".join(filter(None, parts)) or None,
            taken=None if taken is None else taken[1],
            latitude=latitude if is_placed else None,
            longitude=longitude if is_placed else None,
        )

    def frame(self, seconds: float) -> Image.Image:
        """Return the frame that is shown at a time: RGB, upright, with square pixels.

        Frames that are asked for in their order cost the least.

        Args:
            seconds: since the first frame, from 0 on.

        Raises:
            ImageError: if there is none, or it cannot be decoded.
        """
        try:
            self._go_to(seconds)
            return self._picture(seconds)
        except Exception as error:
            # What comes behind the damage is found by a jump.
            self._shown = self._next = None
            if isinstance(error, ImageError):
                raise
            raise _broken(error, self._name) from error

    def _checked_stream(self) -> av.VideoStream:
        streams = [one for one in self._container.streams.video if not one.disposition & one.disposition.attached_pic]
        if not streams:
            raise ImageError("not_an_image", f"{self._name} holds no video, but sound or something else")
        stream: av.VideoStream = streams[0]
        decoder = stream.codec_context.codec.name
        if decoder not in DECODERS:
            raise ImageError("unsupported_format", f"{self._name} is encoded as {decoder}, which is not supported")
        self._limits.check_pixels(stream.width, stream.height, self._name)
        seconds = max((self._container.duration or 0) / 1e6, float((stream.duration or 0) * (stream.time_base or 0)))
        if seconds > MOST_SECONDS:
            raise ImageError(
                "too_large", f"{self._name} lasts {seconds / 3600:,.0f} hours, the limit is {MOST_SECONDS / 3600:g}"
            )
        # A stream may grow on its way; decoders count more than what is shown.
        stream.codec_context.options = {"max_pixels": str(2 * self._limits.num_pixels + 2**16)}
        return stream

    def _go_to(self, seconds: float) -> None:
        """Decode up to the frame that is shown at a time."""
        last = None if self._shown is None else self._time(self._shown)
        is_ahead = last is not None and last <= seconds
        if not is_ahead or (last is not None and seconds - last > _NEAR_SECONDS and not self._is_jumping_useless):
            self._jump(seconds)
            if is_ahead and last is not None and self._next is not None and self._time(self._next) <= last:
                self._is_jumping_useless = True
        num_pixels = 0
        while self._next is not None and self._time(self._next) <= seconds:
            self._shown = self._next
            num_pixels += self._shown.width * self._shown.height
            if num_pixels > _MOST_DECODED_PIXELS:
                raise ImageError("too_large", f"{self._name} takes too long to decode at {seconds:g} seconds")
            self._next = next(self._frames, None)
        if self._shown is None:
            self._shown = self._next
        if self._next is None and self._shown is not None:
            lasting = float((self._shown.duration or 0) * (self._shown.time_base or 0))
            if seconds > self._time(self._shown) + max(lasting, _LAST_SECONDS):
                self._shown = None

    def _jump(self, seconds: float) -> None:
        assert self._stream.time_base is not None, "frames have times"
        place = int(seconds / self._stream.time_base) + (self._stream.start_time or 0)
        self._container.seek(place, stream=self._stream, backward=True)
        self._frames = (one for one in self._container.decode(self._stream) if not one.is_corrupt)
        self._shown, self._next = None, next(self._frames, None)

    def _time(self, frame: av.VideoFrame) -> float:
        return 0.0 if frame.time is None else frame.time - self._start

    @property
    def _start(self) -> float:
        return float((self._stream.start_time or 0) * (self._stream.time_base or 0))

    def _picture(self, seconds: float) -> Image.Image:
        frame = self._shown
        if frame is None:
            raise ImageError("truncated", f"{self._name} has no frame at {seconds:g} seconds; fetch it again")
        self._limits.check_pixels(frame.width, frame.height, self._name)
        shape = self._stream.sample_aspect_ratio
        width = round(frame.width * shape) if shape else frame.width
        self._limits.check_pixels(width, frame.height, self._name)
        rgb = frame.reformat(width=max(1, width), height=frame.height, format="rgb24")
        image = Image.fromarray(rgb.to_ndarray())
        turn = _DEGREES.get(frame.rotation % 360)
        return image if turn is None else image.transpose(turn)


def _opened(opened: ExitStack, path: Path, name: str) -> Any:
    try:
        with needed("reading videos", "video"):
            import av
    except ImportError as error:
        raise ImageError("missing_package", f"{name} cannot be read: {error}", install=str(error)) from None
    try:
        file = opened.enter_context(storage.open_read(path, regular=True))
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing_file", f"{name} does not exist") from None
    except (OSError, ValueError) as error:
        raise_machine_fault(error)
        raise ImageError("unreadable", f"{name} cannot be read: {error}") from error
    kind = find_video_format(file.read(START_BYTES))
    if kind is None:
        raise ImageError(
            "not_an_image", f"{name} is not a video in a format that is read ({', '.join(VIDEO_EXTENSIONS)})"
        )
    file.seek(0)
    bounded = _Bounded(file)
    # The file is given as a stream, without a name: nothing in it can make FFmpeg open another file, or a URL.
    container = av.open(
        bounded,
        format=kind.name,
        options={"protocol_whitelist": "", "format_whitelist": kind.name, "codec_whitelist": ",".join(DECODERS)},
        metadata_errors="replace",
        io_open=_refuse,
    )
    bounded.remaining = float("inf")
    return container


class _Bounded:
    """A file of which no more than some bytes are read: FFmpeg may look for a header in all of a large file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self.remaining: float = _MOST_HEADER_BYTES

    def read(self, size: int) -> bytes:
        self.remaining -= size
        if self.remaining < 0:
            raise OSError("its header has no end")
        return self._file.read(size)


def _refuse(*_: object) -> NoReturn:
    raise PermissionError("a video opens no other file")


def _broken(error: Exception, name: str) -> ImageError:
    raise_machine_fault(error)
    if isinstance(error, MemoryError):  # FFmpeg's, of what the file says of itself
        return ImageError("out_of_memory", f"{name} takes more memory than there is")
    from av import FFmpegError

    # The rest is a number, and the path once more.
    said = error.strerror if isinstance(error, FFmpegError) else error
    return ImageError("corrupt", f"{name} cannot be decoded ({said}); fetch it again")


def _text(stored: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in stored[:_MOST_LETTERS])
    return " ".join(shown.split())
