"""Which drawings are for training, and which three kinds of unseen ones are for testing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import attrs
import numpy as np
import numpy.typing as npt

from examples.quickstart.emoji.concepts import Concept

TRAIN, TEST_RENDERINGS, TEST_STYLE, TEST_CONCEPTS = "train", "test_renderings", "test_style", "test_concepts"
SPLITS = (TRAIN, TEST_RENDERINGS, TEST_STYLE, TEST_CONCEPTS)
# Mean difference of thumbnails, in levels of 0 to 255, below which two vendors' drawings are called the same.
SAME_DRAWING = 12.0
# A rendering is held out only where so many styles of its concept, and at least one, stay for training.
_MIN_STYLES = 3


@attrs.frozen(kw_only=True)
class Picture:
    """What the split needs to know of a drawing.

    Args:
        style: whose drawing.
        code: what it depicts.
        thumbnail: a few pixels, to find drawings that two vendors share.
    """

    style: str
    code: str
    thumbnail: npt.NDArray[np.uint8] = attrs.field(eq=False)


def chance(seed: int, *names: str) -> float:
    """Return a number of [0, 1) that depends on the arguments alone."""
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
    """Return the pictures of every split.

    Families of concepts stay together: a held-out concept takes its variants (gender, direction) along, and a held-out
    rendering those of the same vendor, because they share words and most of the drawing.

    Args:
        pictures: all of them.
        concepts: what they depict.
        held_out_style: the vendor that training never sees.
        concept_fraction: fraction of the families whose pictures are all held out.
        rendering_fraction: fraction of the other families of which one vendor's pictures are held out; families that
            too few vendors drew, and pictures that two vendors share, are left in training.
        seed: of the choice.
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
    """Return one vendor's pictures of a family: such as nothing that stays for training looks the same."""
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
