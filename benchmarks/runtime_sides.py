"""Both sides of the fair table: a tower with the same weights, the same inputs, and each side's way to read a JPEG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

import attrs
import torch
from PIL import Image
from torch import Tensor

from benchmarks.data import photo
from benchmarks.random_weights import random_model
from benchmarks.rivals import PUBLISHED, Size, Tower, open_clip_transform, rivals
from benchmarks.runtime_forms import Contestant
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.data.images import read_pixels
from mobileclip.encoders import DualEncoder, load_model
from mobileclip.inference.comparison import bundled_samples
from mobileclip.inference.optimization import Calibration, calibrations
from mobileclip.inference.tuning_inputs import read_captions, read_pictures
from mobileclip.reparam import reparameterize

if TYPE_CHECKING:
    from benchmarks.runtimes import RuntimesBenchSpec

Read = Callable[[bytes], Tensor]
REDUCED = "ours, reduced"


@attrs.frozen(kw_only=True, eq=False)
class Match:
    """Both sides of a tower with what they are measured on.

    Args:
        sides: the release's tower and this library's.
        inputs: a batch, as it comes.
        calibration: what ranges are found with, and what the gates are of.
        files: of the images, encoded; none for texts.
        readers: from a file to an input, or to pixels, by side.
        transform: from pixels to inputs; None for texts.
    """

    sides: tuple[Contestant, Contestant]
    inputs: Tensor
    calibration: Calibration
    files: tuple[bytes, ...] = ()
    readers: Mapping[str, Read] = attrs.field(factory=dict)
    transform: ImageTransform | None = None


def match_of(spec: RuntimesBenchSpec, size: Size, tower: Tower, batch_size: int) -> Match:
    """Return both sides of a published model's tower, with the same weights."""
    published = PUBLISHED[size]
    file = None if spec.weights is None else next(spec.weights.glob(f"{size}.*"), None)
    if file is None:
        model = random_model(published.spec())
    else:
        model = cast("DualEncoder", load_model(file, published.spec(), fold=False))
    release = next(module for _, kind, module in rivals(published, model, ("open_clip",)) if kind == tower)
    release.requires_grad_(requires_grad=False)
    folded = reparameterize(model).requires_grad_(requires_grad=False)
    mine = folded.image_encoder if tower == "image" else folded.text_encoder
    transform, tokenizer = ImageTransform(model.spec.image.input), Tokenizer(model.spec.text.input)
    of_images, of_texts = calibrations(folded, calibration_inputs(spec, transform, tokenizer) if spec.data else None)
    # Under its whole name: a tuning that was stopped leaves its state beside it.
    wanted = spec.quantised and spec.quantised / f"{size}.safetensors"
    in_int8 = load_model(wanted, published.spec(), tower=tower) if wanted and wanted.exists() else None
    sides = (
        Contestant(side="release", module=release, mine=mine, tower=tower),
        Contestant(side="ours", module=mine, mine=mine, tower=tower, quantised=in_int8),
    )
    if tower == "text":
        tokens = tokenizer(bundled_samples().captions)
        return Match(sides=sides, inputs=tokens[torch.arange(batch_size) % len(tokens)], calibration=of_texts)
    files = tuple(photo(number, spec.photo_side, quality=90, seed=spec.seed) for number in range(batch_size))
    return Match(
        sides=sides,
        inputs=torch.stack([transform(data) for data in files]),
        calibration=of_images,
        files=files,
        readers=readers_of(transform),
        transform=transform,
    )


def calibration_inputs(
    spec: RuntimesBenchSpec, transform: ImageTransform, tokenizer: Tokenizer
) -> tuple[Tensor, Tensor]:
    """Return images and token ids of the spec's data.

    Raises:
        ValueError: if something of them cannot be read.
    """
    skipped: list[str] = []
    pixels = read_pictures(spec.data, transform, spec.num_inputs, seed=spec.seed, skipped=skipped, shown=False)
    texts = read_captions(spec.data, spec.num_inputs, seed=spec.seed, skipped=skipped)
    if skipped:
        raise ValueError(f"{len(skipped)} inputs of {', '.join(spec.data)} cannot be read; the first: {skipped[0]}")
    return transform.normalize(pixels), tokenizer(texts)


def readers_of(transform: ImageTransform) -> dict[str, Read]:
    """Return how each side reads a JPEG: open_clip's preprocessing, and this library's pixels, exact and reduced.

    Args:
        transform: of the model.
    """
    preprocess = open_clip_transform(transform.image_input)

    def read(data: bytes, *, reduced: bool) -> Tensor:
        return torch.from_numpy(read_pixels(data, transform, reduced=reduced))

    def read_as_released(data: bytes) -> Tensor:
        file = io.BytesIO(data)
        return preprocess(Image.open(file, formats=("JPEG",)))

    return {
        "release": read_as_released,
        "ours": partial(read, reduced=False),
        REDUCED: partial(read, reduced=True),
    }
