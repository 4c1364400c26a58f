"""Finds easy held-out images: images with a glyph from training, and names whose words are all known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from examples.icons.dataset import SIDE
from examples.icons.splits import TEST_NAMES
from examples.quickstart.emoji.on_disk import DrawnDataset
from mobileclip.data import ImageTextSample, decode_image

SAME_GLYPH, SEEN_WORDS = "same_glyph", "seen_words"
MIN_CORRELATION = 0.95
# Inverted grey levels above this number, of 255, are ink.
_INK_THRESHOLD = 8
_ROWS = 256

Bits = npt.NDArray[np.bool_]
Glyphs = npt.NDArray[np.float32]


def glyph(png: bytes) -> Glyphs:
    """Return an image's ink, cropped, centred in a square and scaled to 16 x 16, as a vector with mean 0 and norm 1.

    Margins have no effect, and a slightly thicker stroke has little effect. An image without ink gives zeros.
    """
    ink = ImageOps.invert(decode_image(png).convert("L"))
    box = ink.point(lambda level: 255 if level > _INK_THRESHOLD else 0).getbbox()
    cut = ink.crop(box) if box else ink
    square = Image.new("L", (max(cut.size), max(cut.size)))
    square.paste(cut, ((square.width - cut.width) // 2, (square.height - cut.height) // 2))
    levels = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32).reshape(-1)
    centred: Glyphs = levels - levels.mean()
    length = float(np.linalg.norm(centred))
    return centred / np.float32(length) if length > 0 else centred


def has_same_glyph(asked: Glyphs, known: Glyphs, *, min_correlation: float) -> Bits:
    """Return a mask of the glyphs with a correlation of at least `min_correlation` to any known glyph.

    Shape:
        asked, known: (images, 16 x 16), results of `glyph`.
    """
    best = [(asked[start : start + _ROWS] @ known.T).max(1) for start in range(0, len(asked), _ROWS)]
    return np.asarray(np.concatenate(best) >= min_correlation)


def has_seen_words(names: Iterable[str], known: Iterable[str]) -> Bits:
    """Return a mask of the names whose words all occur in known names, letter for letter, in any order."""
    words = {word for name in set(known) for word in name.split()}
    return np.array([words.issuperset(name.split()) for name in names])


def strict_bits(dataset: DrawnDataset) -> Mapping[str, Mapping[str, Bits]]:
    """Return masks by held-out part: `SAME_GLYPH` for every part, `SEEN_WORDS` for the part of unseen names."""
    train = list(dataset.train.samples())
    names, known = [one.metadata["label"] for one in train], _glyphs(train)
    found: dict[str, dict[str, Bits]] = {}
    for part in dataset.tests:
        samples = list(part.samples())
        same = has_same_glyph(_glyphs(samples), known, min_correlation=MIN_CORRELATION)
        found[part.name] = {SAME_GLYPH: same}
        if part.name == TEST_NAMES:
            found[part.name][SEEN_WORDS] = has_seen_words([one.metadata["label"] for one in samples], names)
    return found


def _glyphs(samples: Iterable[ImageTextSample]) -> Glyphs:
    return np.stack([glyph(one.image) for one in samples if one.image is not None])
