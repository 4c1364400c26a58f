"""Every file of the library has tests, and the likeliest to notice a change of it are known."""

from pathlib import Path

import pytest

from tests.mutants.rooms import files, rooms
from tests.ranking import ELSEWHERE, own_tests

ROOT = Path(__file__).parents[1]
FILES = [file for room in rooms(ROOT) for file in files(ROOT, room)]


def test_every_file_has_tests_that_are_its_own():
    assert [file for file in FILES if not set(own_tests(ROOT, file)) - {"tests/test_defaults.py"}] == []


@pytest.mark.parametrize("name", [name for names in ELSEWHERE.values() for name in names])
def test_tests_that_lie_elsewhere_are_there(name):
    assert (ROOT / "tests" / name).exists()


def test_the_likeliest_tests_run_first():
    first, *others = own_tests(ROOT, "mobileclip/blocks/mixing.py")
    assert first == "tests/blocks/test_repmixer.py"
    assert "tests/blocks/test_timm_parity.py" in others
    torch_file = own_tests(ROOT, "mobileclip/data/samples/torch_file.py", "read")
    assert torch_file[0] == "tests/data/samples/test_torch_file.py"
    assert "tests/inference/test_int8.py" in own_tests(ROOT, "mobileclip/inference/layers.py")


def test_a_test_that_takes_long_waits_for_one_that_says_nearly_as_much(tmp_path):
    (tmp_path / "tests" / "room").mkdir(parents=True)
    paths = [f"tests/room/test_{name}.py" for name in ("long", "short", "module")]
    for path, text in zip(paths, ("module " * 3, "module " * 2, ""), strict=True):
        (tmp_path / path).write_text(text)
    file = "mobileclip/room/module.py"
    assert own_tests(tmp_path, file) == [paths[2], paths[0], paths[1]]
    assert own_tests(tmp_path, file, "", {paths[0]: 100.0}) == [paths[2], paths[1], paths[0]]
