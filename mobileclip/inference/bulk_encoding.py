"""Encodes many images in order, batch by batch, while worker processes read and decode the next images."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.metadata import CameraMetadata, read_camera_metadata
from mobileclip.data.images.opening import read_image_file
from mobileclip.data.images.resize import Pixels
from mobileclip.data.images.transform import LIMITS, ImageTransform, read_tower_image
from mobileclip.data.samples.sample import decode_image
from mobileclip.data.skips import BadSampleError
from mobileclip.data.workers import workers
from mobileclip.datasets.videos import VideoFile
from mobileclip.inference.encoding import encode_in_batches
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.machine import raise_machine_fault

Box = tuple[int, int, int, int]


def view_of(data: bytes, transform: ImageTransform) -> Pixels:
    """Decode an image, rotate the image upright, and return the model input.

    Shape:
        result: `(size, size, 3)`, uint8.

    Raises:
        BadSampleError: if the image cannot be decoded or is too large; the error's reason starts with `image_`.
    """
    try:
        return read_tower_image(data, transform, name="image").pixels
    except ImageError as error:
        raise BadSampleError(f"image_{error.reason}", error.message) from None


def views_of(data: bytes, transform: ImageTransform, boxes: Sequence[Box | None]) -> list[Pixels | None]:
    """Decode an image and return one model input per crop.

    Args:
        data: bytes of the image file.
        transform: image transform of the model.
        boxes: left, top, right and bottom of each crop, in pixels of the stored image (before EXIF rotation); None for
            the full image. The result for a box outside the image is None.

    Raises:
        BadSampleError: if the image cannot be decoded or is too large, see `view_of`.
    """
    if list(boxes) == [None]:
        return [view_of(data, transform)]
    image = decode_image(data, orient=False, background=transform.image_input.background_color)
    inside = [box is None or _overlaps(box, image.size) for box in boxes]
    try:
        return [
            transform.pixels(image if box is None else image.crop(box)) if there else None
            for box, there in zip(boxes, inside, strict=True)
        ]
    except ImageError as error:
        raise BadSampleError(f"image_{error.reason}", error.message) from None


def _overlaps(box: Box, size: tuple[int, int]) -> bool:
    left, top, right, bottom = box
    return left < size[0] and top < size[1] and right > 0 and bottom > 0


Key = TypeVar("Key")

# Number of images that a process reads before it returns them.
_CHUNK = 8


@attrs.frozen(kw_only=True)
class Moment:
    """A video frame to encode, given by its time in the video.

    Args:
        path: path of the video file.
        seconds: time since the first frame.
    """

    path: Path
    seconds: float


@attrs.frozen(kw_only=True, eq=False)
class ImageItem(Generic[Key]):
    """An image to encode.

    Args:
        key: the caller's identifier of the image.
        name: name of the image, for messages.
        source: path of the image file, bytes of the file, or a time in a video.
        known: SHA-256 hashes of images that already have embeddings; the reader does not decode an image with a known
            hash.
    """

    key: Key
    name: str
    source: Path | bytes | Moment
    known: tuple[str, ...] = ()


@attrs.frozen(kw_only=True, eq=False)
class ImageRead:
    """A decoded image: model input and metadata.

    Args:
        sha256: SHA-256 of the file; empty for a video frame.
        num_bytes: size of the file in bytes; 0 for a video frame.
        pixels: model input, `(size, size, 3)`, uint8; None if the hash is in `ImageItem.known`.
        width: width of the upright image in pixels; 0 for an image with a known hash.
        height: height of the upright image in pixels; 0 for an image with a known hash.
        notes: camera metadata from the file's EXIF; empty for a video frame.
    """

    sha256: str
    num_bytes: int
    pixels: Pixels | None = None
    width: int = 0
    height: int = 0
    notes: CameraMetadata = CameraMetadata()


@attrs.frozen(kw_only=True, eq=False)
class Encoded(Generic[Key]):
    """The result of encoding an image: the embedding or an error.

    Args:
        item: the image from the caller.
        read: size and metadata of the image, or the reading error.
        embedding: `(dim,)`, float32, of unit length; None after an error, for a known hash, or if `choose` returned
            False.
    """

    item: ImageItem[Key]
    read: ImageRead | ImageError
    embedding: NDArray[np.float32] | None = None


@attrs.frozen(kw_only=True)
class ImageReader:
    """Reads and decodes images for a model, in this process or in another.

    Args:
        transform: image transform of the model.
        reduced: whether to decode JPEGs at reduced size, see `read_tower_image`.
    """

    transform: ImageTransform
    reduced: bool

    def __call__(self, chunk: _Chunk) -> list[ImageRead | ImageError]:
        """Decode images; return the error in place of an image that cannot be decoded."""
        with _OpenVideo() as video:
            return [self._attempt(item, video) for item in chunk.items]

    def _attempt(self, item: ImageItem[None], video: _OpenVideo) -> ImageRead | ImageError:
        try:
            if isinstance(item.source, Moment):
                return self._read_frame(item.source, item.name, video)
            return self._read(item, item.source)
        except ImageError as error:
            raise_machine_fault(error)
            return error
        except Exception as error:  # noqa: BLE001  last resort: a bad image must not affect others
            raise_machine_fault(error)
            return ImageError("corrupt", f"image {item.name!r} cannot be decoded ({type(error).__name__}: {error})")

    def _read_frame(self, moment: Moment, name: str, video: _OpenVideo) -> ImageRead:
        image = video.frame(moment, f"video {name!r}")
        pixels = self.transform.pixels(image, name=f"video {name!r}")
        return ImageRead(sha256="", num_bytes=0, pixels=pixels, width=image.width, height=image.height)

    def _read(self, item: ImageItem[None], source: Path | bytes) -> ImageRead:
        name = f"image {item.name!r}"
        data = read_image_file(source, LIMITS, name)
        digest = hashlib.sha256(data).hexdigest()
        if digest in item.known:
            return ImageRead(sha256=digest, num_bytes=len(data))
        image = read_tower_image(data, self.transform, reduced=self.reduced, name=name)
        return ImageRead(
            sha256=digest,
            num_bytes=len(data),
            pixels=image.pixels,
            width=image.width,
            height=image.height,
            notes=read_camera_metadata(image.exif),
        )


class _OpenVideo:
    """Context manager that keeps the video of the last frame open for the next frame."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._video: VideoFile | None = None

    def __enter__(self) -> _OpenVideo:  # noqa: PYI034 - `Self` needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.close()

    def frame(self, moment: Moment, name: str) -> Image.Image:
        if self._video is None or self._path != moment.path:
            if self._video is not None:
                self._video.close()
                self._video = None
            self._video, self._path = VideoFile(moment.path, LIMITS, name), moment.path
        return self._video.frame(moment.seconds)


