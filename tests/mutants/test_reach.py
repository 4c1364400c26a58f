"""Which tests reach a line is what a run of them recorded."""

import shutil
import subprocess
from itertools import chain

import pytest
import pytest_cov  # noqa: F401

from tests.mutants.reach import DEFAULTS, in_groups, read_reach, record

FILE = "mobileclip/program.py"
PROGRAM = """FACTOR = 2


def double(number):
    return number * FACTOR


def unused(number):
    return -number
"""
TESTS = """import time

import pytest

from mobileclip.program import double


class TestOfAClass:
    @pytest.mark.parametrize("number", [1, 2])
    def test_double(self, number):
        assert double(number) == 2 * number


def test_that_takes_longer():
    time.sleep(0.2)
    assert double(3) == 6


def test_of_nothing():
    pass
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    for name, text in {FILE: PROGRAM, "tests/test_program.py": TESTS, "mobileclip/__init__.py": ""}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\npythonpath = ['.']\n")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root, record(root, 1)


def test_a_line_is_reached_by_the_tests_that_ran_it_the_quickest_first(recorded):
    root, reach = recorded
    (group,) = reach.tests(root, FILE, 5, ["tests/test_program.py"])
    methods = [f"tests/test_program.py::TestOfAClass::test_double[{number}]" for number in (1, 2)]
    assert sorted(group[:2]) == methods
    assert group[2:] == ["tests/test_program.py::test_that_takes_longer"]
    assert reach.seconds[group[2]] >= 0.2


def test_what_runs_at_import_is_reached_by_what_reaches_the_file(recorded):
    root, reach = recorded
    assert reach.tests(root, FILE, 1, ["tests/test_program.py"]) == reach.tests(
        root, FILE, 5, ["tests/test_program.py"]
    )
    assert reach.tests(root, FILE, 4, ["tests/test_program.py"]) != []


def test_what_runs_at_import_may_be_a_default_and_what_runs_later_is_none(recorded):
    root, reach = recorded
    among = ["tests/test_program.py", DEFAULTS]
    assert [DEFAULTS in chain(*reach.tests(root, FILE, line, among)) for line in (1, 4, 5)] == [True, True, False]


def test_only_the_files_that_count_are_asked(recorded):
    root, reach = recorded
    assert reach.tests(root, FILE, 5, ["tests/test_other.py"]) == []


def test_a_file_that_has_changed_since_is_not_known(recorded, tmp_path):
    root, reach = recorded
    (tmp_path / "mobileclip").mkdir()
    (tmp_path / FILE).write_text((root / FILE).read_text() + "\n")
    assert reach.tests(tmp_path, FILE, 5, ["tests/test_program.py"]) == []


def test_it_can_be_kept(recorded, tmp_path):
    _, reach = recorded
    reach.save(tmp_path / "build" / "reach.json")
    assert read_reach(tmp_path / "build" / "reach.json") == reach
    assert read_reach(tmp_path / "nothing.json") is None


def test_tests_of_some_places_are_recorded_alone(recorded, tmp_path):
    root = shutil.copytree(recorded[0], tmp_path / "project")
    (root / "tests" / "other").mkdir()
    other = "tests/other/test_other.py"
    (root / other).write_text(TESTS.partition("class ")[0] + "def test_other():\n    assert double(1) == 2\n")
    reach = record(root, 1, ["tests/other", "tests/nowhere"])
    assert reach.tests(root, FILE, 5, ["tests/test_program.py", other]) == [[f"{other}::test_other"]]
    assert set(reach.seconds) == {f"{other}::test_other"}
    assert list(record(root, 1, [other, "tests/test_nothing.py"]).seconds) == [f"{other}::test_other"]


def test_quick_tests_of_likely_files_come_first():
    tests = ["tests/a.py::slow", "tests/a.py::quick", "tests/b.py::quick", "tests/c.py::quick", "tests/c.py::slow"]
    seconds = {test: 30.0 if "slow" in test else 1.0 for test in tests}
    likeliest, quick, rest = in_groups(tests, seconds, {"tests/a.py": 0, "tests/b.py": 1, "tests/c.py": 2})
    assert likeliest == ["tests/a.py::quick", "tests/b.py::quick"]
    assert quick == ["tests/c.py::quick"]
    assert rest == ["tests/a.py::slow"]  # another would take too long
