"""What a line is: one splitter for every file in which a line is a record."""

from pathlib import Path

import pytest

import mobileclip
from mobileclip.strict import split_lines

ROOT = Path(mobileclip.__file__).parent
# What programs say, for a message or a choice: no line of it is a record.
SAID_BY_PROGRAMS = {
    "engines/ray.py",
    "export/targets/litert/convert.py",
    "inference/optimizing.py",
    "recipes/short.py",
    "terminal/help.py",
}


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_lines_end_as_files_of_records_do(odd):
    assert split_lines(f"one{odd}line\ntwo\r\nthree\r\rfour\n") == [f"one{odd}line", "two", "three", "", "four"]
    assert split_lines("") == []
