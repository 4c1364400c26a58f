"""Images in: files of every kind to RGB, and RGB to the input of an image tower, equal to the release's to the bit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from mobileclip.inputs import ImageInput

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# What Pillow holds between resize and crop: half a gigabyte, reached by images about 2000 times as long as wide.
_MAX_RESIZED_PIXELS = 2**27

ImageSource = str | Path | bytes | BinaryIO | Image.Image
Pixels = npt.NDArray[np.uint8]


class ImageError(ValueError):
    """An image that cannot be used.

    Args:
        reason: one of a few words, to be counted: `missing_file`, `unreadable` (a folder, no permission),
            `not_an_image`, `truncated`, `corrupt`, `too_large`, `unsupported_mode`, `extreme_shape`.
        message: which image, what is wrong with it and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


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

    def pixels(self, image: Image.Image) -> Pixels:
        """Return the resized and cropped pixels.

        Shape: an image -> (size, size, 3), uint8.

        Raises:
            ImageError: if the image cannot be made RGB, or has no pixels or an extreme shape.
        """
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"expected a PIL image, got {type(image).__name__}; load_image opens paths, bytes and files, "
                "PIL.Image.fromarray takes arrays"
            )
        size = self.image_input.size
        width, height = _resized(image, size)
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
        return self._normalize(pixels.movedim(-1, -3).contiguous().to(torch.float32))

    def normalize_each(self, pixels: Sequence[Pixels], out: torch.Tensor) -> torch.Tensor:
        """Write the pixels of several images, as `normalize` makes them, into one batch, and return it.

        Shape: B times (height, width, 3), uint8, writable -> (B, 3, height, width), float32.

        Args:
            pixels: of images of one size.
            out: the batch.
        """
        for image, one in zip(out, pixels, strict=True):
            # One after another, as long as they are in the processor's cache.
            self._normalize(image.copy_(torch.from_numpy(one).movedim(-1, -3).contiguous()))
        return out

    def _normalize(self, image: torch.Tensor) -> torch.Tensor:
        image.div_(255)
        mean, std = self.image_input.mean, self.image_input.std
        if any(mean) or any(value != 1 for value in std):
            image.sub_(image.new_tensor(mean)[:, None, None]).div_(image.new_tensor(std)[:, None, None])
        return image


def load_image(source: ImageSource, *, orient: bool = True, reduce: int = 1) -> Image.Image:
    """Return an image in RGB, decoded to its end, the first frame of several.

    Gray and CMYK are converted and 16 bits a channel scaled to 8. Transparency is dropped, not blended: the colour
    below it shows, which is what the models were trained on.

    Args:
        source: a path, the bytes of a file, a file opened for reading bytes, or a PIL image.
        orient: turn the image as its EXIF orientation says, where it is read from a file or bytes; orientation that
            cannot be read turns nothing. A PIL image is taken as it stands.
        reduce: 2, 4 or 8 to decode a JPEG at that part of its size, rounded up, which is faster; others ignore it.

    Raises:
        ImageError: if it is missing, no image, broken, cannot be made RGB, or has more pixels than Pillow's
            `Image.MAX_IMAGE_PIXELS`.

    Differs: the release ignores the orientation (`orient=False`), and turns 16-bit images all but white.
    """
    name = _name(source)
    try:
        if isinstance(source, Image.Image):
            return _rgb(source, name)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            _refuse_bomb(image, name)
            if reduce > 1:
                image.draft(None, (image.width // reduce, image.height // reduce))
            image.load()
            return _rgb(_upright(image) if orient else image, name)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Decoders raise anything on broken bytes.
        raise _image_error(error, name) from error


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


def _image_error(error: Exception, name: str) -> ImageError:
    """Say what a failure to open or decode means."""
    match error:
        case FileNotFoundError():
            return ImageError("missing_file", f"{name} does not exist")
        case PermissionError() | IsADirectoryError():
            return ImageError("unreadable", f"{name} cannot be read: {error.strerror}")
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return _too_large(name, str(error))
        case UnidentifiedImageError():
            return ImageError("not_an_image", f"{name} is not an image in a format that Pillow knows")
        case _ if "truncated" in str(error).lower():
            return ImageError("truncated", f"{name} is truncated ({error}); fetch it again")
        case _:
            return ImageError("corrupt", f"{name} cannot be decoded ({type(error).__name__}: {error})")


def _too_large(name: str, detail: str) -> ImageError:
    return ImageError(
        "too_large",
        f"{name} is too large ({detail}); if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS or scale it down",
    )


def _refuse_bomb(image: Image.Image, name: str) -> None:
    """Refuse what Pillow only warns of: images between its limit and twice that."""
    limit, num_pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and num_pixels > limit:
        raise _too_large(name, f"{image.width} x {image.height} pixels, the limit is {limit}")


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  the pixels are sound, the metadata is not
        return image


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
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise ImageError(
            "unsupported_mode",
            f"{name} holds integers from {values.min()} to {values.max()}, more than 16 bits; scale it to 8 bits first",
        )
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def _resized(image: Image.Image, size: int) -> tuple[int, int]:
    """Return width and height of the image with `size` as its shorter side; the longer is cut to whole pixels."""
    short, long = sorted(image.size)
    if short == 0:
        raise ImageError("extreme_shape", f"{_name(image)} is {image.width} x {image.height}: it has no pixels")
    resized = int(size * long / short)
    if size * resized > _MAX_RESIZED_PIXELS:
        raise ImageError(
            "extreme_shape",
            f"{_name(image)} is {image.width} x {image.height}, and would be resized to {size} x {resized} pixels "
            "before the centre is taken; crop it first",
        )
    return (size, resized) if image.width <= image.height else (resized, size)
