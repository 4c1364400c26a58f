"""Resizing crops that may lie between pixels, against Pillow's, which takes any box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from mobileclip.data.images.resize import resized_crop

PICTURES = sorted((Path(__file__).parents[2] / "golden" / "augment" / "images").glob("*.png"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    with Image.open(PICTURES[0]) as image:
        return image.convert("RGB")


def by_pillow(image: Image.Image, box: tuple[float, float, float, float], size: int, interpolation: str) -> np.ndarray:
    left, top, width, height = box
    ends = (left, top, left + width, top + height)
    return np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()], ends)).astype(int)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 100, 256])
def test_whole_pixels(picture, interpolation, size):
    for box in ((0, 0, 360, 360), (3, 10, 200, 133), (0, 17, 64, 90), (355, 350, 5, 10)):
        left, top, width, height = box
        cut = picture.crop((left, top, left + width, top + height))
        made = np.asarray(resized_crop(picture, box, size, interpolation)).astype(int)
        difference = np.abs(made - by_pillow(cut, (0, 0, width, height), size, interpolation))
        assert made.shape == (size, size, 3)
        assert difference.max() <= 3
        assert difference.mean() < 0.3


@pytest.mark.parametrize("offset", [0.5, 0.25, 0.75])
def test_between_pixels(picture, offset):
    """Against the whole pixels beside, which are what a crop that ignores the offset would show."""
    smooth = picture.resize((180, 180), Image.Resampling.BICUBIC)
    width, height = 130.5, 120.25
    exact = by_pillow(smooth, (20 + offset, 30 + offset, width, height), 64, "bicubic")
    made, whole = (
        np.asarray(resized_crop(smooth, (20 + start, 30 + start, width, height), 64, "bicubic"))
        for start in (offset, round(offset))
    )
    error = np.abs(made - exact).mean()
    assert error < 2
    assert error < 0.7 * np.abs(whole - exact).mean()


def test_rounding_does_not_darken():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    for offset in (0.25, 0.5, 0.75):
        box = (offset, offset, 90, 90)
        made = np.asarray(resized_crop(image, box, 45, "bilinear"))
        assert made.mean() == pytest.approx(by_pillow(image, box, 45, "bilinear").mean(), abs=0.4)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_box(picture, data):
    side = st.floats(0.5, 90)
    left, top = (data.draw(st.floats(0, 359.4)) for _ in range(2))
    box = (left, top, data.draw(side), data.draw(side))
    size = data.draw(st.integers(1, 64))
    assert resized_crop(picture, box, size, "bicubic").size == (size, size)
