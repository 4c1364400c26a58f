"""The tables and the chart of the study, from its result lines: `python -m studies.captioner.report LINES`."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobileclip import charts
from studies.captioner.spec import ABLATIONS, ARMS, MAIN, Line
from studies.learning_efficiency.results import read_lines
from studies.learning_efficiency.tables import spread, table

PICTURE = "captions.png"
# Of each part; whole numbers of these are what the kept scores are.
_PICTURES = {"test_pictures": 808, "test_set": 296, "test_names": 1392}
_PARTS = {"test_pictures": "unseen drawings", "test_set": "an unseen set's", "test_names": "unseen names"}

_SHARES = {
    "names_recalled": "names recalled",
    "known_names_recalled": "of names that it learned",
    "distinct_1": "distinct words",
    "distinct_2": "distinct pairs",
}


def captions_lines(lines: Sequence[Line]) -> dict[str, Line]:
    """Return the last line about each set of captions, by the fields that identify the set."""
    return {ARMS[one.arm].own_captions: one for one in lines if one.kind == "captions"}


def report(lines: Sequence[Line], examples: Sequence[tuple[str, str, str]] = ()) -> str:
    """Return the tables in Markdown.

    Args:
        lines: lines of the study.
        examples: names of images, arms, and the captions of the arms.
    """
    told = []
    for line in sorted(captions_lines(lines).values(), key=lambda one: list(ARMS).index(one.arm)):
        values = line.values
        shares = [f"{100 * values[name]:.1f} %" if name in values else "" for name in (*_SHARES, "found")]
        cosine = f"{values['cosine']:.3f}" if "cosine" in values else ""
        cells = (f"{values['pictures']:,.0f}", f"{values['words']:.1f}", *shares[:-1], cosine, shares[-1])
        told.append((ARMS[line.arm].title, *cells))
    head = ("captions", "pictures", "words", *_SHARES.values(), "cosine to the picture", "picture found")
    text = table(head, told)
    students = [one for one in lines if one.kind == "student"]
    budgets = sorted({one.budget for one in students if one.arm in MAIN})
    for part, title in _PARTS.items():
        rows = {arm: [_spread(students, arm, budget, part) for budget in budgets] for arm in MAIN}
        text += _table(f"Top-5 of {title}, after so many steps", [f"{one:,}" for one in budgets], rows)
    for budget in budgets[-1:]:
        rows = {arm: [_gain(students, arm, budget, part) for part in _PARTS] for arm in MAIN if arm != _base(arm)}
        text += _table(
            f"Points above keywords alone, {budget:,} steps, ± standard error of seeds and pictures",
            list(_PARTS.values()),
            rows,
        )
    for budget in sorted({one.budget for one in students if one.arm in ABLATIONS}):
        rows = {
            arm: [_spread(students, arm, budget, part) for part in _PARTS]
            for arm in ("written", "written-teacher", *ABLATIONS)
        }
        text += _table(f"One choice at a time, top-5 after {budget:,} steps", list(_PARTS.values()), rows)
    if examples:
        said = [(name, ARMS[arm].title, caption.replace("|", "/")) for name, arm, caption in examples]
        text += ["", *table(("name", "captions", "what they say"), said)]
    return "\n".join(text) + "\n"


def draw(lines: Sequence[Line], path: Path) -> None:
    """Plot top-5 of unseen drawings over steps, without and with a teacher; bands are deviations over seeds."""
    students = [one for one in lines if one.kind == "student" and one.arm in MAIN]
    budget = max((one.budget for one in students), default=0)
    charts.write_chart(
        [
            charts.Panel(
                lines=[line for arm in MAIN if bool(ARMS[arm].teachers) == taught for line in _lines(lines, arm)],
                title=f"{'With' if taught else 'Without'} a teacher, the captioner's captions give\n"
                f"{_gain(students, arm, budget, next(iter(_PARTS)))} points above keywords after {budget:,} steps",
                x_label="training steps",
                y_label="top-5 on unseen drawings, %",
                is_log=True,
                from_zero=True,
            )
            for taught, arm in ((False, "written"), (True, "written-teacher"))
        ],
        path,
    )


def _lines(lines: Sequence[Line], arm: str) -> list[charts.Line]:
    """Return the curve of an arm, or None if the arm has no finished training."""
    part = next(iter(_PARTS))
    own = [one for one in lines if (one.kind, one.arm) == ("student", arm) and part in one.values]
    budgets = sorted({one.budget for one in own})
    values = [_by_seed(own, arm, budget, part).values() for budget in budgets]
    deviations = [statistics.stdev(some) if len(some) > 1 else math.nan for some in values]
    y = [statistics.mean(some) for some in values]
    label = ARMS[arm].title.removesuffix(", a teacher")
    return [charts.Line(x=budgets, y=y, label=label, spread=deviations)] if own else []


def _table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the lines of a table of arms, without arms that have no results."""
    shown = [(ARMS[arm].title, *cells) for arm, cells in rows.items() if any(cells)]
    return ["", *table((title, *columns), shown)] if shown else []


def _base(arm: str) -> str:
    """Return the baseline of an arm, which has keywords alone."""
    return "none-teacher" if ARMS[arm].teachers else "none"


def _gain(students: Sequence[Line], arm: str, budget: int, part: str) -> str:
    """Return an arm's gain over its baseline for their common seeds, ± the standard error of seeds and images.

    Lines do not have the hits per image, so the function treats both arms as independent, which gives an upper bound.
    """
    values, others = (_by_seed(students, one, budget, part) for one in (arm, _base(arm)))
    both = [(value, others[seed]) for seed, value in values.items() if seed in others]
    if not both:
        return ""
    differences = [value - other for value, other in both]
    of_seeds = statistics.variance(differences) / len(both) if len(both) > 1 else math.nan
    means = [statistics.mean(scores) for scores in zip(*both, strict=True)]
    of_pictures = sum(mean * (100 - mean) for mean in means) / _PICTURES[part]
    return f"{statistics.mean(differences):+.1f} ± {math.sqrt(of_seeds + of_pictures):.1f}"


def _spread(students: Sequence[Line], arm: str, budget: int, part: str) -> str:
    """Return the mean and the standard deviation over seeds."""
    values = list(_by_seed(students, arm, budget, part).values())
    return spread(values) if values else ""


def _by_seed(students: Sequence[Line], arm: str, budget: int, part: str) -> dict[int, float]:
    """Return scores by seed; with few icons, some parts have no drawings."""
    own = (one for one in students if (one.arm, one.budget) == (arm, budget))
    return {one.seed: one.values[part] for one in own if part in one.values}


if __name__ == "__main__":
    source = Path(sys.argv[1])
    kept = read_lines(source, Line)
    draw(kept, source.with_name(PICTURE))
    sys.stdout.write(report(kept))
