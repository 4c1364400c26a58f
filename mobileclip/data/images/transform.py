"""Load images of all supported formats as RGB, and prepare an image tower's input, bit for bit like the release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mobileclip.data.images.jpeg import Jpeg, decode_jpeg, read_jpeg
from mobileclip.data.images.limits import ImageError, ImageLimits
from mobileclip.data.images.metadata import (
    ORIENTATION,
    exif_transpose,
    is_on_its_side,
    read_orientation,
    stored_crop_box,
    transpose_pixels,
)
from mobileclip.data.images.opening import (
    EncodedImage,
    OpenedImage,
    image_error,
    open_image,
    raw_preview,
    read_image_file,
)
from mobileclip.data.images.resize import Centre, Pixels, in_rgb, resize, resize_centre, resize_reduced_centre
from mobileclip.inputs import DECODES, Color, Decode, ImageInput

if TYPE_CHECKING:
    from torch import Tensor


def normalize_pixels(
    pixels: Tensor, image: ImageInput, *, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Normalise pixels for the image tower, on the device of the pixels.

    `(pixel / 255 - mean) / std`

    Shape: (..., channels, height, width), uint8 -> the same shape, float32.

    Args:
        pixels: values from 0 to 255, such as `Batch.image`; in any memory format.
        image: the model's `ImageInput`, which contains mean and std.
        memory_format: memory format of the result; `torch.channels_last` needs a batch.

    Raises:
        ValueError: if the pixels are not uint8 with channels before height and width.

    Examples:
        >>> pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 3, 1, 3)
        >>> normalize_pixels(pixels, mobileclip.inputs.ImageInput(size=3, mean=(0.5, 0, 0), std=(0.5, 1, 1)))[0, :2, 0]
        tensor([[-1.0000, -0.6000,  1.0000],
                [ 0.0000,  0.2000,  1.0000]])
    """
    if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-3] != image.channels:
        raise ValueError(
            f"expected uint8 pixels of shape (..., {image.channels}, height, width), got {pixels.dtype} "
            f"{tuple(pixels.shape)}"
        )
    normalized = pixels.to(torch.float32, memory_format=memory_format).div_(255)
    for number, (mean, std) in enumerate(zip(image.mean, image.std, strict=True)):
        # Use Python numbers: tensors would be copied to the device, which would have to wait for the copy.
        channel = normalized.select(-3, number)
        if mean:
            channel.sub_(mean)
        if std != 1:
            channel.div_(std)
    return normalized


# Limit on Pillow's resized image before the crop; images about 2000 times as long as wide reach the limit, half a GB.
_MAX_RESIZED_PIXELS = 2**27

ImageSource = EncodedImage | Image.Image | Pixels
LIMITS = ImageLimits()

DECODER_VERSION = 2
"""Version of the image decoding, to detect cached results of an older version. Version 1 ignored the orientation."""


