"""Scenes of coloured shapes with captions: data that a recipe can generate without a download."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import attrs
import numpy as np
from PIL import Image, ImageDraw

from mobileclip.data import ImageTextSample
from mobileclip.recipes.tiny.shapes import OUTLINES

COLOURS = {
    "red": "#d22", "green": "#2a3", "blue": "#24d", "yellow": "#fd2",
    "orange": "#f81", "purple": "#82b", "black": "#222", "white": "#eee",
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "bar", "cross", "ring")
SIZES = {"small": 0.14, "large": 0.24}
GROUNDS = {"grey": "#999", "pink": "#fbc", "brown": "#754", "pale blue": "#bdf"}


@attrs.frozen
class Scene:
    """Two shapes side by side, each with a size, a colour, and a shape from `SHAPES` or `OUTLINES`."""

    left: tuple[str, str, str]
    right: tuple[str, str, str]
    ground: str

    def captions(self) -> tuple[str, ...]:
        """Return a real caption, followed by five captions that a captioner could have written."""
        left, right = (" ".join(thing) for thing in (self.left, self.right))
        return (
            f"a {left} and a {right} on a {self.ground} ground",
            f"a {right} to the right of a {left}",
            f"there is a {left} beside a {' '.join(self.right[1:])}",
            f"two shapes on {self.ground}: a {' '.join(self.left[1:])} and a {' '.join(self.right[1:])}",
            f"a drawing of a {self.left[2]} and a {self.right[2]}",
            f"a {self.left[1]} {self.left[2]} next to something {self.right[1]}",
        )

    def draw(self, rng: np.random.Generator, width: int = 240, height: int = 180) -> Image.Image:
        """Return the image, with random positions, sizes and noise."""
        image = Image.new("RGB", (width, height), GROUNDS[self.ground])
        pen = ImageDraw.Draw(image)
        for side, (size, colour, shape) in enumerate((self.left, self.right)):
            x, y = width * (0.27 + 0.46 * side + rng.uniform(-0.04, 0.04)), height * rng.uniform(0.38, 0.62)
            _draw_shape(pen, shape, (x, y, width * SIZES[size] * rng.uniform(0.8, 1.1)), COLOURS[colour])
        noise = rng.normal(0, 6, (height, width, 3))
        return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, place: tuple[float, float, float], colour: str) -> None:
    x, y, r = place
    match shape:
        case _ if shape in OUTLINES:
            pen.polygon([(x + r * dx, y + r * dy) for dx, dy in OUTLINES[shape]], colour)
        case "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), colour)
        case "square":
            pen.rectangle((x - r, y - r, x + r, y + r), colour)
        case "triangle":
            pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], colour)
        case "bar":
            pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), colour)
        case "cross":
            pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), colour)
            pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), colour)
        case _:
            pen.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(1, round(r / 3)))


def draw_shape(shape: str, rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return an image of two shapes of one kind, in random sizes and colours on a random background."""
    left, right = (
        (list(SIZES)[rng.integers(len(SIZES))], list(COLOURS)[rng.integers(len(COLOURS))], shape) for _ in range(2)
    )
    return Scene(left, right, list(GROUNDS)[rng.integers(len(GROUNDS))]).draw(rng, width, height)


def scenes(seed: int) -> Iterator[Scene]:
    """Yield random scenes without end."""
    rng = np.random.default_rng(seed)
    things = list(itertools.product(SIZES, COLOURS, SHAPES))
    grounds = list(GROUNDS)
    while True:
        left, right = (things[index] for index in rng.integers(len(things), size=2))
        yield Scene(left, right, grounds[rng.integers(len(grounds))])


def jpeg(image: Image.Image) -> bytes:
    """Return the bytes of an image in JPEG format."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def scene_samples(count: int, seed: int, *, size: tuple[int, int] = (240, 180)) -> list[ImageTextSample]:
    """Return samples with JPEG images, one real caption and one set of five synthetic captions.

    Args:
        count: number of samples.
        seed: random seed of the scenes and of the images.
        size: width and height in pixels.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for index, scene in enumerate(itertools.islice(scenes(seed), count)):
        real, *synthetic = scene.captions()
        samples.append(
            ImageTextSample(
                key=f"{index:08d}",
                captions=(real,),
                syn_captions={"syn_text": synthetic},
                image=jpeg(scene.draw(rng, *size)),
                url=f"https://example.com/scenes/{index:08d}.jpg",
                metadata={"uid": f"{index:032x}"},
            )
        )
    return samples
