"""Conditions in a person's words."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from mobileclip.collections import Store, parse_condition
from mobileclip.collections.conditions import matching
from mobileclip.collections.metadata import IndexMetadata
from mobileclip.collections.snapshot import take_snapshot
from mobileclip.collections.store import Row
from tests.errors import fails

ROWS = (
    {"path": "/photos/Holiday/Ä.jpg", "width": 800, "taken": "2023-12-31T23:59:59", "latitude": 48.85837009999999},
    {"path": "/photos/b.jpg", "width": 1000},
    {"path": "/photos/c'.jpg", "width": 1200, "taken": "2024-05-01T12:30:00", "latitude": -33.0},
    {"path": "/photos/d.jpg", "width": 900, "taken": "2024-06-01T12:30:05"},
    {"path": "/e.png", "latitude": 48.8583701},
)


def made(folder):
    return Store.create(folder / "index", IndexMetadata(weights_sha256="0" * 64, spec="{}", version="1", dim=2))


def rewrite(index, *rows):
    """Have an index hold these rows alone, and return them as they are read."""
    given = {"path": "/a.jpg", "size": 1, "mtime_ns": 1, "sha256": "", "embedding": np.ones(2)}
    with index.writing():
        old = [number for (number,) in index.values("id")]
        index.append([Row(**{**given, **row}) for row in rows], removed=old)
        index.compact()
    return take_snapshot(index)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return rewrite(made(tmp_path_factory.mktemp("filtering")), *ROWS)


def found(pictures, text):
    return matching(pictures, [parse_condition(text)]).tolist()


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("width>1000", [2]), ("width>=900", [1, 2, 3]), (" width >= 1e3 ", [1, 2]), ("Width==800", [0]),
        ("width<1000.5", [0, 1, 3, 4]),  # not as texts are compared
        ("path~HOLIDAY/ä", [0]), ("path~%", []), ("path~' OR 1=1 --", []), ("path~'", [2]), ("path=/photos/b.jpg", [1]),
        ("taken>=2024", [2, 3]), ("taken<=2024-06-01", [0, 2, 3]), ("taken<2024-06-01", [0, 2]), ("taken~06-01", [3]),
        ("taken>2024-5", [3]), ("taken<2024-06-01 12:31", [0, 2, 3]), ("latitude<0", [2]), ("latitude!=0", [0, 2, 4]),
        ("latitude=48.85837009999999", [0]),  # the number that was written
    ],
)  # fmt: skip
def test_pictures_meet_conditions(pictures, text, places):
    assert found(pictures, text) == places


def test_conditions_are_on_the_pictures_that_were_there(tmp_path):
    index = made(tmp_path)
    snapshot = rewrite(index, *ROWS)
    with index.writing():
        index.append([Row(path="/new", size=1, mtime_ns=1, sha256="", width=5000, embedding=np.ones(2))], removed=[1])
    assert found(snapshot, "width>1000") == [2], "what was read is kept"
    assert found(snapshot, "latitude<40") == [2], "the first was removed, and is not found by the next one's place"
    assert found(take_snapshot(index), "width>=1000") == [0, 1, 4]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        *((text, "") for text in ("width", "width>", "__import__('os')", "taken=2024-13", "taken<2024-02-30")),
        *((text, "width") for text in ("width>nan", "width~3", "widht>3")),
        *(("\x1b[2J", "\\x1b[2J"), ("embedding>3", "embedding"), ("tag~dog", "tag="), ("width>wide", "wide")),
        *(("taken>=yesterday", "yesterday"), ("taken<=2024-06-01T25", "")),
    ],
)
def test_what_is_no_condition_is_told(text, named):
    with fails(ValueError, named):
        parse_condition(text)


# A date, its first moment, and the first one behind it.
DATES = [
    ("2024", "2024-01-01T00:00:00", "2025-01-01T00:00:00"),
    ("1019-12", "1019-12-01T00:00:00", "1020-01-01T00:00:00"),
    ("2024-02", "2024-02-01T00:00:00", "2024-03-01T00:00:00"),
    ("2024-02-28", "2024-02-28T00:00:00", "2024-02-29T00:00:00"),
    ("8306-12-31T23", "8306-12-31T23:00:00", "8307-01-01T00:00:00"),
    ("2024-06-01T12:59", "2024-06-01T12:59:00", "2024-06-01T13:00:00"),
    ("2024-06-01T12:30:59", "2024-06-01T12:30:59", "2024-06-01T12:31:00"),
]


@pytest.mark.parametrize(("date", "first", "end"), DATES)
def test_a_date_is_compared_as_all_of_its_moments(tmp_path, date, first, end):
    first, end, second = datetime.fromisoformat(first), datetime.fromisoformat(end), timedelta(seconds=1)
    moments = (first - second, first, end - second, end)
    pictures = rewrite(made(tmp_path), {"taken": None}, *({"taken": one.isoformat()} for one in moments))
    expected = {"<": [1], "<=": [1, 2, 3], "=": [2, 3], "!=": [1, 4], ">=": [2, 3, 4], ">": [4]}
    assert {each: found(pictures, f"taken{each}{date}") for each in expected} == expected
