"""Images in: files of every kind to RGB, and RGB to the input of an image tower, equal to the release's to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mobileclip.data.images.limits import ImageError, ImageLimits
from mobileclip.data.images.normalize import normalize_pixels
from mobileclip.data.images.opening import image_error, open_image, read_image_file
from mobileclip.data.images.orientation import turned
from mobileclip.inputs import ImageInput

__all__ = ["ImageError", "ImageLimits", "ImageSource", "ImageTransform", "Pixels", "load_image"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# What Pillow holds between resize and crop: half a gigabyte, reached by images about 2000 times as long as wide.
_MAX_RESIZED_PIXELS = 2**27
# Images of 16 bits are scaled so many pixels at a time.
_STRIP_PIXELS = 2**20

ImageSource = str | Path | bytes | BinaryIO | Image.Image
Pixels = npt.NDArray[np.uint8]
LIMITS = ImageLimits()


@attrs.frozen
class ImageTransform:
    """Turn an image into the input of an image tower.

    Resize the shorter side to `size` (antialiased), crop the centre, then `(pixel / 255 - mean) / std`.

    Shape: an image of any size -> (3, size, size), float32.

    Args:
        image_input: the contract of the model.

    Source: the release's torchvision transform, to the bit.
    Differs: an image in another mode becomes RGB first, not last; one about 2000 times as long as wide is refused.
    """

    image_input: ImageInput = attrs.field(validator=attrs.validators.instance_of(ImageInput))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the input for one image.

        Shape: an image -> (3, size, size), float32.

        Raises:
            ImageError: if the image cannot be made RGB, or has no pixels or an extreme shape.
        """
        return self.normalize(self.pixels(image))

    def pixels(self, image: Image.Image, *, name: str | None = None) -> Pixels:
        """Return the resized and cropped pixels.

        Shape: an image -> (size, size, 3), uint8.

        Args:
            image: a PIL image.
            name: of the image, for messages; by default what it says itself.

        Raises:
            ImageError: if the image cannot be made RGB, or has no pixels or an extreme shape.
        """
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"expected a PIL image, got {type(image).__name__}; load_image opens paths, bytes and files, "
                "PIL.Image.fromarray takes arrays"
            )
        return self._pixels(image, name or _name(image))

    def resize_reduced(self, image: Image.Image, size: tuple[int, int], *, reduce: int, name: str) -> Image.Image:
        """Return an image that was decoded at a part of its size, at the size that the whole one is resized to.

        `pixels` then takes the centre of it.

        Args:
            image: in RGB.
            size: width and height of the whole image.
            reduce: by how much it was divided, rounded up, when it was decoded.
            name: of the image, for messages.

        Raises:
            ImageError: if it has an extreme shape.
        """
        # What was rounded up is no part of the picture.
        box = (0.0, 0.0, size[0] / reduce, size[1] / reduce)
        return image.resize(_resized(size, self.image_input.size, name), _FILTERS[self.image_input.interpolation], box)

    def read_pixels(self, source: ImageSource, *, limits: ImageLimits = LIMITS) -> Pixels:
        """Return the resized and cropped pixels of an image that is read as `load_image` does, upright.

        Shape: an image -> (size, size, 3), uint8.

        Args:
            source: a path, the bytes of a file, a file opened for reading bytes, or a PIL image.
            limits: of the work and memory that it may cost.

        Raises:
            ImageError: if it cannot be read or has an extreme shape; the message names the source.
        """
        return self._pixels(load_image(source, limits=limits), _name(source))

    def _pixels(self, image: Image.Image, name: str) -> Pixels:
        size = self.image_input.size
        width, height = _resized(image.size, size, name)
        resized = load_image(image).resize((width, height), _FILTERS[self.image_input.interpolation])
        left, top = round((width - size) / 2), round((height - size) / 2)
        return np.array(resized.crop((left, top, left + size, top + size)))

    def normalize(self, pixels: Pixels | torch.Tensor) -> torch.Tensor:
        """Return pixels as the tower takes them, on the device where they are.

        `(pixel / 255 - mean) / std`

        Shape: (..., height, width, 3), uint8 -> (..., 3, height, width), float32.

        Raises:
            ValueError: if the pixels are not uint8 with the three channels last.
        """
        pixels = torch.as_tensor(pixels)
        if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
            raise ValueError(
                f"expected uint8 pixels of shape (..., height, width, 3), got {pixels.dtype} {tuple(pixels.shape)}"
            )
        return normalize_pixels(pixels.movedim(-1, -3), self.image_input)