@attrs.frozen
class _Chunk:
    """A batch of images to read."""

    items: tuple[ImageItem[None], ...]

    def __str__(self) -> str:
        return f"{self.items[0].name} and {len(self.items) - 1} others"


def encode_images(
    clip: ImageTextModel,
    items: Iterable[ImageItem[Key]],
    *,
    reduced: bool = False,
    batch_size: int = 32,
    num_workers: int = 1,
    choose: Callable[[ImageItem[Key], Pixels], bool] | None = None,
) -> Iterator[Encoded[Key]]:
    """Yield the images in order, with their embeddings or errors.

    Args:
        clip: image-text model.
        items: iterable of images; the workers read a few hundred images ahead of the model.
        reduced: whether to decode JPEGs at reduced size, see `read_tower_image`.
        batch_size: images per batch.
        num_workers: number of processes that read and decode images; 1 for this process only.
        choose: predicate on an item and its decoded pixels that selects the images to encode, called in order; None
            to encode all images.

    Raises:
        LostProcessError: if a worker process ends abruptly, for example when out of memory.
    """
    reader = ImageReader(transform=clip.transform, reduced=reduced)

    def wanted() -> Iterator[tuple[tuple[ImageItem[Key], ImageRead | ImageError], list[Pixels]]]:
        for item, read in _read_ahead(items, reader, num_workers):
            seen = None if isinstance(read, ImageError) else read.pixels
            is_chosen = seen is not None and (choose is None or choose(item, seen))
            # Otherwise a caller that keeps the results would keep the pixels of all images.
            kept = read if isinstance(read, ImageError) else attrs.evolve(read, pixels=None)
            yield (item, kept), [seen] if seen is not None and is_chosen else []

    def encode(pixels: list[Pixels]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = clip.encode_pixels(torch.from_numpy(np.stack(pixels))).numpy()
        return rows

    for (item, read), rows in encode_in_batches(wanted(), encode, batch_size=batch_size):
        yield Encoded(item=item, read=read, embedding=rows[0] if rows else None)


def _read_ahead(
    items: Iterable[ImageItem[Key]], reader: Callable[[_Chunk], list[ImageRead | ImageError]], num_workers: int
) -> Iterator[tuple[ImageItem[Key], ImageRead | ImageError]]:
    sent: deque[tuple[ImageItem[Key], ...]] = deque()

    def chunks() -> Iterator[_Chunk]:
        remaining = iter(items)
        while chunk := tuple(islice(remaining, _CHUNK)):
            sent.append(chunk)
            yield _Chunk(tuple(ImageItem(key=None, name=one.name, source=one.source, known=one.known) for one in chunk))

    with workers(num_workers) as share:
        for found in share(reader, chunks(), doing="reading"):
            yield from zip(sent.popleft(), found, strict=True)
