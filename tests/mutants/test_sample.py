"""Which mutants a run tries, and what it says of them."""

import json
from argparse import Namespace

import cosmic_ray  # noqa: F401

from tests.mutants.__main__ import Entry, drawn, read, table
from tests.mutants.equal import FIELDS
from tests.mutants.rooms import room_of
from tests.mutants.sites import Mutant

ROOMS = ("hardware", "strict")


def keys(**changes):
    choices = {"seed": 0, "count": 60, "count_per_room": None, "all": False, "rooms": ROOMS, "only": ""}
    return [mutant.key for mutant in drawn(Namespace(**choices | changes))]


def test_every_room_has_as_many_mutants():
    rooms = [room_of(key[0]) for key in keys(count_per_room=3)]
    assert rooms == ["hardware"] * 3 + ["strict"] * 3
    assert [room_of(key[0]) for key in keys(count=4)] == [*ROOMS, *ROOMS]


def test_a_longer_sample_begins_with_the_shorter_one_whatever_other_rooms_are_asked():
    assert keys(count_per_room=5, rooms=("strict",))[:3] == keys(count_per_room=3)[3:]
    assert keys(count_per_room=3, seed=1) != keys(count_per_room=3)


def mutant(file, line):
    return Mutant(file=file, function="f", line=line, becomes="", number=1, source="")


def test_what_became_of_them_by_room():
    entries = [
        Entry(mutant("mobileclip/strict/fields.py", "a"), "caught", "tests/test_a.py::test"),
        Entry(mutant("mobileclip/strict/fields.py", "b"), "lived"),
        Entry(mutant("mobileclip/strict/fields.py", "c"), "equal"),
        Entry(mutant("mobileclip/inputs.py", "a"), "unconfirmed"),
    ]
    assert table(entries).splitlines()[2:] == [
        "| loose | 1 | 0 | 0 | 0 | 1 | 0% |",
        "| strict | 3 | 1 | 1 | 1 | 0 | 50% |",
        "| all | 4 | 1 | 1 | 1 | 1 | 50% |",
    ]


def test_earlier_outcomes_are_read(tmp_path):
    assert read(tmp_path / "none.jsonl") == {}
    entry = {"file": "a.py", "function": "", "line": "x = 1", "becomes": "x = 2", "outcome": "caught", "failed": "t"}
    (tmp_path / "mutants.jsonl").write_text(f"{json.dumps(entry)}\n")
    assert FIELDS == ("file", "function", "line", "becomes")
    assert read(tmp_path / "mutants.jsonl") == {("a.py", "", "x = 1", "x = 2"): ("caught", "t")}