def load_image(
    source: ImageSource,
    *,
    orient: bool = True,
    reduce: int = 1,
    limits: ImageLimits = LIMITS,
    name: str | None = None,
) -> Image.Image:
    """Return an image in RGB, decoded to its end, the first frame of several.

    Gray and CMYK are converted and 16 bits a channel scaled to 8. Transparency is dropped, not blended: the colour
    below it shows, which is what the models were trained on.

    Args:
        source: a path, the bytes of a file, a file opened for reading bytes, or a PIL image. Files are JPEG, PNG, WebP,
            GIF, BMP, TIFF, AVIF or HEIF (HEIC; extra `heif`), or raw files of cameras (DNG, CR2, NEF, ARW, ORF, RW2;
            extra `raw`), of which the picture in them is read.
        orient: turn the image as its EXIF orientation says, where it is read from a file or bytes; orientation that
            cannot be read turns nothing. A PIL image is taken as it stands. TIFF and HEIF are always turned.
        reduce: 2, 4 or 8 to decode a JPEG at that part of its size, rounded up, which is faster; others ignore it.
        limits: of the work and memory that an image may cost; a PIL image was opened by someone else.
        name: of the image, for messages; by default what the source says.

    Raises:
        ImageError: if it is missing, no image, broken, cannot be made RGB, or is beyond a limit.

    Differs: the release ignores the orientation (`orient=False`), and turns 16-bit images all but white.
    """
    name = name or _name(source)
    try:
        if isinstance(source, Image.Image):
            return _rgb(source, name)
        data = source if isinstance(source, bytes) else read_image_file(source, limits, name)
        opened = open_image(data, limits, name)
        with opened.image as image:
            if reduce > 1 and opened.kind.name == "JPEG":
                image.draft(None, (image.width // reduce, image.height // reduce))
            image.load()
            converted = _rgb(image, name)
            if converted is image and opened.kind.num_held:
                # Its decoder would live as long as the image does.
                converted = image.copy()
        return turned(converted, opened.orientation) if orient else converted
    except ImageError:
        raise
    except Exception as error:
        # Decoders raise anything on broken bytes.
        raise image_error(error, name) from error


def _name(source: ImageSource) -> str:
    if isinstance(source, bytes):
        return f"image of {len(source)} bytes"
    if isinstance(source, (str, Path)):
        return f"image {str(source)!r}"
    if not isinstance(source, Image.Image) and not hasattr(source, "read"):
        raise ValueError(
            f"expected a path, bytes, a file opened for reading bytes or a PIL image, got {type(source).__name__}"
        )
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return f"image {str(name)!r}" if name else f"image from {type(source).__name__}"


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(image, name)
    if image.mode == "F":
        raise ImageError("unsupported_mode", f"{name} holds floats of unknown range; scale it to 8 bits first")
    if image.mode == "P":
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError("unsupported_mode", f"{name} has mode {image.mode!r}, which has no RGB ({error})") from error


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """Scale [0, 65535] to [0, 255], rounded to the nearest."""
    scaled = Image.new("RGB", image.size)
    num_rows = max(1, _STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, num_rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + num_rows, image.height))))
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ImageError(
                "unsupported_mode",
                f"{name} holds integers from {values.min()} to {values.max()}, more than 16 bits; scale it to 8 bits "
                "first",
            )
        strip = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        scaled.paste(Image.fromarray(strip).convert("RGB"), (0, top))
    return scaled


def _resized(whole: tuple[int, int], size: int, name: str) -> tuple[int, int]:
    """Return width and height of the image with `size` as its shorter side; the longer is cut to whole pixels."""
    short, long = sorted(whole)
    if short == 0:
        raise ImageError("extreme_shape", f"{name} is {whole[0]} x {whole[1]}: it has no pixels")
    resized = int(size * long / short)
    if size * resized > _MAX_RESIZED_PIXELS:
        raise ImageError(
            "extreme_shape",
            f"{name} is {whole[0]} x {whole[1]}, and would be resized to {size} x {resized} pixels "
            "before the centre is taken; crop it first",
        )
    return (size, resized) if whole[0] <= whole[1] else (resized, size)
