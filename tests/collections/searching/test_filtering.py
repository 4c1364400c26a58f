"""Conditions in a person's words."""

import pyarrow as pa
import pytest

from mobileclip.collections import parse_condition

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
    ("text", "message"),
    [
        ("width", "is no condition; expected a column, a comparison and a value"),
        ("width>", "is no condition"),
        ("__import__('os')", "is no condition"),
        ("widht>3", "there is no column 'widht'; did you mean 'width'"),
        ("embedding>3", "there is no column 'embedding'"),
        ("width>wide", "width is a number, and 'wide' is none"),
        ("width>nan", "width is a number"),
        ("width~3", "~ looks for a text, and width is a number"),
    ],
)
def test_what_is_no_condition_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        parse_condition(text)


def test_control_characters_of_a_condition_are_shown_as_escapes():
    with pytest.raises(ValueError, match=r"'\\x1b\[2J' is no condition"):
        parse_condition("\x1b[2J")
