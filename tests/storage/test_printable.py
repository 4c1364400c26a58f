"""Text from data, made safe to show."""

import time

import pytest
from hypothesis import given, strategies as st

from mobileclip.storage import printable, without_secrets

SHOWN = [
    ("two\nlines\r\tand a tab", "two\\nlines\\r\\tand a tab"),
    ("\x1b[2Jgone \x9b2J \x00", "\\x1b[2Jgone \\x9b2J \\x00"),
    ("cod\u202egnp.exe, half \ud83d, line\u2028break", "cod\\u202egnp.exe, half \\ud83d, line\\u2028break"),
    *((text, text) for text in ("東京\u3000駅", "👩\u200d🚀 ❤\ufe0f", "C:\\new")),
    (7, "7"),
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_what_is_shown(text, shown):
    assert printable(text) == shown


@given(st.text())
def test_one_line_that_any_terminal_can_encode(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    shown.encode()


def test_long_text_is_cut_and_says_so():
    assert printable("x" * 1234, limit=10) == "xxxxxxxxxx... (1,234 characters)"
    assert printable("x" * 10, limit=10) == "x" * 10


ADDRESSES = [
    ("https://me:secret@host/a/b.jpg", "https://host/a/b.jpg"),
    ("https://host/a?X-Amz-Signature=secret#secret", "https://host/a?..."),
    ("https://host/a#secret", "https://host/a"),
    ("s3://key:se:c@ret@bucket/x.tar", "s3://bucket/x.tar"),
    ("https://host?token=secret", "https://host?..."),
    ("cannot open 'http://u:p@h/x?k=v': 404", "cannot open 'http://h/x?...': 404"),
    ("(see https://host/a?k=v), http://h/x?y: 404", "(see https://host/a?...), http://h/x?...: 404"),
    *((text, text) for text in ("photos/cat@home.jpg?", "https://host/@user/x.jpg", "data/{00000..00127}.tar")),
]


@pytest.mark.parametrize(("text", "shown"), ADDRESSES)
def test_addresses_tell_no_secret(text, shown):
    assert without_secrets(text) == shown


@pytest.mark.parametrize("text", ["a" * 10**6, "a://" * 10**5, "https://" + "." * 10**6, "https://u:" * 10**5])
def test_time_grows_with_the_text(text):
    started = time.monotonic()
    without_secrets(text)
    assert time.monotonic() - started < 5
