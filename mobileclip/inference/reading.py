"""Pictures of a data set as a model sees them: what cannot be used is a sample that is left out, with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from mobileclip.data.images.resize import Pixels
from mobileclip.data.images.transform import ImageError, ImageTransform, read_tower_image
from mobileclip.data.samples.sample import decode_image
from mobileclip.data.skips import BadSampleError

Box = tuple[int, int, int, int]


def view_of(data: bytes, transform: ImageTransform) -> Pixels:
    """Return what a model sees of an encoded picture, upright.

    Shape:
        result: `(size, size, 3)`, uint8.

    Raises:
        BadSampleError: if it cannot be used; the reason starts with `image_`.
    """
    try:
        return read_tower_image(data, transform, name="image").pixels
    except ImageError as error:
        raise BadSampleError(f"image_{error.reason}", error.message) from None


def views_of(data: bytes, transform: ImageTransform, boxes: Sequence[Box | None]) -> list[Pixels | None]:
    """Return what a model sees of parts of a picture, which are of the pixels as they are encoded.

    Args:
        data: the encoded picture.
        transform: to the model's input.
        boxes: left, top, right and bottom; None for all of it. One that lies outside has no view.

    Raises:
        BadSampleError: see `view_of`.
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
