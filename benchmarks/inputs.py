"""The user's images and texts for benchmarks and studies, from files, folders and data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mobileclip.data import BadSampleError, ImageTransform
from mobileclip.data.images.files import find_images
from mobileclip.data.images.limits import ImageError
from mobileclip.data.randomness import seeded_rng
from mobileclip.data.skips import SkipReport
from mobileclip.datasets.sources import as_source, read_text_pairs
from mobileclip.datasets.sources.opening import is_packed
from mobileclip.inference.embedding import gathered_images


def read_images(places: Sequence[str], transform: ImageTransform, most: int) -> Tensor:
    """Return the first readable images, upright and preprocessed for a model.

    Shape:
        `(images, size, size, 3)`, uint8.

    Args:
        places: image files, folders with images, and data sets, see `as_source`.
        transform: image transform of the model.
        most: pictures.

    Raises:
        ValueError: if no image can be read.
    """
    report = SkipReport(log=False)

    def sources(place: str) -> Iterator[tuple[str, Path | bytes]]:
        if is_packed(place):
            yield from gathered_images(place, report)
        else:
            yield from ((str(path), path) for path in find_images(Path(place))[0])

    found: list[Tensor] = []
    for name, source in chain.from_iterable(map(sources, places)):
        with suppress(ImageError):
            found.append(torch.from_numpy(transform.pixels(source, name=name)))
        if len(found) == most:
            break
    if not found:
        raise ValueError(f"cannot read any image of {', '.join(places)}; give a folder of images, or a data set")
    return torch.stack(found)


def read_captions(places: Sequence[str], most: int, *, seed: int) -> list[str]:
    """Return distinct random texts, which depend only on the seed.

    Args:
        places: text files, see `read_text_pairs`; folders with images and captions, see `as_source`.
        most: texts.
        seed: seed of the random choice.
    """
    found: dict[str, None] = {}
    for place in places:
        if Path(place).is_dir():
            report = SkipReport(log=False)
            for sample in chain.from_iterable(unit.described(report) for unit in as_source(place).units()):
                found |= dict.fromkeys(sample.captions)
        else:
            found |= {pair.text: None for pair in read_text_pairs(place) if not isinstance(pair, BadSampleError)}
    texts = list(found)
    order = np.argsort(seeded_rng(seed, "inputs").random(len(texts)), kind="stable")
    return [texts[index] for index in order[:most].tolist()]
