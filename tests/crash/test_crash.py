"""Commands that are killed before any operation on files, or find the disk full at any page that they write.

The same command again leaves what it should.
"""

import random
import time

import pytest

from tests.crash import full
from tests.crash.world import COMMANDS, EXPORTS, Command
from tests.survives import Survival

# Those that take a second, and how many moments of each are tried by default.
QUICK = {
    "index": 1,
    "embed": 2,
    "convert": 2,
    "hub save over": 2,
    "data filter": 1,
    "data score": 1,
    "data join": 1,
    "reinforce": 1,
}
SECONDS = 1_500.0
# Those that write in different ways, and how many pages of each are tried by default beside none.
QUICK_FULL = {
    "convert": 1,
    "index again": 1,
    "export torch": 0,
}
EXTRA = {f"export {name}": pytest.mark.extra(name) for name in ("openvino", "executorch")}
MOST_PAGES = 40


def tried(survival, points, seconds):
    """Try moments until the time is over, and return what is wrong at any of them."""
    end = time.monotonic() + seconds
    found = []
    for count, point in enumerate(points):
        if time.monotonic() > end:
            pytest.fail(f"{count} of {len(points)} moments took {seconds:g} s")
        found += survival.problems(survival.at(point))
    return found


@pytest.mark.parametrize("name", QUICK)
def test_killed_at_a_few_moments(name, tmp_path):
    survival = Survival.of(COMMANDS[name], tmp_path / "trial")
    points = random.Random(name).sample(survival.points, QUICK[name])
    assert not tried(survival, points, 60.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_moment(name, tmp_path):
    survival = Survival.of(COMMANDS[name], tmp_path / "trial")
    assert len(survival.points) > 5
    assert not tried(survival, survival.points, SECONDS)


def tried_full(name, count, tmp_path):
    """Fill the disk before a command writes a page, and after some pages, and return what is wrong."""
    survival = Survival.of((COMMANDS | EXPORTS)[name], tmp_path / "trial")
    written = full.pages_written(survival.root / "input", survival.root / "work")
    rooms = {0, *random.Random(name).sample(range(written), min(count, written))}
    return [problem for room in sorted(rooms) for problem in full.problems(survival, room)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=EXTRA.get(name, ())) for name in QUICK_FULL])
def test_a_disk_that_is_full_at_a_few_pages(name, tmp_path):
    assert not tried_full(name, QUICK_FULL[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=EXTRA.get(name, ())) for name in COMMANDS | EXPORTS])
def test_a_disk_that_is_full_at_any_page(name, tmp_path):
    assert not tried_full(name, MOST_PAGES, tmp_path)


@pytest.mark.parametrize(
    ("way", "told"), [("lock", "run again, it ended with 1"), ("part", ".part']"), ("half", "different: ['file']")]
)
def test_a_program_that_writes_badly_is_found(way, told, tmp_path):
    command = Command(arguments=(way,), prepare=lambda _: None, function="tests.crash.torn:write")
    survival = Survival.of(command, tmp_path / "trial")
    assert any(told in problem for problem in tried(survival, survival.points, 60.0))
