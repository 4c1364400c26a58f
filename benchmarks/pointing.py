"""A pointing game: does a map of what adds to a score point at the right one of four drawings? Beside crops and chance.

Command:   python -m benchmarks pointing --data 'outputs/icons/test_names-*.tar'
Hardware:  any CPU
Time:      a minute
Result:    the share of texts whose quadrant is found: by a map's largest place, by its largest quadrant, by four crops

A picture is composed of four drawings with different captions, and each caption is asked for. The map is of the picture
at twice the model's own size, so that each drawing has the pixels that it was learned with. Crops take four passes of
the image tower, a map takes one. Without --data, outlines are drawn, which say little of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar

import attrs
import numpy as np
import torch
from attrs import validators
from PIL import Image, ImageDraw
from torch import Tensor

import mobileclip
from benchmarks.harness import Bench, Case, Row, Value
from mobileclip.data import read_samples
from mobileclip.data.images.transform import load_image
from mobileclip.recipes.tiny.shapes import OUTLINES

_QUADRANTS = 4

Drawing = tuple[str, Image.Image]


@attrs.frozen(kw_only=True)
class PointingBenchSpec(Bench):
    """What is pointed at.

    Args:
        model: with an MCi image tower; see `mobileclip.load`.
        data: shards of drawings with captions, as a pattern; None for outlines that are drawn.
        num_pictures: composed pictures for each seed, each asked for four captions.
        seeds: of which drawings stand together, a row each.
    """

    model: str = "icons"
    data: str | None = None
    num_pictures: int = attrs.field(default=250, validator=validators.gt(0))
    seeds: tuple[int, ...] = (0, 1, 2)

    smallest: ClassVar[Mapping[str, object]] = {"num_pictures": 2, "seeds": (0,)}

    def cases(self) -> Iterator[Case]:
        """Yield each seed."""
        for seed in self.seeds:
            yield Case(labels={"seed": str(seed)}, measure=partial(measure, self, seed))


def measure(spec: PointingBenchSpec, seed: int) -> list[Row]:
    """Return how often each way finds the drawing that is asked for, in percent."""
    small = mobileclip.load(spec.model)
    side = small.model.spec.image.input.size
    large = mobileclip.load(spec.model, image_size=2 * side)
    hits: dict[str, list[bool]] = {"place": [], "quadrant": [], "crops": []}
    for drawings in groups(drawings_of(spec), spec.num_pictures, seed):
        captions, pictures = zip(*((caption, fitted(one, side)) for caption, one in drawings), strict=True)
        maps = large.explain(composed(pictures), captions)
        crops = small.encode_image(pictures) @ small.encode_text(captions).T
        for right in range(_QUADRANTS):
            hits["place"].append(quadrant_of_largest(maps[right]) == right)
            hits["quadrant"].append(int(quadrant_sums(maps[right]).argmax()) == right)
            hits["crops"].append(int(crops[:, right].argmax()) == right)
    values = {way: Value(number=100 * float(np.mean(several)), unit="%") for way, several in hits.items()}
    return [Row(case={}, values={**values, "chance": Value(number=100 / _QUADRANTS, unit="%")})]


def drawings_of(spec: PointingBenchSpec) -> list[Drawing]:
    """Return drawings with their captions."""
    if spec.data is None:
        return [(f"a {name}", _outline(points)) for name, points in OUTLINES.items()]
    samples = [one for one in read_samples(spec.data) if one.image is not None]
    return [(one.captions[0], load_image(one.image, background=(255, 255, 255))) for one in samples if one.image]


def groups(drawings: Sequence[Drawing], count: int, seed: int) -> Iterator[list[Drawing]]:
    """Yield groups of four drawings, no two with one caption.

    Raises:
        ValueError: if there are fewer than four captions.
    """
    if len({caption for caption, _ in drawings}) < _QUADRANTS:
        raise ValueError("there are fewer than four captions; give data with more")
    draw = np.random.default_rng(seed)
    while count:
        chosen = [drawings[number] for number in draw.choice(len(drawings), _QUADRANTS, replace=False)]
        if len({caption for caption, _ in chosen}) == _QUADRANTS:
            count -= 1
            yield chosen


def fitted(drawing: Image.Image, side: int) -> Image.Image:
    """Return a drawing in a white square of a side, in pixels."""
    small = drawing.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), "white")
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return square


def composed(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return four squares as one, row by row."""
    side = pictures[0].width
    whole = Image.new("RGB", (2 * side, 2 * side))
    for number, picture in enumerate(pictures):
        whole.paste(picture, (side * (number % 2), side * (number // 2)))
    return whole


def quadrant_sums(shares: Tensor) -> Tensor:
    """Return what each quadrant of a map adds, row by row.

    Shape:
        `(rows, columns)`, both even, to `(4,)`.
    """
    rows, columns = shares.shape
    return shares.reshape(2, rows // 2, 2, columns // 2).sum((1, 3)).flatten()


def quadrant_of_largest(shares: Tensor) -> int:
    """Return the quadrant of the place that adds most, from 0, row by row."""
    rows, columns = shares.shape
    row, column = divmod(int(torch.argmax(shares)), columns)
    return 2 * (row >= rows // 2) + (column >= columns // 2)


def _outline(points: Sequence[tuple[float, float]], side: int = 64) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).polygon([((1 + 0.8 * x) * side / 2, (1 + 0.8 * y) * side / 2) for x, y in points], "black")
    return image
