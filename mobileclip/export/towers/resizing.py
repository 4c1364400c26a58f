"""Resizing and cropping inside an exported file: pictures of any size come in, as they were decoded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mobileclip.data.images.transform import ImageTransform
from mobileclip.inputs import MAX_SIZE, ImageInput

if TYPE_CHECKING:
    from mobileclip.export.targets.base import Run

_LARGEST_PIXEL = 255
_LEAST_COSINE = 0.99
_NUM_CHECKED = 4


def sides_of_pictures() -> dict[int, torch.export.Dim]:
    """Return the sides that may have any length, by axis; one of 1 would be taken for a constant."""
    return {axis: torch.export.Dim(name, min=2, max=MAX_SIZE) for axis, name in ((2, "height"), (3, "width"))}


def resized(pixels: Tensor, image: ImageInput) -> Tensor:
    """Return pictures with the shorter side resized to the model's size, antialiased, and the centre cropped.

    Shape:
        `(batch, 3, height, width)`, uint8 -> `(batch, 3, size, size)`, float32, whole numbers in [0, 255].

    Args:
        pixels: of pictures that have one size.
        image: the model's input.

    Source: `ImageTransform`, whose resize is Pillow's: first the width, then the height, rounded after each.
    Differs: weights are float32, and Pillow's have 22 bits, so that a pixel may differ by one level of 255.
    """
    size, (own_height, own_width) = image.size, pixels.shape[-2:]
    height, width = (
        torch.sym_max(size, size * one // other)  # type: ignore[no-untyped-call]
        for one, other in ((own_height, own_width), (own_width, own_height))
    )
    values = pixels.to(torch.float32)
    for sides in ((own_height, width), (height, width)):
        values = F.interpolate(values, size=sides, mode=image.interpolation, antialias=True)
        values = values.round().clamp(0, _LARGEST_PIXEL)
    return values.narrow(2, _margin(height - size), size).narrow(3, _margin(width - size), size)


def _margin(rest: int) -> int:
    """Return half of what is cut off; a half goes to the even number, as Python rounds."""
    half = rest // 2
    return half + (rest - 2 * half) * (half - 2 * (half // 2))


def check_resizing(run: Run, crops: Tensor, image: ImageInput, path: Path) -> None:
    """Make sure that a file resizes pictures as the library does: both ways, it gives the same embeddings.

    Args:
        run: the file.
        crops: uint8, `(pictures, 3, size, size)`; larger pictures with fine detail are made of them.
        image: the model's input.
        path: of the file, for the message.

    Raises:
        ValueError: if the embeddings of a picture differ from those of what the library makes of it.
    """
    transform = ImageTransform(image)
    for crop in crops[:_NUM_CHECKED]:
        picture = crop.repeat(1, 2, 3)[:, : 2 * image.size - 1, : 3 * image.size - 2].contiguous()
        pixels = transform.pixels(Image.fromarray(picture.movedim(0, -1).numpy()))
        host = torch.from_numpy(pixels).movedim(-1, 0).contiguous()
        inside, outside = (run(one[None])[0].float() for one in (picture, host))
        cosine = float(F.cosine_similarity(inside, outside).min())
        if not cosine >= _LEAST_COSINE:
            raise ValueError(
                f"{path} resizes pictures otherwise than the library does: of a picture of {picture.shape[2]} x "
                f"{picture.shape[1]} pixels, its embedding and that of what the library makes of it have a cosine of "
                f"{cosine:.4f}, expected {_LEAST_COSINE} or more; export with --set preprocess=uint8, and resize in "
                "the host"
            )
