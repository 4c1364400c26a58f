"""The tables of the study, from its lines alone: `python -m examples.captioner.report LINES` prints them again."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.captioner.lines import Line, read_lines
from examples.captioner.spec import ARMS

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
    for budget in sorted({one.budget for one in lines if one.kind == "student"}):
        text += ["", f"{budget:,} steps, top-5:", "", f"| | seeds | {' | '.join(_PARTS.values())} |"]
        text.append("| --- " * (2 + len(_PARTS)) + "|")
        for arm, one in ARMS.items():
            own = [line.values for line in lines if (line.arm, line.budget, line.kind) == (arm, budget, "student")]
            if own:
                cells = (_spread([values[name] for values in own if name in values]) for name in _PARTS)
                text.append(f"| {one.title} | {len(own)} | {' | '.join(cells)} |")
    if examples:
        text += ["", "| name | captions | what they say |", "| --- | --- | --- |"]
        told = ((name, ARMS[arm].title, caption.replace("|", "/")) for name, arm, caption in examples)
        text += [f"| {' | '.join(one)} |" for one in told]
    return "\n".join(text) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    sys.stdout.write(report(read_lines(Path(sys.argv[1]))))
