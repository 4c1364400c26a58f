"""The pointing game: which quadrant a map points at, and what a picture is composed of."""

import pytest
import torch
from PIL import Image

from benchmarks.pointing import composed, fitted, groups, quadrant_of_largest, quadrant_sums


@pytest.mark.parametrize("right", range(4))
def test_a_map_that_is_large_in_a_quadrant_points_at_it(right):
    shares = torch.zeros(4, 4)
    shares[2 * (right // 2) + 1, 2 * (right % 2)] = 1
    assert quadrant_of_largest(shares) == int(quadrant_sums(shares).argmax()) == right
    colours = ["red", "green", "blue", "black"]
    whole = composed([fitted(Image.new("RGB", (9, 9), one), 8) for one in colours])
    expected = Image.new("RGB", (1, 1), colours[right]).getpixel((0, 0))
    assert whole.getpixel((8 * (right % 2) + 4, 8 * (right // 2) + 4)) == expected


def test_no_two_of_a_group_have_one_caption():
    drawings = [(name, Image.new("RGB", (4, 4))) for name in ("a", "a", "b", "c", "d")]
    several = list(groups(drawings, 20, seed=1))
    assert len(several) == 20
    assert all(len({caption for caption, _ in one}) == 4 for one in several)
    with pytest.raises(ValueError, match="fewer than four"):
        next(groups(drawings[:3], 1, seed=1))
