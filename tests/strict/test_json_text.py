"""JSON from anyone ends in a value or a ValueError that says what is wrong."""

import re

import pytest

from mobileclip.strict import parse_json


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
    ("text", "said"),
    [
        ('{"a": 1, "b": 2, "b": 3, "a": 4}', "the key 'b' is there twice"),
        (f'{{"{"k" * 100}": 1, "{"k" * 100}": 2}}', f"the key '{'k' * 80}' is there twice"),
        ("NaN", "NaN is no number that JSON has"),
        ("[-Infinity]", "-Infinity is no number that JSON has"),
        ("9" * 41, "a number has 41 digits, and at most 40 are read"),
        ("1e309", "the number 1e309 is too large"),
        (f"0.{'1' * 999}", f"the number 0.{'1' * 38} is too large"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        parse_json(text)


@pytest.mark.parametrize("text", ["", "{", "[1,]", "nothing", b"\xff\xfe\xff", '{"a" 1}'])
def test_what_is_no_json(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_length_is_bounded_before_anything_is_read():
    assert parse_json("[1]", max_characters=3) == [1]
    with pytest.raises(ValueError, match=r"^it has 1,234 characters, and at most 1,233 are read$"):
        parse_json("[" * 1234, max_characters=1233)
    with pytest.raises(ValueError, match="at most 67,108,864 are read"):
        parse_json(b" " * (2**26 + 1))
