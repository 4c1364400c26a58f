"""Reads single frames at given times from video files of a few formats, with limits and without opening other files.

PyAV contains FFmpeg, which supports about three hundred formats. Many formats are rare, and playlists make FFmpeg open
other files and URLs. This module never reads audio, subtitle or data streams.
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
from mobileclip.data.images.metadata import CameraMetadata
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault

if TYPE_CHECKING:
    import av


@attrs.frozen(kw_only=True)
class VideoFormat:
    """A kind of video file.

    Args:
        name: name of the FFmpeg demuxer; no other demuxer reads the file.
        extensions: file extensions, in lower case and without the dot.
        media_type: media type for playing the file in browsers.
        start: regular expression for the first bytes of a file.
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
"""All supported extensions of video files, without the dot."""

DECODERS = (
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "msmpeg4v2", "msmpeg4"),
    *("mpeg1video", "mpeg2video", "h263", "mjpeg", "prores", "dvvideo"),
)
"""Allowed FFmpeg decoders."""

START_BYTES = 12
"""Number of bytes needed to detect the format."""


def find_video_format(start: bytes) -> VideoFormat | None:
    """Return the format of a video from its first bytes; None if the format is not supported."""
    return next((kind for kind in VIDEO_FORMATS if kind.start.match(start)), None)


def named_format(name: str) -> VideoFormat | None:
    """Return the format of a video from a file name such as `clip.MP4`; None for other extensions."""
    _, dot, extension = name.rpartition(".")
    return next((kind for kind in VIDEO_FORMATS if dot and extension.lower() in kind.extensions), None)


def is_video_name(name: str) -> bool:
    """Return whether a file name has the extension of a video."""
    return named_format(name) is not None


MOST_SECONDS = 48 * 3600.0
"""Maximum duration that a video file may state, in seconds."""

_MOST_HEADER_BYTES = 2**28
# Maximum number of pixels to decode for one frame: about 15 minutes of 1080p without a keyframe.
_MOST_DECODED_PIXELS = 2**36
# To reach a frame at most this far ahead, decode all frames before it instead of seeking.
_NEAR_SECONDS = 2.0
# Minimum duration of the last frame.
_LAST_SECONDS = 2.0
_DEGREES = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
_TAKEN = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")
_DURATION = re.compile(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,9})?)")
_PLACE = re.compile(r"([+-]\d{1,2}(?:\.\d+)?)([+-]\d{1,3}(?:\.\d+)?)")
_MOST_LETTERS = 100


class VideoFile:
    """An open video; call `close` after use, or use the video in a `with` statement.

    Args:
        path: path of the file.
        limits: limits on the number of pixels per frame.
        name: name of the video, for messages.

    Raises:
        ImageError: if the file is missing, not a video in a supported format, damaged or beyond a limit, or if PyAV is
            not installed (reason `missing_package`).
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
                # FFmpeg has a class for every error number.
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
        """Duration of the video stream in seconds; if the stream states no duration, the duration of the file."""
        noted = _DURATION.match(self._stream.metadata.get("DURATION", ""))
        if noted is not None:
            return 3600 * int(noted[1]) + 60 * int(noted[2]) + float(noted[3])
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        return (self._container.duration or 0) / 1e6

    @property
    def notes(self) -> CameraMetadata:
        """Metadata from the camera; `taken` is the camera's local time if stated, otherwise UTC."""
        noted = self._container.metadata
        taken = _TAKEN.match(noted.get("com.apple.quicktime.creationdate", noted.get("creation_time", "")))
        place = _PLACE.match(noted.get("com.apple.quicktime.location.ISO6709", noted.get("location", "")))
        latitude, longitude = (None, None) if place is None else (float(place[1]), float(place[2]))
        is_placed = latitude is not None and longitude is not None and abs(latitude) <= 90 and abs(longitude) <= 180
        maker, model = (_text(noted.get(f"com.apple.quicktime.{one}", "")) for one in ("make", "model"))
        parts = (model,) if model.lower().startswith(maker.lower()) else (maker, model)
        return CameraMetadata(
            camera=" ".join(filter(None, parts)) or None,
            taken=None if taken is None else taken[1],
            latitude=latitude if is_placed else None,
            longitude=longitude if is_placed else None,
        )

    def frame(self, seconds: float) -> Image.Image:
        """Return the frame displayed at a time as an upright RGB image with square pixels.

        Reading is fastest if the times ascend from call to call.

        Args:
            seconds: time since the first frame, in seconds, at least 0.

        Raises:
            ImageError: if the video has no frame at this time, or the frame cannot be decoded.
        """
        try:
            self._go_to(seconds)
            return self._picture(seconds)
        except Exception as error:
            # The next request then seeks, which finds the frames after the damage.
            self._shown = self._next = None
            if isinstance(error, ImageError):
                raise
            raise _broken(error, self._name) from error

    def _checked_stream(self) -> av.VideoStream:
        streams = [one for one in self._container.streams.video if not one.disposition & one.disposition.attached_pic]
        if not streams:
            raise ImageError("not_an_image", f"{self._name} has no video stream")
        stream: av.VideoStream = streams[0]
        decoder = stream.codec_context.codec.name
        if decoder not in DECODERS:
            raise ImageError("unsupported_format", f"{self._name} is encoded with the unsupported codec {decoder}")
        self._limits.check_pixels(stream.width, stream.height, self._name)
        seconds = max((self._container.duration or 0) / 1e6, float((stream.duration or 0) * (stream.time_base or 0)))
        if seconds > MOST_SECONDS:
            raise ImageError(
                "too_large",
                f"{self._name} lasts {seconds / 3600:,.0f} hours, but the limit is {MOST_SECONDS / 3600:g} hours",
            )
        # The size of a stream may increase; decoders count more pixels than displayed.
        stream.codec_context.options = {"max_pixels": str(2 * self._limits.num_pixels + 2**16)}
        return stream

    def _go_to(self, seconds: float) -> None:
        """Decode up to the frame displayed at a time."""
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
                raise ImageError(
                    "too_large",
                    f"{self._name} has too few keyframes before {seconds:g} seconds; encode the video with more "
                    "keyframes",
                )
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
            raise ImageError("truncated", f"{self._name} has no frame at {seconds:g} seconds; fetch the video again")
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
        raise ImageError("not_an_image", f"{name} is not a video in a supported format ({', '.join(VIDEO_EXTENSIONS)})")
    file.seek(0)
    bounded = _Bounded(file)
    # FFmpeg gets a stream without a name, so the content cannot make FFmpeg open another file or a URL.
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
    """A file that limits the number of bytes read; without a limit, FFmpeg may read a whole file to find the header."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self.remaining: float = _MOST_HEADER_BYTES

    def read(self, size: int) -> bytes:
        self.remaining -= size
        if self.remaining < 0:
            raise OSError(f"the header has more than {_MOST_HEADER_BYTES:,} bytes")
        return self._file.read(size)


def _refuse(*_: object) -> NoReturn:
    raise PermissionError("a video must not make FFmpeg open other files")


def _broken(error: Exception, name: str) -> ImageError:
    raise_machine_fault(error)
    if isinstance(error, MemoryError):  # raised by FFmpeg for sizes stated in the file
        return ImageError("out_of_memory", f"{name} needs more memory than is available")
    from av import FFmpegError

    # The rest of the error repeats the number and the path.
    said = error.strerror if isinstance(error, FFmpegError) else error
    return ImageError("corrupt", f"{name} cannot be decoded ({said}); fetch the video again")


def _text(stored: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in stored[:_MOST_LETTERS])
    return " ".join(shown.split())
