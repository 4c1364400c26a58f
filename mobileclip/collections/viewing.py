"""Writes search results and duplicates as HTML pages, and duplicates as JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobileclip import storage
from mobileclip.collections.duplicates import DuplicateGroup, Duplicates
from mobileclip.collections.images import small_images
from mobileclip.collections.snapshot import Match
from mobileclip.datasets import SIDE, Section, Thumbnail, write_images

# The page of `mobileclip serve` has the same colours, in explain.js. The last number is the maximum opacity.
_WARM, _COLD, _STRONGEST = (214, 58, 0), (0, 84, 190), 150

Map = NDArray[np.float32]


def write_matches(path: Path, title: str, matches: Sequence[Match], maps: Sequence[Map | None] | None = None) -> None:
    """Write a page of search results with scores and names, best first.

    Args:
        path: the HTML file, replaced atomically.
        title: title of the page, such as the query.
        matches: search results; for an unreadable image, the page shows only the name.
        maps: for each match, the map of `Collection.explain`, or None if there is no map; None instead of the sequence
            for a page without maps.

    Raises:
        OSError: if the file cannot be written.
    """
    shown = zip(matches, small_images(matches, SIDE), maps or [None] * len(matches), strict=True)
    thumbnails = [
        Thumbnail(
            image=image if image is None or shares is None else overlay_map(image, shares),
            lines=(f"{match.score:.3f}", *(() if shares is None else (scale_of(shares),))),
            name=match.name,
        )
        for match, image, shares in shown
    ]
    notes = (*(() if maps is None else (_EXPLAINED,)), *(() if thumbnails else ("nothing was found",)))
    write_images(path, title, [Section(thumbnails=thumbnails)], notes=notes)


def scale_of(shares: Map) -> str:
    """Describe in words the score difference that a map's strongest colour stands for."""
    return f"full colour: the location changes the score by {float(np.abs(shares).max()):.4f}"


def overlay_map(image: Image.Image, shares: Map) -> Image.Image:
    """Overlay an image with its map: warm colours mark locations that raise the score, cold colours that lower it.

    Args:
        image: uncropped image; pixels outside the model's crop stay unchanged.
        shares: map of the centre crop, `(rows, columns)`.
    """
    side = min(image.size)
    strongest = max(float(np.abs(shares).max()), float(np.finfo(np.float32).tiny))
    scaled = Image.fromarray((shares / strongest).astype(np.float32))
    smooth = np.asarray(scaled.resize((side, side), Image.Resampling.BILINEAR))
    colours = np.where(smooth[..., None] > 0, np.array(_WARM), np.array(_COLD)).astype(np.uint8)
    strength = Image.fromarray((np.abs(smooth) * _STRONGEST).astype(np.uint8))
    shown = image.convert("RGB")
    shown.paste(Image.fromarray(colours), ((image.width - side) // 2, (image.height - side) // 2), strength)
    return shown


# Browsers are slow with pages of more groups.
_MOST_GROUPS = 300
_MOST_SHOWN = 24
_EXPLAINED = "warm locations raise the score, cold locations lower the score (attribution, not segmentation)"


def write_list(path: Path, groups: Sequence[DuplicateGroup]) -> None:
    """Write one line of JSON per near duplicate of a better image: `keep`, `duplicate` and `similarity`.

    Args:
        path: path of the file.
        groups: groups of near duplicates.

    Raises:
        OSError: if the file cannot be written.
    """
    with storage.atomic_write(path) as stream:
        for group in groups:
            for other in group.others:
                line = {"keep": group.best.name, "duplicate": other.name, "similarity": other.score}
                stream.write(f"{json.dumps(line)}\n".encode())


def write_page(path: Path, groups: Duplicates, *, threshold: float) -> None:
    """Write a self-contained page that shows the images of each group side by side.

    Args:
        path: path of the page.
        groups: groups of near duplicates.
        threshold: minimum cosine similarity of the groups.

    Raises:
        OSError: if the file cannot be written.
    """
    num_others = sum(len(group.others) for group in groups)
    found = f"{num_others} near duplicates of the best copies, with a cosine similarity of at least {threshold:g}."
    notes = [f"{found} The command deleted nothing."]
    if len(groups) > _MOST_GROUPS:
        notes.append(f"This page shows the first {_MOST_GROUPS} groups; the list has all groups.")
    title = f"{len(groups)} group{'' if len(groups) == 1 else 's'} of similar images"
    write_images(path, title, _sections(groups), notes=notes)


def _sections(groups: Duplicates) -> Iterator[Section]:
    for number, group in enumerate(groups[:_MOST_GROUPS], 1):
        shown = [group.best, *islice(group.others, _MOST_SHOWN - 1)]
        more = f" ({len(shown)} shown)" if len(shown) <= len(group.others) else ""
        yield Section(title=f"{number}: {len(group.others) + 1} images{more}", thumbnails=list(_group(shown)))
    if groups.blank:
        note = "The similarity of one-colour images is meaningless, so the page proposes no best copy."
        names = (match.name for match in groups.blank[:_MOST_GROUPS])
        yield Section(title=f"{len(groups.blank)} images of nearly one colour", notes=(note, *names))


def _group(matches: Sequence[Match]) -> Iterator[Thumbnail]:
    for number, (match, image) in enumerate(zip(matches, small_images(matches, SIDE), strict=True)):
        facts = f"{match.width} x {match.height}, {match.size / 1000:,.0f} kB"
        lines = (
            f"similarity {match.score:.3f}" if number else "best copy",
            ", ".join(filter(None, (facts, match.taken, match.camera))),
            *(("can no longer be read",) if image is None else ()),
        )
        yield Thumbnail(image=image, lines=lines, name=match.name)
