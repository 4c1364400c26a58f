"""What was found, as a contact sheet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from PIL import Image

from mobileclip import storage
from mobileclip.collections.collection import Match
from mobileclip.data.images.formats import is_image_name
from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.transform import load_image
from mobileclip.data.shards.files import read_shard
from mobileclip.data.skips import Skip
from mobileclip.data.viewing.paper import COLUMNS, FAINT, INK, TILE, Sheet, Tile

# Decoding at an eighth, a photograph is still larger than a tile.
_REDUCE = 8
_SMALLEST_REDUCED = _REDUCE * TILE


def draw_matches(title: str, matches: Sequence[Match]) -> Image.Image:
    """Return the pictures that were found, with their scores and names, the best first.

    Args:
        title: what was asked for.
        matches: what was found; a picture that cannot be read any more shows its name alone.
    """
    sheet = Sheet()
    sheet.text(storage.printable(title), 20)
    sheet.space(20)
    in_shards = _read_parts(matches)
    tiles = [
        Tile(
            picture=_picture(match, in_shards),
            lines=((f"{match.score:.3f}", 15, INK), (storage.printable(match.name), 12, FAINT)),
        )
        for match in matches
    ]
    for start in range(0, len(tiles), COLUMNS):
        sheet.tiles(tiles[start : start + COLUMNS])
    if not tiles:
        sheet.text("nothing was found", 15, FAINT)
    return sheet.image()


def _picture(match: Match, in_shards: dict[str, bytes]) -> Image.Image | None:
    data = match.path if match.part is None else in_shards.get(match.name)
    if data is None:
        return None
    reduce = _REDUCE if min(match.width, match.height) >= _SMALLEST_REDUCED else 1
    try:
        image = load_image(data, reduce=reduce)
    except ImageError:
        return None
    image.thumbnail((TILE, TILE))
    return image


def _read_parts(matches: Sequence[Match]) -> dict[str, bytes]:
    """Return the pictures that are in shards, by name; each shard is read once."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for match in matches:
        if match.part is not None:
            wanted[match.path].add(match.part)
    skips: list[Skip] = []
    found = {}
    for shard, parts in wanted.items():
        for raw in read_shard(shard, skips.append):
            image = next((raw.members[one] for one in raw.members if is_image_name(f".{one}")), None)
            if raw.key in parts and image is not None:
                found[f"{shard}/{raw.key}"] = image
    return found
