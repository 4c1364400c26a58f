"""Resizing crops that may lie between pixels, against Pillow's, which takes any box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from mobileclip.data.images.resize import resized_crop
from tests.build.image_files import noise

PICTURE = Image.open(min((Path(__file__).parents[2] / "golden" / "augment" / "images").glob("*.png"))).convert("RGB")


def by_pillow(image: Image.Image, box: tuple[float, float, float, float], size: int, interpolation: str) -> np.ndarray:
    left, top, width, height = box
    ends = (left, top, left + width, top + height)
    return np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()], ends)).astype(int)


def ours(image: Image.Image, box: tuple[float, float, float, float], size: int, interpolation: str) -> np.ndarray:
    return np.asarray(resized_crop(image, box, size, interpolation)).astype(int)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 100, 256])
def test_whole_pixels(interpolation, size):
    for left, top, width, height in ((0, 0, 360, 360), (3, 10, 200, 133), (0, 17, 64, 90), (355, 350, 5, 10)):
        cut = PICTURE.crop((left, top, left + width, top + height))
        made = ours(PICTURE, (left, top, width, height), size, interpolation)
        difference = np.abs(made - by_pillow(cut, (0, 0, width, height), size, interpolation))
        assert made.shape == (size, size, 3)
        assert difference.max() <= 3
        assert difference.mean() < 0.3


@pytest.mark.parametrize("offset", [0.5, 0.25, 0.75])
def test_between_pixels(offset):
    """Against the whole pixels beside, which are what a crop that ignores the offset would show."""
    smooth = PICTURE.resize((180, 180), Image.Resampling.BICUBIC)
    box, beside = ((20 + start, 30 + start, 130.5, 120.25) for start in (offset, round(offset)))
    exact = by_pillow(smooth, box, 64, "bicubic")
    error = np.abs(ours(smooth, box, 64, "bicubic") - exact).mean()
    assert error < 2
    assert error < 0.7 * np.abs(ours(smooth, beside, 64, "bicubic") - exact).mean()
    # Rounding does not darken.
    box = (offset, offset, 90, 90)
    found, expected = (resize(noise(100, 100), box, 45, "bilinear").mean() for resize in (ours, by_pillow))
    assert found == pytest.approx(expected, abs=0.4)


@settings(max_examples=200, deadline=None)
@given(*(st.floats(0, 359.4) for _ in "xy"), *(st.floats(0.5, 90) for _ in "wh"), st.integers(1, 64))
def test_any_box(left, top, width, height, size):
    assert ours(PICTURE, (left, top, width, height), size, "bicubic").shape == (size, size, 3)