@attrs.frozen
class ImageTransform:
    """Convert an image to the input of an image tower; the whole library uses this transform.

    Steps: rotate by the EXIF orientation, composite transparency onto the background of `image_input`, resize the
        shorter side to `size` (antialiased), crop the centre, normalise: `(pixel / 255 - mean) / std`.

    Shape: an image of any size -> (3, size, size), float32.

    Args:
        image_input: size, resizing, mean, std and background that the model expects.

    Raises:
        ValueError: if the model's images do not have three channels.

    Source: the release's torchvision transform, bit for bit.
    Differs: the release ignores the EXIF orientation. Images are converted to RGB first, not last. Images about 2000
        times as long as wide are rejected.
    """

    image_input: ImageInput = attrs.field(validator=attrs.validators.instance_of(ImageInput))

    def __attrs_post_init__(self) -> None:
        """Check that the model expects RGB images."""
        self.image_input.require_rgb("ImageTransform returns")

    def __call__(self, source: ImageSource) -> torch.Tensor:
        """Return the image tower's input for one image, which may have any type that `load_image` accepts.

        Shape: an image -> (3, size, size), float32.

        Raises:
            ImageError: if the image cannot be read, or has an extreme shape or no pixels; the message names the image.
        """
        return self.normalize(self.pixels(source))

    def pixels(self, source: ImageSource, *, name: str | None = None, limits: ImageLimits = LIMITS) -> Pixels:
        """Return the resized and cropped pixels of an image.

        Shape: an image -> (size, size, 3), uint8.

        Args:
            source: image of any type that `load_image` accepts.
            name: name of the image, for messages; by default, a name derived from the source.
            limits: limits on work and memory.

        Raises:
            ImageError: if the image cannot be read, or has an extreme shape or no pixels; the message names the image.
        """
        name = name or name_of(source)
        image = load_image(source, background=self.image_input.background_color, limits=limits, name=name)
        centre = self.centre(image.size, name)
        resized = resize(image, (centre.width, centre.height), self.image_input.interpolation)
        right, bottom = centre.left + centre.side, centre.top + centre.side
        return np.array(resized.crop((centre.left, centre.top, right, bottom)))

    def centre(self, size: tuple[int, int], name: str) -> Centre:
        """Return the size to which to resize an upright image, and the central square to crop from the resized image.

        Args:
            size: width and height of the image, in pixels.
            name: name of the image, for messages.

        Raises:
            ImageError: if the image has an extreme shape or no pixels.
        """
        side = self.image_input.size
        if self.image_input.fit == "stretch" and min(size):
            return Centre(width=side, height=side, left=0, top=0, side=side)
        width, height = _resized(size, side, name)
        left, top = round((width - side) / 2), round((height - side) / 2)
        return Centre(width=width, height=height, left=left, top=top, side=side)

    def normalize(self, pixels: Pixels | torch.Tensor) -> torch.Tensor:
        """Normalise pixels for the image tower, on the device of the pixels.

        `(pixel / 255 - mean) / std`

        Shape: (..., height, width, 3), uint8 -> (..., 3, height, width), float32.

        Raises:
            ValueError: if the pixels are not uint8 with the three channels last.
        """
        return normalize_pixels(self.as_images(pixels), self.image_input)

    @staticmethod
    def as_images(pixels: Pixels | torch.Tensor) -> torch.Tensor:
        """Return a view of pixels with channels first, for towers that include the normalisation.

        Shape: (..., height, width, 3), uint8 -> (..., 3, height, width), uint8.

        Raises:
            ValueError: if the pixels are not uint8 with the three channels last.
        """
        pixels = torch.as_tensor(pixels)
        if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
            raise ValueError(
                f"expected uint8 pixels of shape (..., height, width, 3), got {pixels.dtype} {tuple(pixels.shape)}"
            )
        return pixels.movedim(-1, -3)


def load_image(
    source: ImageSource,
    *,
    orient: bool = True,
    background: Color | None = None,
    reduce: int = 1,
    limits: ImageLimits = LIMITS,
    name: str | None = None,
) -> Image.Image:
    """Load an image as RGB, upright and completely decoded; only the first frame of an animation is loaded.

    The function converts greyscale and CMYK images to RGB, and scales 16 bits per channel to 8. The result has no EXIF
    orientation; with `orient=False`, `info["orientation"]` holds the orientation.

    Args:
        source: a path, the bytes of a file, a file opened for reading bytes, a PIL image, or an array of uint8,
            (height, width) or (height, width, 3 or 4). Files are JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIF (HEIC;
            extra `heif`), or camera raw files (DNG, CR2, NEF, ARW, ORF, RW2; extra `raw`), of which the embedded
            preview is read.
        orient: whether to rotate the image by its EXIF orientation, if readable. TIFF and HEIF decoders always rotate.
        background: colour behind a transparent image. None drops the alpha channel, as in the training of the published
            models.
        reduce: 2, 4 or 8 to decode a JPEG at 1 / `reduce` of its size, rounded up, which is faster; other formats
            ignore `reduce`.
        limits: limits on work and memory; the limits do not apply to PIL images and arrays.
        name: name of the image, for messages; by default, a name derived from the source.

    Raises:
        ImageError: if the file is missing or not an image, or if the image is damaged, cannot be converted to RGB or
            exceeds a limit.

    Differs: the release ignores the orientation (`orient=False`), and makes 16-bit images almost white.
    """
    name = name or name_of(source)
    if not isinstance(source, (Image.Image, np.ndarray)):
        opened = open_image(read_image_file(source, limits, name), limits, name, reduce=reduce)
        return _decoded(opened, name, orient=orient, background=background, reduce=reduce)
    try:
        image = _from_array(source, name) if isinstance(source, np.ndarray) else source
        image.load()
        converted = in_rgb(image, background, name)
        return _upright(converted, _orientation_of(image), orient=orient, is_shared=converted is source)
    except ImageError:
        raise
    except Exception as error:
        raise image_error(error, name) from error


