"""Conditions in a person's words."""

from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from mobileclip.collections import parse_condition
from tests.errors import fails

TABLE = pa.table(
    {
        "path": ["/photos/Holiday/a.jpg", "/photos/b.jpg", "/photos/c'.jpg"],
        "width": pa.array([800, 1000, 1200], pa.int32()),
        "taken": ["2023-12-31T23:59:59", None, "2024-05-01T12:30:00"],
        "latitude": [48.5, None, -33.0],
    }
)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("width>1000", [2]),
        (" width >= 1e3 ", [1, 2]),
        ("Width==800", [0]),
        ("width=800", [0]),
        ("width!=800", [1, 2]),
        ("width<1000.5", [0, 1]),
        ("path~holiday", [0]),
        ("path~'", [2]),
        ("path~.jpg", [0, 1, 2]),
        ("path=/photos/b.jpg", [1]),
        ("taken>=2024", [2]),
        ("latitude<0", [2]),
        ("latitude!=0", [0, 2]),
    ],
)
def test_pictures_meet_conditions(text, places):
    assert parse_condition(text).mask(TABLE).nonzero()[0].tolist() == places


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("width", ("collections.condition-column-comparison-value",)),
        ("width>", ("collections.condition-column-comparison-value",)),
        ("__import__('os')", ("collections.condition-column-comparison-value",)),
        ("widht>3", ("collections.column", "widht", "did you mean 'width'")),
        ("embedding>3", ("collections.column", "embedding")),
        ("width>wide", ("collections.number-none-column-comparison", "width", "wide")),
        ("width>nan", ("collections.number-none-column-comparison", "width")),
        ("taken>=yesterday", ("collections.taken-date-none-such", "yesterday")),
        ("taken=2024-13", ("collections.taken-date-none-such",)),
        ("taken<2024-02-30", ("collections.taken-date-none-such",)),
        ("taken<=2024-06-01T25", ("collections.taken-date-none-such",)),
        ("width~3", ("collections.looks-text-number-use", "width")),
    ],
)
def test_what_is_no_condition_is_told(text, error):
    with fails(*error):
        parse_condition(text)


def test_control_characters_of_a_condition_are_shown_as_escapes():
    with fails("collections.condition-column-comparison-value", "\\x1b[2J"):
        parse_condition("\x1b[2J")


NOON = pa.table({"taken": ["2024-06-01T12:30:05"]})


@pytest.mark.parametrize(
    "text",
    [
        "taken<=2024",
        "taken=2024",
        "taken<=2024-06-01",
        "taken>=2024-06",
        "taken=2024-06-01T12:30:05",
        "taken<=2024-06-01T12:30",
        "taken<2024-06-01 12:31",
        "taken>2024-5",
        "taken!=2024-06-02",
        "taken~06-01",
    ],
)
def test_a_photo_is_found_by_its_date(text):
    assert parse_condition(text).mask(NOON).tolist() == [True]


@pytest.mark.parametrize("text", ["taken<2024", "taken>2024", "taken!=2024-06", "taken>2024-06-01T12", "taken=2024-07"])
def test_a_photo_is_not_found_by_another_date(text):
    assert parse_condition(text).mask(NOON).tolist() == [False]


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


@given(taken=MOMENTS, asked=MOMENTS, form=st.integers(0, len(FORMS) - 1), near=st.none() | st.integers(-90_000, 90_000))
def test_a_date_is_compared_as_all_of_its_moments(taken, asked, form, near):
    first, end = bounds(asked, form)
    # Moments around a boundary decide, and are seldom drawn.
    taken = taken if near is None else end + timedelta(seconds=near)
    date, table = asked.strftime(FORMS[form]), pa.table({"taken": [taken.strftime(FORMS[-1]), None]})
    expected = {
        "<": taken < first,
        "<=": taken < end,
        "=": first <= taken < end,
        "!=": not first <= taken < end,
        ">=": taken >= first,
        ">": taken >= end,
    }
    for comparison, holds in expected.items():
        assert parse_condition(f"taken{comparison}{date}").mask(table).tolist() == [holds, False]
