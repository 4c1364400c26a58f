"""Renders SVG to pixels on white, and measures the colours and shape of the image; results are cached."""

from __future__ import annotations

import base64
import colorsys
import io
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
from PIL import Image

from mobileclip.data import ImageTextSample, read_samples, write_shard
from mobileclip.data.images.limits import ImageLimits
from mobileclip.data.images.opening import open_image
from mobileclip.progress import track
from mobileclip.terminal.interruption import ending, leave_to_parent

# Rendering fewer drawings takes less time than starting a process.
_MIN_PARALLEL = 200
_CHUNK = 64
THUMBNAIL_SIDE = 12
# Names of saturated colours, and the upper limit of each hue range in degrees.
_HUES = (
    *((12, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (195, "turquoise"), (255, "blue")),
    *((295, "purple"), (340, "pink")),
)


@attrs.frozen(kw_only=True)
class Rendering:
    """One image and its measurements.

    Args:
        png: RGB on white.
        colours: names of the colours that cover most of the drawing, at most three, in order of decreasing area.
        coverage: fraction of the square that the drawing covers, 0 to 1.
        aspect: width divided by height of the drawing.
        thumbnail: a few RGB pixels, row by row, for comparing drawings.
    """

    png: bytes
    colours: tuple[str, ...]
    coverage: float
    aspect: float
    thumbnail: bytes = attrs.field(repr=False)


def render(svg: str, size: int) -> Rendering | None:
    """Return a drawing as a square image, or None if nothing is visible or the SVG is broken.

    Args:
        svg: the SVG document; the function loads no fonts, since emoji drawings consist of paths.
        size: side in pixels.
    """
    import resvg_py

    try:
        data = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError:
        return None
    drawing = open_image(bytes(data), ImageLimits()).image.convert("RGBA")
    box = drawing.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    if box is None:
        return None
    picture = Image.new("RGBA", drawing.size, "white")
    picture.alpha_composite(drawing)
    buffer = io.BytesIO()
    rgb = picture.convert("RGB")
    rgb.save(buffer, "PNG", compress_level=3)
    pixels = np.asarray(drawing)
    visible = pixels[pixels[..., 3] > 127]
    return Rendering(
        png=buffer.getvalue(),
        colours=dominant_colours(visible[:, :3]),
        coverage=round(len(visible) / (size * size), 4),
        aspect=round((box[2] - box[0]) / (box[3] - box[1]), 3),
        thumbnail=rgb.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes(),
    )


def render_all(svgs: Iterable[str], size: int, *, num_processes: int) -> Iterator[Rendering | None]:
    """Yield the renderings of many drawings, in order.

    Args:
        svgs: the SVG documents.
        size: side in pixels.
        num_processes: number of drawings to render in parallel.
    """
    svgs = list(svgs)
    if num_processes == 1 or len(svgs) < _MIN_PARALLEL:
        yield from (render(svg, size) for svg in svgs)
        return
    remaining = iter(svgs)
    chunks = list(iter(lambda: tuple(islice(remaining, _CHUNK)), ()))
    # Forking a process that runs threads, as torch does, can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context, initializer=leave_to_parent) as pool, ending(pool):
        for renderings in pool.map(_render_chunk, chunks, [size] * len(chunks)):
            yield from renderings


def _render_chunk(svgs: tuple[str, ...], size: int) -> list[Rendering | None]:
    return [render(svg, size) for svg in svgs]


def render_sets(
    folder: Path, drawings: Mapping[str, Mapping[str, tuple[str, str]]], size: int, *, num_processes: int
) -> dict[str, dict[str, Rendering]]:
    """Return the renderings by set and key; each finished set is stored in a shard.

    Args:
        folder: folder of the shards.
        drawings: names and SVGs by set and key; empty drawings have no rendering.
        size: side in pixels.
        num_processes: number of drawings to render in parallel.
    """
    stores = {name: folder / f"{name}.tar" for name in drawings}
    missing = [name for name in drawings if not stores[name].exists()]
    svgs = [svg for name in missing for _, svg in drawings[name].values()]
    made = render_all(svgs, size, num_processes=num_processes)
    rendered = track(made, total=len(svgs), title="rendering", unit="pictures")
    for name in missing:
        pairs = [(key, label, next(rendered)) for key, (label, _) in drawings[name].items()]
        folder.mkdir(parents=True, exist_ok=True)
        write_shard(stores[name], [_as_sample(key, label, one) for key, label, one in pairs if one is not None])
    # Lets the bar reach its end.
    assert next(rendered, None) is None, "every rendering belongs to a set"
    return {
        name: {sample.key: _from_sample(sample) for sample in read_samples(str(store))}
        for name, store in stores.items()
    }


def _as_sample(key: str, label: str, rendering: Rendering) -> ImageTextSample:
    """Return a rendering as a sample of a shard, with its measurements as metadata."""
    facts = attrs.asdict(rendering, filter=attrs.filters.exclude("png", "thumbnail"))
    facts["thumbnail"] = base64.b64encode(rendering.thumbnail).decode()
    return ImageTextSample(key=key, captions=(label,), image=rendering.png, image_extension="png", metadata=facts)


def _from_sample(sample: ImageTextSample) -> Rendering:
    """Return the rendering in a sample of `_as_sample`."""
    assert sample.image is not None, "renderings are stored with their picture"
    facts = dict(sample.metadata)
    thumbnail = base64.b64decode(facts.pop("thumbnail"))
    return Rendering(png=sample.image, colours=tuple(facts.pop("colours")), thumbnail=thumbnail, **facts)


def dominant_colours(
    pixels: npt.NDArray[np.uint8], *, num_colours: int = 3, min_share: float = 0.12
) -> tuple[str, ...]:
    """Return the names of the colours that cover most pixels, in order of decreasing frequency.

    Shape:
        pixels: (number of pixels, 3).

    Args:
        pixels: red, green and blue, 0 to 255.
        num_colours: maximum number of colours.
        min_share: minimum share of a colour, except for the first colour.
    """
    # Four bits per channel: 4096 cells are named, once each, instead of every pixel.
    levels = pixels.astype(np.int64) >> 4
    counts = np.bincount(levels[:, 0] << 8 | levels[:, 1] << 4 | levels[:, 2])
    shares: Counter[str] = Counter()
    for cell in np.flatnonzero(counts):
        red, green, blue = (int(cell >> shift & 15) * 16 + 8 for shift in (8, 4, 0))
        shares[_cell_name(red, green, blue)] += int(counts[cell])
    total = shares.total()
    ranked = [name for name, count in shares.most_common(num_colours) if count >= min_share * total]
    return tuple(ranked) or tuple(name for name, _ in shares.most_common(1))


@cache
def _cell_name(red: int, green: int, blue: int) -> str:
    return colour_name(red, green, blue)


def colour_name(red: int, green: int, blue: int) -> str:
    """Return the English name of a colour, one of thirteen.

    Args:
        red: 0 to 255.
        green: 0 to 255.
        blue: 0 to 255.
    """
    hue, lightness, _ = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    degrees = 360 * hue
    chroma = (max(red, green, blue) - min(red, green, blue)) / 255
    if chroma < 0.12:
        name = "black" if lightness < 0.25 else "white" if lightness > 0.88 else "gray"
    elif lightness < 0.13:
        name = "black"
    elif 12 <= degrees < 42 and lightness < 0.45:
        name = "brown"
    elif degrees < 45 and chroma < 0.5 and lightness < 0.85:
        # Wood and skin: reds and oranges of low saturation.
        name = "brown" if lightness < 0.65 else "beige"
    elif (degrees < 15 or degrees >= 335) and lightness > 0.72:
        name = "pink"
    elif 15 <= degrees < 45 and lightness > 0.75:
        name = "beige"
    else:
        name = next((name for bound, name in _HUES if degrees < bound), "red")
    return name
