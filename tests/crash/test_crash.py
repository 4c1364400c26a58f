"""Commands that are killed before any operation on files, or find the disk full at any page that they write.

The same command again leaves what it should.
"""

import random

import pytest

from tests.crash import full
from tests.crash.world import COMMANDS, EXPORTS
from tests.survives import Survival

# How many moments of those commands are tried by default that take a second.
QUICK = dict.fromkeys(("index", "data filter", "data score", "data join", "reinforce"), 1)
QUICK |= dict.fromkeys(("embed", "convert", "hub save over"), 2)
# How many pages of those that write in different ways, beside none.
QUICK_FULL = {"convert": 1, "index again": 1, "export torch": 0}
EXTRA = {f"export {name}": [pytest.mark.extra(name)] for name in ("openvino", "executorch")}
ALL, MOST_PAGES = COMMANDS | EXPORTS, 40


def tried(survival, points):
    """Return what is wrong at any of several moments."""
    return [problem for point in points for problem in survival.problems(survival.at(point))]


@pytest.mark.parametrize("name", QUICK)
def test_killed_at_a_few_moments(name, tmp_path):
    survival = Survival.of(COMMANDS[name], tmp_path / "trial")
    assert not tried(survival, random.Random(name).sample(survival.points, QUICK[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_moment(name, tmp_path):
    survival = Survival.of(COMMANDS[name], tmp_path / "trial")
    assert len(survival.points) > 5
    assert not tried(survival, survival.points)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *QUICK_FULL.items(),
        *(pytest.param(name, MOST_PAGES, marks=[pytest.mark.slow, *EXTRA.get(name, ())]) for name in ALL),
    ],
)
def test_a_disk_that_is_full_at_some_pages(name, count, tmp_path):
    """It is full before the command writes a page, or after some pages."""
    survival = Survival.of(ALL[name], tmp_path / "trial")
    written = full.pages_written(survival.root / "input", survival.root / "work")
    rooms = {0, *random.Random(name).sample(range(written), min(count, written))}
    assert not [problem for room in sorted(rooms) for problem in full.problems(survival, room)]
