"""JSON from anyone ends in a value or a ValueError that says what is wrong."""

import pytest

from mobileclip.strict import parse_json
from tests.errors import fails


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, null, true, "x"], "b": {}}', {"a": [1, 2.5, None, True, "x"], "b": {}}),
        (b'{"a": "\xc3\xbc"}', {"a": "ü"}),
        ('"ü"'.encode("utf-16"), "ü"),
        ("9" * 40, int("9" * 40)),
        (f"0.{'1' * 998}", float(f"0.{'1' * 998}")),
        ("1e308", 1e308),
    ],
)
def test_what_it_holds(text, value):
    assert parse_json(text) == value


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"a": 1, "b": 2, "b": 3, "a": 4}', (ValueError, "b")),
        (
            f'{{"{"k" * 100}": 1, "{"k" * 100}": 2}}',
            (ValueError, "k" * 80),
        ),
        ("NaN", (ValueError, "NaN")),
        ("[-Infinity]", (ValueError, "-Infinity")),
        ("9" * 41, (ValueError, "41", "40")),
        ("1e309", (ValueError, "1e309")),
        (f"0.{'1' * 999}", (ValueError, "0.11111111111111111111111111111111111111")),
        ("[" * 100_000, (ValueError,)),
    ],
)
def test_what_is_refused(text, error):
    with fails(*error):
        parse_json(text)


@pytest.mark.parametrize("text", ["", "{", "[1,]", "nothing", b"\xff\xfe\xff", '{"a" 1}'])
def test_what_is_no_json(text):
    with fails(ValueError):
        parse_json(text)


def test_length_is_bounded_before_anything_is_read():
    assert parse_json("[1]", max_characters=3) == [1]
    with fails(ValueError, "1,234", "1,233"):
        parse_json("[" * 1234, max_characters=1233)
    with fails(ValueError, "67,108,864"):
        parse_json(b" " * (2**26 + 1))
