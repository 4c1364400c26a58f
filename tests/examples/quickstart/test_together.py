"""How sure a difference of the quickstart's rows is."""

import math

import pytest

from examples.quickstart.together import ALL, compared, together_table

KEYS = tuple(map(str, range(40)))


def row(*chances, also=()):
    """Hits of a seed each: the first pictures are named, so many of them."""
    return [
        {"drawings": {key: int(key) < number for key in KEYS}, "style": {key: key in also for key in KEYS[:10]}}
        for number in chances
    ]


def test_seeds_and_pictures_both_make_an_error():
    hits = {"plain": row(4, 4), "captions": row(20, 20), "reinforced": row(22, 26)}
    found = compared(hits)["reinforced - captions"]["drawings"]
    # Two of 40 pictures are gained by both seeds, four by one; the seeds gain 5 and 15 points.
    gains = [1.0] * 2 + [0.5] * 4 + [0.0] * 34
    mean = sum(gains) / 40
    of_pictures = sum((one - mean) ** 2 for one in gains) / 39 / 40
    of_seeds = (0.05**2 + 0.05**2) / 1 / 2
    assert (found.earlier, found.later) == pytest.approx((50, 60))
    assert found.error == pytest.approx(100 * math.sqrt(of_pictures + of_seeds))
    assert f"{found}".endswith(", not significant")
    assert compared(hits)["captions - plain"]["drawings"].is_significant


def test_a_picture_of_two_splits_counts_once():
    hits = {"plain": row(0), "captions": row(0), "reinforced": row(8, also=KEYS[:8])}
    found = compared(hits)["reinforced - captions"]
    assert {name: one.num_pictures for name, one in found.items()} == {"drawings": 40, "style": 10, ALL: 40}
    assert found[ALL].later == pytest.approx(20)
    lines = list(together_table({"a - b": found}, {"style": "a style"}))
    assert lines[-3].startswith("| top-5 | drawings (40) | a style (10) | all unseen pictures (40) |")
    assert lines[-1].count("(0.0 to 20.0)") == 2


def test_rows_of_before_pictures_were_kept_have_no_errors():
    old = [{}]
    assert compared({"plain": old, "captions": old, "reinforced": old}) == {}
    assert list(together_table({}, {})) == []
