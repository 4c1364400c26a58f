"""Thumbnails of a data set's images with their captions, read from its shards for a report."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

import attrs
from PIL import Image

from mobileclip.data.images.limits import ImageError
from mobileclip.data.skips import SkipReport
from mobileclip.datasets.viewing.canvas import load_shown
from mobileclip.evaluation.datasets.benchmark import Benchmark

# On a page they are shown at half of that, so that they are sharp on a screen of two pixels to one.
LONGEST_SIDE = 192
_QUALITY = 80


@attrs.frozen(kw_only=True)
class Picture:
    """A small copy of an image.

    Args:
        data: WebP.
        width: in pixels.
        height: in pixels.
    """

    data: bytes = attrs.field(repr=lambda data: f"{len(data)} bytes")
    width: int
    height: int

    def pixels(self) -> Image.Image:
        """Return the picture in RGB."""
        return load_shown(self.data)


@attrs.frozen(kw_only=True)
class Found:
    """The images, captions and labels of a data set that could be read again for a report.

    Args:
        pictures: by the image's number; those that cannot be read again are not there.
        captions: by the image's number.
        labels: index of the class, by the image's number.
    """

    pictures: Mapping[int, Picture]
    captions: Mapping[int, tuple[str, ...]]
    labels: Mapping[int, int]


def thumbnail(image: Image.Image, longest_side: int = LONGEST_SIDE) -> Picture:
    """Return a small copy of an image; one that is smaller already keeps its size.

    Args:
        image: RGB.
        longest_side: in pixels.
    """
    small = image.copy()
    # A line of pixels would vanish.
    small.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=_QUALITY)
    return Picture(data=stream.getvalue(), width=small.width, height=small.height)


def find_images(
    benchmark: Benchmark, keys: Sequence[str], *, pictures: Iterable[int], captions: Iterable[int] = ()
) -> Found:
    """Read the shards again, until everything that is wanted is found.

    Args:
        benchmark: the data set.
        keys: of the images that were evaluated, in order: what could not be used is not among them.
        pictures: numbers of the images, counted in `keys`, to return small copies of.
        captions: numbers of the images to return the captions, or the label, of.
    """
    wanted_pictures, wanted_captions = set(pictures), set(captions)
    found: dict[int, Picture] = {}
    texts: dict[int, tuple[str, ...]] = {}
    labels: dict[int, int] = {}
    number, last = 0, max(wanted_pictures | wanted_captions, default=-1)
    # What is left out was counted when the data set was evaluated; a shard that is gone since costs its pictures only.
    there = attrs.evolve(benchmark, allow_missing=True)
    samples = there.samples(SkipReport(log=False)) if last >= 0 else iter(())
    for sample in samples:
        if sample.key != keys[number]:
            continue
        if number in wanted_pictures:
            try:
                found[number] = thumbnail(load_shown(sample.image))
            except ImageError:
                # A broken image was not evaluated: one of the same name is still to come.
                continue
        if number in wanted_captions:
            texts[number] = sample.captions
            if sample.label is not None:
                labels[number] = sample.label
        number += 1
        if number > last:
            break
    return Found(pictures=found, captions=texts, labels=labels)