def _decoded(opened: OpenedImage, name: str, *, orient: bool, background: Color | None, reduce: int) -> Image.Image:
    try:
        with opened.image as image:
            if reduce > 1 and opened.jpeg is not None:
                image.draft(None, (image.width // reduce, image.height // reduce))
            image.load()
            converted = in_rgb(image, background, name)
            # The decoders of some formats would live as long as the image.
            is_held = converted is image and opened.kind.is_held
            return _upright(converted.copy() if is_held else converted, opened.orientation, orient=orient)
    except ImageError:
        raise
    except Exception as error:
        # Decoders may raise any exception on broken bytes.
        raise image_error(error, name) from error


def _upright(image: Image.Image, orientation: int, *, orient: bool, is_shared: bool = False) -> Image.Image:
    if is_shared:
        if orientation == 1:
            return image
        image = image.copy()
    # With the orientation in `info`, the next reader would rotate the image again.
    image.info = {} if orient else {"orientation": orientation}
    return exif_transpose(image, orientation) if orient else image


def is_one_image(source: object) -> bool:
    """Return whether an object is a single image for `load_image`, not several images."""
    if isinstance(source, np.ndarray):
        return source.ndim <= 3
    return isinstance(source, (str, Path, bytes, bytearray, memoryview, Image.Image)) or hasattr(source, "read")


def name_of(source: object, number: int | None = None) -> str:
    """Return the name of an image for messages.

    Args:
        source: image source, as for `load_image`.
        number: position among several images, from 1; used for images without a name.

    Raises:
        ImageError: if `load_image` does not support the object.
    """
    which = "image" if number is None else f"image {number}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{which} of {len(source)} bytes"
    if isinstance(source, (str, Path)):
        return f"image {str(source)!r}"
    if isinstance(source, np.ndarray):
        return f"{which} of shape {source.shape}"
    if not is_one_image(source):
        raise ImageError(
            "not_an_image",
            f"{which} is {type(source).__name__}, expected a path, bytes, a file opened for reading bytes, a PIL image "
            "or an array of uint8 (height, width, 3); pass tensors of pixels to encode_pixels or to the model",
        )
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return f"image {str(name)!r}" if name else f"{which} from {type(source).__name__}"


def _from_array(pixels: npt.NDArray[np.generic], name: str) -> Image.Image:
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise ImageError(
            "unsupported_mode",
            f"{name} is {pixels.dtype}, expected uint8 of shape (height, width) or (height, width, 3 or 4); scale "
            "the values to 0 to 255 and move the channels last",
        )
    return Image.fromarray(pixels)


def _orientation_of(image: Image.Image) -> int:
    """Return the orientation of a Pillow image."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001  unreadable metadata means no rotation
        return 1


def _resized(whole: tuple[int, int], size: int, name: str) -> tuple[int, int]:
    """Return width and height of the image with shorter side `size`; the longer side is rounded down."""
    short, long = sorted(whole)
    if short == 0:
        raise ImageError("extreme_shape", f"{name} is {whole[0]} x {whole[1]}: it has no pixels")
    resized = int(size * long / short)
    if size * resized > _MAX_RESIZED_PIXELS:
        raise ImageError(
            "extreme_shape",
            f"{name} is {whole[0]} x {whole[1]}, and would be resized to {size} x {resized} pixels before the "
            "centre crop; crop the image first",
        )
    return (size, resized) if whole[0] <= whole[1] else (resized, size)


_REDUCTIONS = (8, 4, 2)


@attrs.frozen(kw_only=True, eq=False)
class TowerImage:
    """The input of an image tower from an image file: pixels, original size and metadata.

    Shape:
        pixels: `(size, size, 3)`, uint8.

    Args:
        pixels: input of the tower before normalisation.
        width: width of the upright image, in pixels.
        height: height of the upright image, in pixels.
        exif: encoded EXIF metadata; None if the file has none.
    """

    pixels: Pixels
    width: int
    height: int
    exif: bytes | None


def read_tower_image(
    data: bytes,
    transform: ImageTransform,
    *,
    reduced: bool = False,
    name: str,
    limits: ImageLimits = LIMITS,
) -> TowerImage:
    """Read the input of an image tower, the original size and the metadata from an image file.

    Args:
        data: content of the file.
        transform: transform to the tower's input.
        reduced: whether to decode a JPEG at a half, a quarter or an eighth of its size, if enough pixels remain for the
            tower. Reduced decoding takes a fraction of the time, but changes embeddings in the third digit. If False,
            the pixels equal those of `ImageTransform.pixels` bit for bit, unless the JPEG exceeds the pixel limit.
        name: name of the image, for messages.
        limits: limits on work and memory.

    Raises:
        ImageError: if the file cannot be read, or the image has an extreme shape or no pixels.
    """
    preview = raw_preview(data, limits, name)
    data = data if preview is None else preview
    jpeg = read_jpeg(data)
    if jpeg is not None and jpeg.is_plain:
        return _read_jpeg(jpeg, transform, reduced=reduced, name=name, limits=limits)
    opened = open_image(data, limits, name, reduce=_REDUCTIONS[0])
    size, exif, background = opened.image.size, opened.exif, transform.image_input.background_color
    reduce = 1 if opened.jpeg is None else _reduction(size, limits)
    image = _decoded(opened, name, orient=True, background=background, reduce=reduce)
    if reduce == 1:
        size = image.size
    elif is_on_its_side(opened.orientation):
        size = size[::-1]
    pixels = transform.pixels(image, name=name)
    return TowerImage(pixels=pixels, width=size[0], height=size[1], exif=exif)


def require_decode(decode: str) -> Decode:
    """Check a decoding mode and return it.

    Raises:
        ValueError: if `decode` is not one of `DECODES`.
    """
    for one in DECODES:
        if one == decode:
            return one
    raise ValueError(f"decode is {decode!r}, expected one of {', '.join(DECODES)}")


def read_pixels(
    source: ImageSource,
    transform: ImageTransform,
    *,
    reduced: bool = False,
    name: str | None = None,
) -> Pixels:
    """Return the input pixels of an image tower for an image of any type that `load_image` accepts.

    Shape: an image -> (size, size, 3), uint8.

    Args:
        source: image of any type that `load_image` accepts.
        transform: transform to the tower's input.
        reduced: see `read_tower_image`; ignored for decoded images.
        name: name of the image, for messages; by default, a name derived from the source.

    Raises:
        ImageError: if the image cannot be read, or has an extreme shape or no pixels.
    """
    name = name or name_of(source)
    if isinstance(source, (Image.Image, np.ndarray)):
        return transform.pixels(source, name=name)
    data = read_image_file(source, LIMITS, name)
    return read_tower_image(data, transform, reduced=reduced, name=name).pixels


def _reduction(size: tuple[int, int], limits: ImageLimits) -> int:
    """Return the smallest reduction (1, 2, 4 or 8) at which a JPEG fits the pixel limit, or 8 if none fits."""
    width, height = size
    fitting = (one for one in (1, *reversed(_REDUCTIONS)) if -(-width // one) * -(-height // one) <= limits.num_pixels)
    return next(fitting, _REDUCTIONS[0])


def _read_jpeg(jpeg: Jpeg, transform: ImageTransform, *, reduced: bool, name: str, limits: ImageLimits) -> TowerImage:
    orientation = read_orientation(jpeg.exif, jpeg.xmp)
    width, height = jpeg.size[::-1] if is_on_its_side(orientation) else jpeg.size
    centre, contract = transform.centre((width, height), name), transform.image_input
    reduce = next((one for one in _REDUCTIONS if reduced and min(jpeg.size) >= one * contract.size), 1)
    reduce = max(reduce, _reduction(jpeg.size, limits))
    jpeg.check(limits, name, reduce)
    data, rows = jpeg.data, jpeg.height
    if orientation == 1:
        # Reduced decoding needs more rows.
        data, rows = jpeg.above(centre.rows(jpeg.size, contract.interpolation)[1] + _REDUCTIONS[0])
    # If rows are cut off, the JPEG ends in bytes that belong to no row.
    image: Image.Image | Pixels | None = decode_jpeg(
        data, (jpeg.width, rows), reduce=reduce, strict=rows == jpeg.height
    )
    if image is None:
        image = load_image(jpeg.data, orient=False, reduce=reduce, limits=limits, name=name)
    if reduce > 1:
        part = (jpeg.width / reduce, jpeg.height / reduce)
        stored = resize_reduced_centre(image, part, stored_crop_box(centre, orientation), contract.interpolation)
        seen = np.ascontiguousarray(transpose_pixels(stored, orientation))
    else:
        upright = (
            exif_transpose(image, orientation)
            if isinstance(image, Image.Image)
            else transpose_pixels(image, orientation)
        )
        seen = resize_centre(upright, height, centre, contract.interpolation)
    return TowerImage(pixels=seen, width=width, height=height, exif=jpeg.exif)
