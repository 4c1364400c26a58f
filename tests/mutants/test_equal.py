from pathlib import Path

from tests.mutants.equal import equal_programs, outdated


def test_each_equal_program_has_a_reason_and_its_line_is_still_there():
    assert all(reason.strip() for reason in equal_programs().values())
    assert outdated(Path(__file__).parents[2]) == []
