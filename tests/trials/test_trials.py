"""Nothing that strangers or slips bring runs code, hangs, ends in a traceback or gives a wrong number."""

import json

import pytest

from tests.preloaded import preloaded
from tests.trials.__main__ import in_process_of_its_own
from tests.trials.harness import AREAS, BAD, Tried

# The default run tries one of so many; `pytest -m slow` and `python -m tests.trials` try all.
PART = 24


# By default those whose processes are soon ready; the rooms' own tests refuse hostile files of every kind by default.
@pytest.mark.parametrize("area", ["specs", "images", "samples", "tokenizers"])
def test_some_of_the_input_does_no_harm(area, tmp_path):
    some = ("-m", "tests.trials", area, "--json", "--part", str(PART))
    done = preloaded().call("tests.preloaded:python", *some, folder=tmp_path, seconds=240)
    assert done.status in (0, 1), done.output
    assert harm([Tried(**json.loads(line)) for line in done.output.splitlines() if line.startswith("{")]) == []


@pytest.mark.slow
@pytest.mark.parametrize("area", AREAS)
def test_no_input_does_harm(area):
    assert harm(in_process_of_its_own(area)) == []


def harm(tried):
    assert tried
    return [one for one in tried if one.outcome in BAD]
