"""Which held-out pictures are easier than their split says: a glyph of training once more, a name of known words."""

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
# Of 255: what is darker or more coloured than nearly white is ink.
_PAPER = 8
_ROWS = 256

Bits = npt.NDArray[np.bool_]
Glyphs = npt.NDArray[np.float32]


def glyph(png: bytes) -> Glyphs:
    """Return a picture's ink, cut out, centred in a square and scaled to 16 x 16, as a vector of mean 0 and length 1.

    Margins are gone, and a stroke that is a little thicker changes little. A picture without ink gives zeros.
    """
    ink = ImageOps.invert(decode_image(png).convert("L"))
    box = ink.point(lambda level: 255 if level > _PAPER else 0).getbbox()
    cut = ink.crop(box) if box else ink
    square = Image.new("L", (max(cut.size), max(cut.size)))
    square.paste(cut, ((square.width - cut.width) // 2, (square.height - cut.height) // 2))
    levels = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32).reshape(-1)
    centred: Glyphs = levels - levels.mean()
    length = float(np.linalg.norm(centred))
    return centred / np.float32(length) if length > 0 else centred


def has_same_glyph(asked: Glyphs, known: Glyphs, *, min_correlation: float) -> Bits:
    """Return which glyphs correlate with any of the known ones.

    Shape:
        asked, known: (pictures, 16 x 16), as `glyph` gives them.
    """
    best = [(asked[start : start + _ROWS] @ known.T).max(1) for start in range(0, len(asked), _ROWS)]
    return np.asarray(np.concatenate(best) >= min_correlation)


def has_seen_words(names: Iterable[str], known: Iterable[str]) -> Bits:
    """Return which names consist of words that stand in known names, letter for letter, in any order."""
    words = {word for name in set(known) for word in name.split()}
    return np.array([words.issuperset(name.split()) for name in names])


def strict_bits(dataset: DrawnDataset) -> Mapping[str, Mapping[str, Bits]]:
    """Return a bit for each picture of each held-out part: by `SAME_GLYPH`, and of unseen names by `SEEN_WORDS`."""
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
