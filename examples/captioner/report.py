"""The tables of the study, from its lines alone: `python -m examples.captioner.report LINES` prints them again."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.captioner.lines import Line, read_lines
from examples.captioner.spec import ABLATIONS, ARMS, MAIN

_PARTS = {"test_pictures": "unseen drawings", "test_set": "an unseen set's", "test_names": "unseen names"}


def report(lines: Sequence[Line], examples: Sequence[tuple[str, str, str]] = ()) -> str:
    """Return the tables in Markdown.

    Args:
        lines: of the study.
        examples: names of pictures, arms, and what these say of them.
    """
    text = [
        "| captions | pictures | names recalled | of names that it learned | distinct words | distinct pairs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for line in (one for one in lines if one.kind == "captions"):
        values = line.values
        shares = map(values.get, ("names_recalled", "known_names_recalled", "distinct_1", "distinct_2"))
        shown = " | ".join("" if one is None else f"{100 * one:.1f} %" for one in shares)
        text.append(f"| {ARMS[line.arm].title} | {values['pictures']:,.0f} | {shown} |")
    students = [one for one in lines if one.kind == "student"]
    budgets = sorted({one.budget for one in students if one.arm in MAIN})
    for part, title in _PARTS.items():
        rows = {arm: [_spread(students, arm, budget, part) for budget in budgets] for arm in MAIN}
        text += _table(f"Top-5 of {title}, after so many steps", [f"{one:,}" for one in budgets], rows)
    for budget in sorted({one.budget for one in students if one.arm in ABLATIONS}):
        rows = {
            arm: [_spread(students, arm, budget, part) for part in _PARTS]
            for arm in ("written", "written-teacher", *ABLATIONS)
        }
        text += _table(f"One choice at a time, top-5 after {budget:,} steps", list(_PARTS.values()), rows)
    if examples:
        text += ["", "| name | captions | what they say |", "| --- | --- | --- |"]
        told = ((name, ARMS[arm].title, caption.replace("|", "/")) for name, arm, caption in examples)
        text += [f"| {' | '.join(one)} |" for one in told]
    return "\n".join(text) + "\n"


def _table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the lines of a table of arms, without those that have nothing."""
    shown = {arm: cells for arm, cells in rows.items() if any(cells)}
    lines = ["", f"| {title} | {' | '.join(columns)} |", f"| --- {'| --- ' * len(columns)}|"]
    return [*lines, *(f"| {ARMS[arm].title} | {' | '.join(cells)} |" for arm, cells in shown.items())] if shown else []


def _spread(students: Sequence[Line], arm: str, budget: int, part: str) -> str:
    """Return mean and standard deviation over seeds."""
    values = [one.values[part] for one in students if (one.arm, one.budget) == (arm, budget) and part in one.values]
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    sys.stdout.write(report(read_lines(Path(sys.argv[1]))))
