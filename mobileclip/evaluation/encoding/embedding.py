"""The interface of a model under evaluation, and how an image becomes its input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mobileclip.data.images.transform import ImageError, ImageTransform
from mobileclip.data.samples.sample import decode_image
from mobileclip.data.skips import BadSampleError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image
    from torch import Tensor, nn


_MOST_EXTREME = 1000


class ImageTextModel(Protocol):
    """The protocol of a model under evaluation: the two encoders, and what any module has."""

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - the field's signature
        """Return `(batch, dim)`."""

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:  # noqa: FBT001, FBT002 - the field's signature
        """Return `(batch, dim)`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the weights; the first one's device is where inputs go."""

    def modules(self) -> Iterator[nn.Module]:
        """Return the module and all below it."""

    def eval(self) -> object:
        """Switch to evaluation mode."""


class Tokenize(Protocol):
    """Texts to a model's ids, `(texts, context)`."""

    def __call__(self, texts: list[str], /) -> Tensor:
        """Return the ids."""


class Transform(Protocol):
    """A picture, RGB and upright, to the model's input `(3, size, size)`."""

    def __call__(self, image: Image.Image, /) -> Tensor:
        """Return the pixels."""


def read_picture(data: bytes, transform: Transform, *, orient: bool = True) -> Image.Image:
    """Return a picture in RGB, on the background of the model that the transform is of.

    Args:
        data: the encoded picture.
        transform: to the model's input.
        orient: whether it is turned upright; stored boxes are of the pixels as they are encoded.

    Raises:
        BadSampleError: if it cannot be decoded; the reason starts with `image_`.
    """
    background = transform.image_input.background_color if isinstance(transform, ImageTransform) else None
    return decode_image(data, orient=orient, background=background)


def model_input(picture: Image.Image, transform: Transform) -> Tensor:
    """Return a picture as a model takes it.

    Shape:
        result: `(3, size, size)`.

    Raises:
        BadSampleError: if it is out of all shape; the reason starts with `image_`.
    """
    if not isinstance(transform, ImageTransform) and max(picture.size) > _MOST_EXTREME * min(picture.size):
        # Others resize it whole, to gigabytes, before they take its centre.
        raise BadSampleError("image_extreme_shape", f"it is {picture.width} x {picture.height} pixels; crop it first")
    try:
        return transform(picture)
    except ImageError as error:
        raise BadSampleError(f"image_{error.reason}", error.message) from None
