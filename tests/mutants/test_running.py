"""A catch counts where its test fails with the change, again, and passes without it."""

import cosmic_ray  # noqa: F401
import pytest

from tests.mutants.running import Trial, confirmed
from tests.mutants.sites import places

PROGRAM = "def double(number):\n    return number * 2\n"
CAUGHT = "def test_double():\n    assert double(3) == 6\n"
LIVED = "def test_double():\n    assert double(0) == 0\n"
FAILS_ONCE = """def test_double():
    first = not Path(".ran").exists()
    Path(".ran").touch()
    assert not first
"""
DIES = """def test_double():
    if double(3) != 6:
        os._exit(9)
"""
DIES_ALWAYS = "def test_double():\n    os._exit(9)\n"
FAILS_ALWAYS = "def test_double():\n    assert double(1) == 3\n"


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        pytest.param(CAUGHT, "caught", marks=pytest.mark.slow),
        (LIVED, "lived"),
        pytest.param(DIES, "caught", marks=pytest.mark.slow),
        pytest.param(DIES_ALWAYS, "unconfirmed", marks=pytest.mark.slow),
        pytest.param(FAILS_ONCE, "unconfirmed", marks=pytest.mark.slow),
        pytest.param(FAILS_ALWAYS, "unconfirmed", marks=pytest.mark.slow),
    ],
)
def test_a_failure_by_chance_or_without_the_change_is_no_catch(tmp_path, test, outcome):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "test_program.py").write_text(
        f"import os\nfrom pathlib import Path\nfrom program import double\n{test}"
    )
    mutant = next(
        mutant for place in places(tmp_path, "program.py") for mutant in place.mutants() if "/" in mutant.becomes
    )
    trial = Trial(tmp_path, ["test_program.py"], mutant, 60)
    assert confirmed(trial, trial.finish(), {}).outcome == outcome
    assert (tmp_path / "program.py").read_text() == PROGRAM
