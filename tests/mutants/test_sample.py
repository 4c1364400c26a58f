"""Which mutants a run tries, and what it says of them."""

import json
import math
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter

import cosmic_ray  # noqa: F401
import pytest

from tests.mutants import __main__ as program
from tests.mutants.__main__ import Entry, chosen, drawn, main, read, status_of, table, tried
from tests.mutants.equal import FIELDS
from tests.mutants.rooms import room_of
from tests.mutants.sites import Mutant, places

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


@pytest.mark.parametrize(("caught", "lived", "status"), [(46, 14, 1), (47, 13, 0), (60, 0, 0), (0, 5, 1), (0, 0, 2)])
def test_survivors_fail_a_run_where_a_smaller_share_is_caught_than_the_level(
    monkeypatch, tmp_path, caught, lived, status
):
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "LEVEL", tmp_path / "level.json")
    program.LEVEL.write_text('{"level": 0.78}')
    assert status_of(Counter(caught=caught, lived=lived, equal=3, unconfirmed=2)) == status


def test_the_level_is_renewed_from_a_run_with_room_for_chance(monkeypatch, tmp_path):
    lines = [
        json.dumps(
            {"file": "a.py", "function": "", "line": str(number), "becomes": "", "failed": "t"} | {"outcome": one}
        )
        for number, one in enumerate(["caught"] * 54 + ["lived"] * 6 + ["unconfirmed"])
    ]
    (tmp_path / "mutants.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "LEVEL", tmp_path / "level.json")
    monkeypatch.setattr(sys, "argv", ["mutants", "--renew-level", "--output", str(tmp_path / "mutants.jsonl")])
    assert main() == 0
    level = json.loads(program.LEVEL.read_text())
    assert level == {"level": 0.79, "caught": 54, "lived": 6}
    assert status_of(Counter(caught=47, lived=13)) == 1
    assert status_of(Counter(caught=48, lived=12)) == 0


def test_by_default_it_is_an_hour_with_the_sample_of_the_day_over_all_rooms():
    choices = chosen([])
    assert (choices.count, choices.seconds, choices.rooms) == (60, 3600.0, program.ROOMS)
    assert choices.seed in {int(time.strftime("%Y%m%d", time.gmtime(time.time() - late))) for late in (0, 60)}
    assert chosen(["--all"]).seconds == math.inf
    assert chosen(["--all", "--seconds", "60"]).seconds == 60


def test_when_the_time_is_over_what_is_under_way_is_let_go(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "program.py").write_text("FACTOR = 2\n")
    (tmp_path / "test_program.py").write_text("import time\ndef test():\n    time.sleep(600)\n")
    monkeypatch.setattr(program, "ROOT", tmp_path)
    (place, *_) = places(tmp_path, "program.py")
    begun = time.monotonic()
    times = tmp_path / "times.json"
    assert list(tried(place.mutants(), 1, ["test_program.py"], times, None, ends=begun + 1)) == []
    assert 1 <= time.monotonic() - begun < 300
    assert not times.exists()
