"""Draws search results as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileclip import storage
from mobileclip.collections.searching.matches import Match
from mobileclip.collections.searching.pictures import small_pictures
from mobileclip.datasets.viewing.canvas import FAINT, INK, TILE, Sheet, Tile

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
