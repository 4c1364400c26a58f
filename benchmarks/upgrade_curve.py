"""The kept lines of `python -m benchmarks upgrade`: the table and the picture that docs have of them.

Command:   python -m benchmarks.upgrade_curve docs/upgrade.jsonl docs/upgrade.png
Result:    the picture, and the table on the standard output
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import attrs

from benchmarks.harness.results import Row
from mobileclip.charts import Line, Panel, write_chart
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.terminal import say

NEW_NAMES, ZIPF = "new names", "Zipf"
BOTH = "more, by both queries"
# What is drawn: queries, what chooses, part of the shortlist's name; the colours are of the palette of Okabe and Ito.
_DRAWN = {
    (NEW_NAMES, "use, old query", "first"): ("by use, as it was: the old query's first 50", "#777777"),
    (NEW_NAMES, "use, both queries", BOTH): ("by use, 50 more by both queries", "#e69f00"),
    (NEW_NAMES, "chance", BOTH): ("by chance, 50 more by both queries", "#0072b2"),
    (ZIPF, "use, both queries", BOTH): ("by use, names asked again (Zipf)", "#009e73"),
}
DRAWN_WAYS = frozenset(way for _, way, _ in _DRAWN)
_HALF = 0.5


@attrs.frozen(kw_only=True)
class Kept:
    """One recall.

    Args:
        old: the model of before.
        queries: `new names`, or drawn by `Zipf`'s law.
        chosen_by: what chose the pictures that are encoded anew.
        share: of these, 0 to 1.
        shortlist: which pictures a query has encoded anew beside them.
        recall: R@5, per cent, the mean of the seeds.
        low: of the seeds.
        high: of the seeds.
    """

    old: str
    queries: str
    chosen_by: str
    share: float
    shortlist: str
    recall: float
    low: float
    high: float


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Write a line of JSON for each row of the benchmark."""
    lines = []
    for row in rows:
        if row.failure is None:
            case, value = row.case, row.values["recall"]
            one = Kept(
                old=case["old"],
                queries=case["queries"],
                chosen_by=case["chosen by"],
                share=float(case["share"].removesuffix("%")) / 100,
                shortlist=case["shortlist"],
                recall=round(value.number, 2),
                low=round(value.low or 0.0, 2),
                high=round(value.high or 0.0, 2),
            )
            lines.append(to_json(one))
    write_text(path, "".join(f"{line}\n" for line in lines))


def read(path: Path) -> list[Kept]:
    """Return the lines of a file."""
    return [from_json(line, Kept) for line in path.read_text(encoding="utf-8").splitlines()]


def table(kept: list[Kept]) -> list[str]:
    """Return the lines of a table in Markdown: the recall at half, as a share of that of all pictures encoded anew."""
    olds = list(dict.fromkeys(one.old for one in kept))
    known = {(one.old, one.queries, one.chosen_by, one.shortlist, one.share): one for one in kept}

    def cell(old: str, queries: str, way: str, shortlist: str) -> str:
        one, whole = (
            known.get(key) for key in ((old, queries, way, shortlist, _HALF), (old, queries, "chance", "none", 1.0))
        )
        if one is None or whole is None:
            return "-"
        share = one.recall / whole.recall
        text = f"{one.recall:.1f}, {share:.0%}"
        return f"**{text}**" if share >= 0.9 else text

    keys = dict.fromkeys((one.queries, one.chosen_by, one.shortlist) for one in kept if one.share == _HALF)
    starts = {old: known[old, NEW_NAMES, "chance", "none", 0.0].recall for old in olds}
    titles = " | ".join(f"old model {starts[old]:.1f} %" for old in olds)
    rows = [f"| {' | '.join((*key, *(cell(old, *key) for old in olds)))} |" for key in keys]
    return [f"| queries | chosen by | shortlist | {titles} |", f"|{'---|' * (3 + len(olds))}", *rows]


def draw(lines: Path, picture: Path) -> None:
    """Write the picture: recall over the share, a panel for each old model."""
    kept = read(lines)
    panels = []
    for old in dict.fromkeys(one.old for one in kept):
        drawn = []
        for (queries, way, end), (label, colour) in _DRAWN.items():
            points = [
                one
                for one in kept
                if (one.old, one.queries) == (old, queries)
                and one.chosen_by == ("chance" if one.share in (0, 1) else way)
                and (one.shortlist.endswith(end) or (end == "first" and one.shortlist.startswith(end)))
            ]
            points.sort(key=lambda one: one.share)
            if points:
                x, y = [100 * one.share for one in points], [one.recall for one in points]
                spread = [(one.high - one.low) / 2 for one in points]
                drawn.append(Line(x=x, y=y, label=label, marker=".", color=colour, spread=spread))
        start = next(one.recall for one in kept if one.old == old and one.share == 0 and one.shortlist == "none")
        panels.append(
            Panel(
                lines=drawn,
                title=f"old model: R@5 {start:.1f} %",
                x_label="pictures encoded anew, %",
                y_label="R@5 of names, %",
                has_legend=True,
                from_zero=True,
            )
        )
    write_chart(panels, picture, size=(4.6, 3.8))


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    draw(source, target)
    say("\n".join(table(read(source))))
