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
    ("text", "words"),
    [
        ('{"a": 1, "b": 2, "b": 3, "a": 4}', ("b",)),
        (f'{{"{"k" * 100}": 1, "{"k" * 100}": 2}}', ("k" * 80,)),
        ("NaN", ("NaN",)),
        ("[-Infinity]", ("-Infinity",)),
        ("9" * 41, ("41", "40")),
        ("1e309", ("1e309",)),
        (f"0.{'1' * 999}", ("0.11111111111111111111111111111111111111",)),
        *((text, ()) for text in ("[" * 100_000, "", "{", "[1,]", "nothing", b"\xff\xfe\xff", '{"a" 1}')),
    ],
)
def test_what_is_refused(text, words):
    with fails(ValueError, *words):
        parse_json(text)


def test_length_is_bounded_before_anything_is_read():
    assert parse_json("[1]", max_characters=3) == [1]
    with fails(ValueError, "1,234", "1,233"):
        parse_json("[" * 1234, max_characters=1233)
    with fails(ValueError, "67,108,864"):
        parse_json(b" " * (2**26 + 1))
