"""Finds the fastest form of a model for the images at hand, by trying forms on some of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.transform import ImageTransform
from mobileclip.encoders import DualEncoder
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference import optimize_images
from mobileclip.inference.forms import MOST_IMAGES_ON_CPU
from mobileclip.inference.image_text_model import ImageTextModel

WORTH_TRYING = 200
"""Trying forms of a tower takes as long as encoding about so many pictures."""

WORTH_COMPILING = 1000
"""Making a program of it by OpenVINO, where that is installed, takes as long as encoding about so many."""

# Pictures that forms are timed on; and those of int8: half for its ranges, half that it is measured on.
_TIMED, _CALIBRATED = 16, 64


def quickened(
    clip: ImageTextModel,
    pictures: Iterable[Path],
    num_pictures: int,
    *,
    precision: FastPrecision,
    show_progress: bool,
) -> ImageTextModel:
    """Return the model with the image tower in its fastest form, as `mobileclip.optimize` finds it.

    Few pictures, GPUs, and models that come in a form of their own get the model as it is.

    Args:
        clip: the model.
        pictures: files that will be encoded, of which the first are tried.
        num_pictures: about how many pictures will be encoded.
        precision: what may be computed in, where it is exact enough.
        show_progress: whether to show how far it is.
    """
    device = next(clip.model.parameters()).device.type
    if num_pictures < WORTH_TRYING or device != "cpu" or type(clip.model) is not DualEncoder:
        return clip
    compiling = num_pictures >= WORTH_COMPILING
    calibrating = compiling and precision == "int8"
    tried = islice(pictures, _CALIBRATED if calibrating else _TIMED)
    seen = [found for path in tried if (found := _readable(clip.transform, path)) is not None]
    ready = optimize_images(
        clip.model,
        _examples(clip.transform, seen),
        precision=precision,
        calibration=clip.transform.normalize(torch.stack(seen)) if calibrating and len(seen) >= _TIMED else None,
        engines=("eager", "openvino") if compiling else ("eager",),
        show_progress=show_progress,
    )
    return ImageTextModel(ready, num_threads=clip.num_threads, text_towers=clip.text_towers, decode=clip.decode)


def _examples(transform: ImageTransform, seen: Sequence[Tensor]) -> Tensor:
    """Return as many of the pictures as are encoded at once, and noise for those that cannot be read."""
    size = transform.image_input.size
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (MOST_IMAGES_ON_CPU, size, size, 3), dtype=torch.uint8, generator=generator)
    return transform.normalize(torch.stack([*seen, *noise][:MOST_IMAGES_ON_CPU]))


def _readable(transform: ImageTransform, path: Path) -> Tensor | None:
    try:
        return torch.from_numpy(transform.pixels(path))
    except ImageError:
        return None
