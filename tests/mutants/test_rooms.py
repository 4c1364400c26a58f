"""Every file of the library is in a room."""

from pathlib import Path

from tests.mutants.rooms import files, in_turns, room_of, rooms

ROOT = Path(__file__).parents[2]
FILES = [file for room in rooms(ROOT) for file in files(ROOT, room)]


def test_every_file_is_in_one_room():
    every = [path.relative_to(ROOT).as_posix() for path in (ROOT / "mobileclip").rglob("*.py")]
    assert sorted(FILES) == sorted(every)
    assert all(file in files(ROOT, room_of(file)) for file in FILES)


def test_tests_run_in_turns():
    assert in_turns(list("abcde")) == [["a"], ["b", "c"], ["d", "e"]]
    assert in_turns(["a"]) == [["a"]]
    assert in_turns(list("ab")) == [["a"], ["b"]]
