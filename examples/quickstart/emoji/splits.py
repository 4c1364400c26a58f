"""Splits the drawings into training drawings and three kinds of unseen test drawings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import attrs
import numpy as np
import numpy.typing as npt

from examples.quickstart.emoji.concepts import Concept

TRAIN, TEST_RENDERINGS, TEST_STYLE, TEST_CONCEPTS = "train", "test_renderings", "test_style", "test_concepts"
SPLITS = (TRAIN, TEST_RENDERINGS, TEST_STYLE, TEST_CONCEPTS)
# Mean difference of thumbnails, in levels of 0 to 255, below which two vendors' drawings count as equal.
SAME_DRAWING = 12.0
# Minimum number of vendors that draw a family, to hold out one vendor's drawings of the family.
_MIN_STYLES = 3


@attrs.frozen(kw_only=True)
class Picture:
    """The properties of a drawing for the split.

    Args:
        style: style of the drawing.
        code: code of the depicted concept.
        thumbnail: a few pixels, to find equal drawings of two vendors.
    """

    style: str
    code: str
    thumbnail: npt.NDArray[np.uint8] = attrs.field(eq=False)


def chance(seed: int, *names: str) -> float:
    """Return a number in [0, 1) that depends only on the arguments."""
    digest = hashlib.sha256("\x1f".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_pictures(
    pictures: Sequence[Picture],
    concepts: Mapping[str, Concept],
    *,
    held_out_style: str,
    concept_fraction: float,
    rendering_fraction: float,
    seed: int,
) -> dict[str, list[Picture]]:
    """Return the images of every split.

    Families of concepts stay together: all variants (gender, direction) of a held-out concept are held out, and so are
    the same vendor's variants of a held-out rendering, because variants share words and most of the drawing.

    Args:
        pictures: all drawings.
        concepts: concepts by code.
        held_out_style: the vendor that training never sees.
        concept_fraction: fraction of the families with all images held out.
        rendering_fraction: fraction of the other families of which one vendor's images are held out; families of too
            few vendors, and images that two vendors share, stay in training.
        seed: seed of the random choice.
    """
    splits: dict[str, list[Picture]] = {name: [] for name in SPLITS}
    families: dict[str, list[Picture]] = {}
    for picture in pictures:
        families.setdefault(concepts[picture.code].family, []).append(picture)
    for family, members in families.items():
        seen = [picture for picture in members if picture.style != held_out_style]
        other = [picture for picture in members if picture.style == held_out_style]
        if chance(seed, "concept", family) < concept_fraction:
            # The held-out vendor's drawings of held-out concepts would mix two questions.
            splits[TEST_CONCEPTS] += seen
            continue
        held_out: list[Picture] = []
        if chance(seed, "rendering", family) < rendering_fraction:
            held_out = _held_out_renderings(seen, family, seed)
        splits[TEST_RENDERINGS] += held_out
        splits[TRAIN] += [picture for picture in seen if picture not in held_out]
        trained = {picture.code for picture in seen if picture not in held_out}
        splits[TEST_STYLE] += [picture for picture in other if picture.code in trained]
    return splits


def _held_out_renderings(pictures: Sequence[Picture], family: str, seed: int) -> list[Picture]:
    """Return one vendor's images of a family that differ from all remaining training images."""
    styles = sorted({picture.style for picture in pictures}, key=lambda style: chance(seed, family, style))
    if len(styles) < _MIN_STYLES:
        return []
    for style in styles:
        chosen = [picture for picture in pictures if picture.style == style]
        rest = [picture for picture in pictures if picture.style != style]
        covered = {picture.code for picture in rest}
        if all(picture.code in covered for picture in chosen) and not _share_drawing(chosen, rest):
            return chosen
    return []


def _share_drawing(first: Iterable[Picture], second: Sequence[Picture]) -> bool:
    return any(
        np.abs(one.thumbnail.astype(np.float32) - other.thumbnail.astype(np.float32)).mean() < SAME_DRAWING
        for one in first
        for other in second
    )
