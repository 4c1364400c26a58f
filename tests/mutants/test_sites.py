"""What is changed in a program and what is not."""

import cosmic_ray  # noqa: F401

from tests.mutants.sites import places

PROGRAM = '''"""A docstring with 1 + 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Counter"]
Kind = Literal["first", "second"]


class Counter:
    def add(self, number: int | None = None, *, kind: Literal["one"] = "one") -> int | None:
        """Count."""
        if number is not None:
            return number + 1
        assert kind == "one", "what else"
        for left, right in zip("ab", "cd", strict=True):
            if left == "some words" + right:
                raise ValueError(f"{1 + 1} is wrong")
        return None
'''


def test_each_place_is_changed_and_nothing_else(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    mutants = [mutant for place in places(tmp_path, "program.py") for mutant in place.mutants()]
    assert {mutant.function for mutant in mutants} == {"Counter.add"}
    assert sorted((mutant.number - 15, mutant.becomes) for mutant in mutants) == [
        (0, 'def add(self, number: int | None = None, *, kind: Literal["one"] = "one_") -> int | None:'),
        (2, "if not number is not None:"),
        (2, "if number is None:"),
        (3, "return number + 0"),
        (3, "return number + 2"),
        (3, "return number - 1"),
        (5, "for left, right in []:"),
        (5, 'for left, right in zip("ab", "cd_", strict=True):'),
        (5, 'for left, right in zip("ab_", "cd", strict=True):'),
        (6, 'if left != "some words" + right:'),
        (6, 'if left == "some words" - right:'),
        (6, 'if not left == "some words" + right:'),
    ]
    for mutant in mutants:
        assert mutant.source.count("\n") == PROGRAM.count("\n")


def test_an_encoding_becomes_another_one(tmp_path):
    (tmp_path / "program.py").write_text('text = data.decode("utf-8")\nname = "text"\n')
    mutants = [mutant for place in places(tmp_path, "program.py") for mutant in place.mutants()]
    assert [mutant.becomes for mutant in mutants] == ['text = data.decode("utf-16")', 'name = "text_"']


def test_a_mutant_keeps_its_name_where_other_lines_move(tmp_path):
    names = []
    for more in ("", "other = None\n\n\n"):
        (tmp_path / "program.py").write_text(PROGRAM.replace("class Counter", f"{more}class Counter"))
        names.append([mutant.key for place in places(tmp_path, "program.py") for mutant in place.mutants()])
    assert names[0] == names[1]
