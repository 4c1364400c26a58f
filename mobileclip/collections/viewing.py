"""Draws results as a contact sheet, and duplicates as an HTML page and as JSON lines."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileclip import storage
from mobileclip.collections.duplicates import DuplicateGroup, Duplicates
from mobileclip.collections.pictures import small_pictures, webp
from mobileclip.collections.snapshot import Match
from mobileclip.datasets import FAINT, INK, TILE, Sheet, Tile
from mobileclip.extras import needed

# The page of `mobileclip serve` has the same colours, in explain.js. At most so much of them covers a picture.
_WARM, _COLD, _STRONGEST = (214, 58, 0), (0, 84, 190), 150

Map = NDArray[np.float32]


def draw_matches(title: str, matches: Sequence[Match], maps: Sequence[Map | None] | None = None) -> Image.Image:
    """Return the pictures that were found, with their scores and names, the best first.

    Args:
        title: what was asked for.
        matches: what was found; a picture that cannot be read any more shows its name alone.
        maps: what places add to the score of each, see `Collection.explain`; None for a picture without one.
    """
    sheet = Sheet()
    sheet.text(storage.printable(title), 20)
    if maps is not None:
        sheet.text("warm places add to the score, cold ones take from it: attribution, not segmentation", 13, FAINT)
    sheet.space(20)
    shown = zip(matches, small_pictures(matches, TILE), maps or [None] * len(matches), strict=True)
    tiles = [
        Tile(
            picture=picture if picture is None or shares is None else under_map(picture, shares),
            lines=((f"{match.score:.3f}", 15, INK), (storage.printable(match.name), 12, FAINT)),
        )
        for match, picture, shares in shown
    ]
    sheet.tiles(tiles)
    if not tiles:
        sheet.text("nothing was found", 15, FAINT)
    return sheet.image()


def under_map(picture: Image.Image, shares: Map) -> Image.Image:
    """Return a picture below its map: warm where it adds to the score, cold where it takes from it.

    Args:
        picture: the whole of it; what the model does not see stays as it is.
        shares: `(rows, columns)` of the square in its middle.
    """
    side = min(picture.size)
    strongest = max(float(np.abs(shares).max()), float(np.finfo(np.float32).tiny))
    scaled = Image.fromarray((shares / strongest).astype(np.float32))
    smooth = np.asarray(scaled.resize((side, side), Image.Resampling.BILINEAR))
    colours = np.where(smooth[..., None] > 0, np.array(_WARM), np.array(_COLD)).astype(np.uint8)
    strength = Image.fromarray((np.abs(smooth) * _STRONGEST).astype(np.uint8))
    shown = picture.convert("RGB")
    shown.paste(Image.fromarray(colours), ((picture.width - side) // 2, (picture.height - side) // 2), strength)
    return shown


# More groups than that make a page that no browser likes.
_MOST_GROUPS = 300
_MOST_SHOWN = 24
# Shown at half of that, so that they are sharp on a screen of two pixels to one.
_SIDE = 416
_QUALITY = 75
_TEMPLATE = "duplicates.html"


def write_list(path: Path, groups: Sequence[DuplicateGroup]) -> None:
    """Write a line of JSON for every near-duplicate of a better picture: `keep`, `duplicate` and `similarity`.

    Args:
        path: of the file.
        groups: as they were found.

    Raises:
        OSError: if it cannot be written.
    """
    with storage.atomic_write(path) as stream:
        for group in groups:
            for other in group.others:
                line = {"keep": group.best.name, "duplicate": other.name, "similarity": other.score}
                stream.write(f"{json.dumps(line)}\n".encode())


def write_page(path: Path, groups: Duplicates, *, threshold: float) -> None:
    """Write a page that shows the groups side by side; it needs no other file, and runs no script.

    Args:
        path: of the page.
        groups: as they were found.
        threshold: that they were found with.

    Raises:
        ImportError: if jinja2 is not installed.
        OSError: if it cannot be written.
    """
    with needed("the page of duplicates", "collections"):
        from jinja2 import Environment, StrictUndefined
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # A name cannot turn the direction in which the rest of the page is read.
        finalize=lambda value: storage.printable(value, limit=2**24) if type(value) is str else value,
    )
    template = environment.from_string((files(__package__) / _TEMPLATE).read_text(encoding="utf-8"))
    shown = groups[:_MOST_GROUPS]
    text: str = template.render(
        num_groups=len(groups),
        num_others=sum(len(group.others) for group in groups),
        threshold=f"{threshold:g}",
        blank=[match.name for match in groups.blank[:_MOST_GROUPS]],
        num_blank=len(groups.blank),
        groups=[list(_cells([group.best, *islice(group.others, _MOST_SHOWN - 1)])) for group in shown],
    )
    with storage.atomic_write(path) as stream:
        stream.write(f"{text}\n".encode())


def _cells(matches: Sequence[Match]) -> Iterator[dict[str, Any]]:
    for match, picture in zip(matches, small_pictures(matches, _SIDE), strict=True):
        facts = f"{match.width} x {match.height}, {match.size / 1000:,.0f} kB"
        yield {
            "name": match.name,
            "score": f"{match.score:.3f}",
            "facts": ", ".join(filter(None, (facts, match.taken, match.camera))),
            "address": None if picture is None else _address(picture),
            "width": 0 if picture is None else max(1, picture.width // 2),
            "height": 0 if picture is None else max(1, picture.height // 2),
        }


def _address(picture: Image.Image) -> str:
    """Return a URL that holds the picture itself."""
    return f"data:image/webp;base64,{base64.b64encode(webp(picture, _QUALITY)).decode()}"
