"""Commands that are killed before any operation on files: the same command again leaves what it should."""

import random
import time

import pytest

from tests.crash.world import COMMANDS, Command
from tests.survives import Survival

# Those that take a second, and how many moments of each are tried by default.
QUICK = {
    "index": 1,
    "upgrade": 2,
    "embed": 2,
    "convert": 2,
    "hub save over": 2,
    "data filter": 1,
    "data score": 1,
    "data join": 1,
    "reinforce": 1,
    "quantize": 1,
}
SECONDS = 1_500.0


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


@pytest.mark.parametrize(
    ("way", "told"), [("lock", "run again, it ended with 1"), ("part", ".part']"), ("half", "different: ['file']")]
)
def test_a_program_that_writes_badly_is_found(way, told, tmp_path):
    command = Command(arguments=(way,), prepare=lambda _: None, function="tests.crash.torn:write")
    survival = Survival.of(command, tmp_path / "trial")
    assert any(told in problem for problem in tried(survival, survival.points, 60.0))
