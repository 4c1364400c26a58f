"""Pictures and texts that a model is tuned on, wherever they are: some of many, always the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mobileclip.data import BadSampleError
from mobileclip.data.images.files import find_images
from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.transform import ImageTransform
from mobileclip.data.randomness import seeded_rng
from mobileclip.data.skips import SkipReport
from mobileclip.datasets.sources import as_source, read_text_pairs
from mobileclip.datasets.sources.opening import is_gathered, require_data_set
from mobileclip.inference.embedding import gathered_pictures
from mobileclip.progress import Progress
from mobileclip.terminal import console

T = TypeVar("T")


def read_pictures(
    places: Sequence[str],
    transform: ImageTransform,
    most: int,
    *,
    seed: int,
    skipped: list[str],
    shown: bool = True,
) -> Tensor:
    """Return pictures as a model sees them, upright.

    Shape:
        `(pictures, size, size, 3)`, uint8.

    Args:
        places: image files, folders with images, and data sets, see `as_source`.
        transform: of the model.
        most: pictures; of more files some are taken, of data sets the first.
        seed: of the choice.
        skipped: takes why a picture was left out.
        shown: whether to show how far it is.
    """
    for place in places:
        if is_gathered(place):
            require_data_set(place)
    files = [path for place in places if not is_gathered(place) for path in find_images(Path(place))[0]]
    report = SkipReport(log=False)
    named: Iterator[tuple[str, Path | bytes]] = ((str(path), path) for path in some_of(files, len(files), seed))
    gathered = (one for place in places if is_gathered(place) for one in gathered_pictures(place, report))
    found = []
    with Progress("reading pictures", total=None, unit="pictures", console=console(shown=shown)) as bar:
        for name, source in chain(named, gathered):
            try:
                found.append(torch.from_numpy(transform.pixels(source, name=name)))
            except ImageError as error:
                skipped.append(str(error))
            bar.advance()
            if len(found) == most:
                break
    skipped += [f"{skip.key} of {skip.shard}: {skip.detail}" for several in report.named.values() for skip in several]
    return torch.stack(found) if found else torch.empty(0, 0)


def read_captions(places: Sequence[str], most: int, *, seed: int, skipped: list[str]) -> list[str]:
    """Return texts, no two equal.

    Args:
        places: files of texts, see `read_text_pairs`; folders with pictures and captions, see `as_source`.
        most: texts; of more, some are taken.
        seed: of the choice.
        skipped: takes why a text was left out.
    """
    found: dict[str, None] = {}
    for place in places:
        if Path(place).is_dir():
            report = SkipReport(log=False)
            source = as_source(place)
            for sample in chain.from_iterable(unit.described(report) for unit in source.units()):
                found |= dict.fromkeys(sample.captions)
            continue
        require_data_set(place)
        for pair in read_text_pairs(place):
            if isinstance(pair, BadSampleError):
                skipped.append(pair.detail)
            else:
                found[pair.text] = None
    return some_of(list(found), most, seed)


def some_of(items: Sequence[T], most: int, seed: int) -> list[T]:
    """Return items in an order drawn at random, so many at most.

    Args:
        items: in any order.
        most: that are returned.
        seed: of the order.
    """
    return [items[index] for index in drawn_order(len(items), seed)[:most]]


def drawn_order(count: int, seed: int) -> list[int]:
    """Return numbers from 0 in an order drawn at random, the same everywhere.

    Args:
        count: of the numbers.
        seed: of the order.
    """
    order: list[int] = np.argsort(seeded_rng(seed, "inputs").random(count), kind="stable").tolist()
    return order
