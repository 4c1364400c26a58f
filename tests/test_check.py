"""What `make check` takes for changed, and which tests it chooses of those that a change reaches."""

import subprocess
from pathlib import Path

import pytest

from tests.check import changed_files, within
from tests.ranking import BESIDE, GUARDS, distances, ranked
from tests.seconds import Recorder, longest_first, recorded

ROOT = Path(__file__).parents[1]


@pytest.fixture
def repository(tmp_path):
    """A branch `work` that left `main` one commit ago."""

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    def commit(name):
        (tmp_path / name).write_text(name)
        git("add", name)
        git("commit", "-m", name)

    git("init", "-b", "main")
    (tmp_path / ".gitignore").write_text("build/\n")
    git("add", ".gitignore")
    commit("old.py")
    git("checkout", "-b", "work")
    commit("committed.py")
    git("checkout", "main")
    commit("of others.py")
    git("checkout", "work")
    return tmp_path


def test_what_is_committed_what_is_not_and_what_git_does_not_know_is_changed(repository):
    assert changed_files(repository, "main") == ["committed.py"]
    (repository / "old.py").unlink()
    (repository / "new folder").mkdir()
    (repository / "new folder" / "ä.py").write_text("")
    (repository / "build").mkdir()
    (repository / "build" / "made.py").write_text("")
    assert changed_files(repository, "main") == ["committed.py", "new folder/ä.py", "old.py"]
    assert changed_files(repository, "HEAD") == ["new folder/ä.py", "old.py"]
    with pytest.raises(SystemExit, match="There is no commit 'nothing'"):
        changed_files(repository, "nothing")


def test_tests_fill_the_time_in_their_order():
    seconds = {"a": 30.0, "b": 60.0, "c": 8.0, "d": 3.0}
    assert within(["a", "b", "c", "d"], seconds, 40) == ["a", "c"]
    assert within(["b", "d"], seconds, 40) == ["b"], "the likeliest of all runs, however long it takes"
    assert within([], seconds, 40) == []


def test_a_block_is_tested_by_its_own_tests_by_those_that_look_at_the_tree_and_by_the_nearest():
    file = "mobileclip/blocks/mixing.py"
    tests, far = ranked(ROOT, [file], recorded(ROOT)), distances(ROOT, [file])
    assert tests[0] == "tests/blocks/test_repmixer.py"
    room = [place for place, test in enumerate(tests) if test.startswith("tests/blocks/")]
    rest = [far[test] for test in tests[room[-1] :] if test in far and far[test] > 1]
    assert len(room) == len(list((ROOT / "tests" / "blocks").glob("test_*.py")))
    assert max(map(tests.index, GUARDS)) < room[-1] < tests.index("tests/training/test_loop.py")
    assert rest[1:] == sorted(rest[1:])
    assert len(set(rest)) > 2


def test_every_changed_file_has_its_turn_behind_changed_tests():
    first = ["tests/storage/test_cache.py", "tests/blocks/test_stem.py", "tests/losses/test_sigmoid.py"]
    changed = ["mobileclip/blocks/conv.py", "mobileclip/losses/sigmoid.py", first[0], "tests/gone.py"]
    assert ranked(ROOT, changed, {})[:3] == first


@pytest.mark.parametrize(
    ("changed", "test"),
    [
        ("tests/preloaded.py", "tests/storage/test_local.py"),
        ("tests/losses/conftest.py", "tests/losses/test_reinforced.py"),
        ("tests/object_store.py", "tests/storage/test_storage.py"),
        ("docs/classification.md", "tests/recipes/test_classification_page.py"),
        ("CONTRIBUTING.md", "tests/test_site.py"),
        ("recipes/train_s2.py", "tests/recipes/test_header.py"),
        ("pyproject.toml", "tests/test_environments.py"),
    ],
)
def test_what_is_no_library_has_tests_too(changed, test):
    assert test in ranked(ROOT, [changed], {})


def test_tests_that_are_told_are_there():
    named = {ROOT / "tests" / name for names in BESIDE.values() for name in names} | {ROOT / name for name in GUARDS}
    assert [path for path in named if not path.exists()] == []


def test_most_test_files_have_their_seconds():
    """A fresh clone knows which tests are quick; `make test ARGS=--record-seconds` renews what it knows."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(files & recorded(ROOT).keys()) > 0.8 * len(files)


def test_seconds_of_a_run_stand_beside_those_of_others(tmp_path):
    (tmp_path / "tests").mkdir()
    for name in ("a", "b"):
        (tmp_path / "tests" / f"test_{name}.py").touch()
    (tmp_path / "tests" / "seconds.json").write_text(
        '{"tests/test_a.py": 9.0, "tests/test_b.py": 2.0, "tests/gone.py": 1}'
    )
    recorder = Recorder(tmp_path)
    for duration in (0.25, 1.0):
        report = pytest.TestReport("tests/test_a.py::test[b::c]", ("", 0, ""), {}, "passed", None, "call", (), duration)
        recorder.pytest_runtest_logreport(report)
    recorder.pytest_sessionfinish()
    assert recorded(tmp_path) == {"tests/test_a.py": 1.2, "tests/test_b.py": 2.0}


def test_processes_begin_with_the_longest_file():
    items = [type("Item", (), {"nodeid": f"tests/{name}::{number}"})() for name in "abc" for number in range(2)]
    longest_first(items, {"tests/a": 1.0, "tests/b": 30.0})
    assert [item.nodeid[6:] for item in items] == ["b::0", "b::1", "c::0", "c::1", "a::0", "a::1"]
