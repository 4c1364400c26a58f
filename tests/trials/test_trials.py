"""Nothing that strangers or slips bring runs code, hangs, ends in a traceback or gives a wrong number."""

import importlib.util
import sys

import pytest

from tests.trials.__main__ import in_process_of_its_own
from tests.trials.harness import AREAS, BAD

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="trials fork, which Windows cannot")


@pytest.mark.parametrize("area", [area for area in AREAS if importlib.util.find_spec(f"tests.trials.{area}")])
def test_no_input_does_harm(area):
    tried = in_process_of_its_own(area)
    assert [one for one in tried if one.outcome in BAD] == []
