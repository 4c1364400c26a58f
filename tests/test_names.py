"""Commands, flags and registered names are as recorded, so that one that leaves is seen."""

import json

from tests.names import FILE, flags, names, takes


def test_names_are_as_recorded():
    """`python -m tests.names` writes them anew."""
    assert names() == json.loads(FILE.read_text(encoding="utf-8"))


def test_flags_are_those_that_the_command_line_takes():
    found = flags("search")
    assert {"-k", "--not", "--where", "--json", "--no-json", "-i", "--index", "--help"} <= set(found)
    assert "WHERE" not in found
    assert all("--help" in given for given in json.loads(FILE.read_text(encoding="utf-8"))["commands"].values())


def test_help_says_what_flags_take_and_what_they_are_by_default():
    said = takes("search")
    assert said["-k N, --k N"] == "10"
    assert said["--device auto|cuda|mps|cpu"] == "auto"
    assert said["[TEXT]"] is said["--not TEXT"] is None
    assert takes("classify")["IMAGE... LABEL..."] is None
