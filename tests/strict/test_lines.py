"""What a line is, and what comes more than once: one function each, for every file in which a line is a record."""

import pytest

from mobileclip.strict import repeated, split_lines


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_lines_end_as_files_of_records_do(odd):
    assert split_lines(f"one{odd}line\ntwo\r\nthree\r\rfour\n") == [f"one{odd}line", "two", "three", "", "four"]
    assert split_lines("") == []


def test_names_that_come_more_than_once_are_sorted():
    assert repeated(["c", "b", "a", "c", "b", "c"]) == ["b", "c"]
    assert repeated(iter("abc")) == []
