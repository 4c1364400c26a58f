"""Held-out pictures that are easier than their split says."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from examples.icons.strict import MIN_CORRELATION, glyph, has_same_glyph, has_seen_words


def drawn(shape, *, box=(8, 8, 56, 56), stroke=6):
    picture = Image.new("RGB", (64, 64), "white")
    canvas = ImageDraw.Draw(picture)
    if shape == "ring":
        canvas.ellipse(box, outline="black", width=stroke)
    elif shape == "frame":
        canvas.rectangle(box, outline="black", width=stroke)
    elif shape == "bar":
        canvas.rectangle((box[0], 28, box[2], 36), fill="black")
    file = BytesIO()
    picture.save(file, format="PNG")
    return glyph(file.getvalue())


@pytest.mark.parametrize(
    ("asked", "is_known"),
    [
        ({"shape": "ring"}, True),
        ({"shape": "ring", "box": (4, 4, 60, 60), "stroke": 7}, True),
        ({"shape": "ring", "stroke": 7}, True),
        ({"shape": "ring", "box": (2, 10, 42, 50), "stroke": 5}, True),
        ({"shape": "ring", "stroke": 24}, False),
        ({"shape": "frame"}, False),
        ({"shape": "bar"}, False),
        ({"shape": "nothing"}, False),
    ],
)
def test_a_glyph_is_known_by_its_ink(asked, is_known):
    known = np.stack([drawn("ring")])
    assert has_same_glyph(drawn(**asked)[None], known, min_correlation=MIN_CORRELATION).tolist() == [is_known]


def test_words_are_seen_letter_for_letter():
    names = ["red circle", "circle", "circles", "blue circle", "circle red"]
    assert has_seen_words(names, ["circle", "red square"]).tolist() == [True, True, False, False, True]
