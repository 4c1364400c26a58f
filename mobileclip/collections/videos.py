"""Inspects a video before indexing: reads camera metadata and digest, and chooses the frames to read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip.data import LIMITS, CameraMetadata, ImageError, Pixels
from mobileclip.datasets import VideoFile
from mobileclip.machine import raise_machine_fault

Frames = Literal["seconds", "scenes"]

NEW_SCENE = 0.4
"""Minimum distance between the colour histograms of two frames of different scenes, from 0 to 1."""

# Interval between the frames to compare for new scenes.
_SCENE_SECONDS = 1.0
_MOST_FRAMES = 20_000
# Number of levels per colour channel.
_LEVELS = 6
_READ_BYTES = 2**20


@attrs.frozen(kw_only=True)
class VideoFacts:
    """The result of inspecting a video.

    Args:
        notes: metadata from the camera.
        times: times of the frames to read, in seconds, ascending.
    """

    notes: CameraMetadata
    times: tuple[float, ...]


def inspect_video(path: Path, frames: Frames, seconds: float) -> VideoFacts:
    """Return a video's camera metadata, and the times of the frames to read.

    Args:
        path: path of the video.
        frames: `seconds` for one frame per interval; `scenes` for one frame per second, among which `SceneChooser`
            then chooses.
        seconds: seconds between frames; increased if a video would have more than 20,000 frames.

    Raises:
        ImageError: if the video cannot be read.
    """
    with VideoFile(path, LIMITS, f"video {str(path)!r}") as video:
        lasting, notes = video.seconds, video.notes
    step = max(_SCENE_SECONDS if frames == "scenes" else seconds, lasting / _MOST_FRAMES)
    count = max(1, int(np.ceil(round(lasting / step, 6))))
    return VideoFacts(notes=notes, times=tuple(round(number * step, 3) for number in range(count)))


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file of any size.

    Raises:
        ImageError: if the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except FileNotFoundError:
        raise ImageError("missing_file", f"video {str(path)!r} does not exist") from None
    except OSError as error:
        raise_machine_fault(error)
        raise ImageError("unreadable", f"video {str(path)!r} cannot be read: {error}") from error
    return digest.hexdigest()


class SceneChooser:
    """Chooses frames of a video that differ from the last chosen frame.

    The distance between two frames, from 0 to 1, is half the sum of the absolute differences between their 216-colour
    histograms.
    """

    def __init__(self) -> None:
        self._last: tuple[str, NDArray[np.float64]] | None = None

    def is_new(self, path: str, pixels: Pixels) -> bool:
        """Return whether a frame shows a new scene; the first frame of a video always shows a new scene.

        Args:
            path: path of the video, whose frames must come in order.
            pixels: pixels of the frame, `(height, width, 3)`, uint8.
        """
        colours = colour_shares(pixels)
        if self._last is not None and self._last[0] == path:
            difference = float(np.abs(colours - self._last[1]).sum()) / 2
            if difference < NEW_SCENE:
                return False
        self._last = path, colours
        return True


def colour_shares(pixels: Pixels) -> NDArray[np.float64]:
    """Return the share of an image's pixels in each of 216 colours.

    Shape:
        pixels: `(height, width, 3)`, uint8; result: `(216,)`.
    """
    levels = pixels.reshape(-1, 3).astype(np.int64) * _LEVELS // 256
    numbers = (levels[:, 0] * _LEVELS + levels[:, 1]) * _LEVELS + levels[:, 2]
    return np.bincount(numbers, minlength=_LEVELS**3) / len(numbers)
