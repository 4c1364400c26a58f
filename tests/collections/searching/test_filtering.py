"""Conditions in a person's words."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

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


FORMS = ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S")
MOMENTS = st.integers(-30_000_000_000, 200_000_000_000).map(lambda second: START + timedelta(seconds=second))
START = datetime(1970, 1, 1, tzinfo=timezone.utc)


def bounds(moment, form):
    """Return the first moment of a date, and the first one behind it."""
    first = moment.replace(**dict(list({"month": 1, "day": 1, "hour": 0, "minute": 0, "second": 0}.items())[form:]))
    if form < 2:
        months = first.year * 12 + first.month - 1 + (12, 1)[form]
        return first, first.replace(year=months // 12, month=months % 12 + 1)
    return first, first + timedelta(**{("days", "hours", "minutes", "seconds")[form - 2]: 1})


@pytest.fixture(scope="module")
def dates(tmp_path_factory):
    return made(tmp_path_factory.mktemp("dates"))


# Moments around a boundary decide, and are seldom drawn.
NEAR = st.lists(st.integers(-90_000, 90_000), min_size=10, max_size=30)


@settings(max_examples=15)
@given(others=st.lists(MOMENTS, max_size=10), asked=MOMENTS, form=st.integers(0, len(FORMS) - 1), near=NEAR)
def test_a_date_is_compared_as_all_of_its_moments(dates, others, asked, form, near):
    first, end = bounds(asked, form)
    moments = [*others, first, end, *((first, end)[one % 2] + timedelta(seconds=one) for one in near)]
    date = asked.strftime(FORMS[form])
    pictures = rewrite(dates, {"taken": None}, *({"taken": one.strftime(FORMS[-1])} for one in moments))
    holds = {
        "<": lambda taken: taken < first,
        "<=": lambda taken: taken < end,
        "=": lambda taken: first <= taken < end,
        "!=": lambda taken: not first <= taken < end,
        ">=": lambda taken: taken >= first,
        ">": lambda taken: taken >= end,
    }
    for comparison, is_met in holds.items():
        expected = [place for place, taken in enumerate(moments, 1) if is_met(taken)]
        assert found(pictures, f"taken{comparison}{date}") == expected
