"""Draws search results as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from mobileclip import storage
from mobileclip.collections.searching.matches import Match
from mobileclip.collections.searching.pictures import small_pictures
from mobileclip.datasets.viewing.paper import FAINT, INK, TILE, Sheet, Tile


def draw_matches(title: str, matches: Sequence[Match]) -> Image.Image:
    """Return the pictures that were found, with their scores and names, the best first.

    Args:
        title: what was asked for.
        matches: what was found; a picture that cannot be read any more shows its name alone.
    """
    sheet = Sheet()
    sheet.text(storage.printable(title), 20)
    sheet.space(20)
    tiles = [
        Tile(
            picture=picture,
            lines=((f"{match.score:.3f}", 15, INK), (storage.printable(match.name), 12, FAINT)),
        )
        for match, picture in zip(matches, small_pictures(matches, TILE), strict=True)
    ]
    sheet.tiles(tiles)
    if not tiles:
        sheet.text("nothing was found", 15, FAINT)
    return sheet.image()
