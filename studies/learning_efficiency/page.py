"""Renew the page's tables and picture from the lines that are kept beside it.

Command:   python -m examples.learning_efficiency.page [--study outputs/learning_efficiency [--packaged]]
Hardware:  one core
Time:      half a minute; minutes with --packaged
Result:    docs/learning_efficiency.md and the picture; with --study, its lines are taken over first. A line of a
           training that is there takes the place of the older one
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from examples.learning_efficiency.costs import cost_table, pace_table
from examples.learning_efficiency.model import packaged_line
from examples.learning_efficiency.picture import panels
from examples.learning_efficiency.rates import rate_table
from examples.learning_efficiency.results import COSTS, RESULTS, Cost, append, read_costs, read_results
from examples.learning_efficiency.spec import EfficiencySpec
from examples.learning_efficiency.strict import STRICT, StrictParts, read_strict, strict_table
from examples.learning_efficiency.tables import (
    Results,
    budget_table,
    difference_table,
    equivalent_table,
    ladder_table,
    part_tables,
    table,
)
from examples.learning_efficiency.variants import LADDER, PARTS
from mobileclip.charts import write_chart
from mobileclip.serialization import to_json
from mobileclip.storage import write_text
from mobileclip.terminal import say

DOCS = Path(__file__).parents[2] / "docs"
LINES = "learning_efficiency.jsonl"
PAGES = ("learning_efficiency.md",)
PICTURE = "learning_efficiency_icons.png"

# The rungs that pay; those that do not are in the whole table.
_HEADLINE = ("plain", "captions", "distillation")
_TABLE = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(\n<!-- end of table -->)", re.DOTALL)


def tables(
    spec: EfficiencySpec, results: Results, costs: list[Cost], strict: StrictParts
) -> Mapping[str, Callable[[], list[str]]]:
    """Return what makes each of the pages' tables, by its name."""
    return {
        "ladder": lambda: ladder_table(spec, results),
        "differences": lambda: difference_table(spec, results),
        "equivalents": lambda: equivalent_table(spec, results),
        "budgets": lambda: budget_table(spec, results),
        "headline": lambda: budget_table(spec, results, _HEADLINE, shares=spec.shares[1:]),
        "captions": lambda: part_tables(spec, PARTS["captions"], results),
        "strengths": lambda: part_tables(spec, PARTS["strengths"], results),
        "ablations": lambda: part_tables(spec, PARTS["ablations"], results),
        "rates": lambda: rate_table(spec, results),
        "costs": lambda: cost_table(spec, results, costs),
        "pace": lambda: pace_table(results, [*LADDER], spec.shares[2]),
        "done": lambda: done_table(spec, results),
        "strict": lambda: strict_table(spec, results, strict),
    }


def done_table(spec: EfficiencySpec, results: Results) -> list[str]:
    """Return how many trainings of each part are done, of those that are planned."""
    planned = {name: spec.cells([name]) for name in PARTS}
    rows = [
        [PARTS[name].title, f"`{name}`", str(sum(one in results for one in cells)), str(len(cells))]
        for name, cells in planned.items()
    ]
    whole = f"{len(results)} of {len(spec.cells())} trainings are done; what belongs to two parts counts in both:\n"
    return [whole, *table(["part", "`--parts`", "done", "planned"], rows)]


def renewed(page: str, made: Mapping[str, Callable[[], list[str]]]) -> str:
    """Return a page with its tables made again, each between `<!-- table: NAME -->` and `<!-- end of table -->`."""

    def made_again(match: re.Match[str]) -> str:
        lines = made[match["name"]]() or ["None of it is trained yet."]
        return f"{match[1]}\n" + "\n".join(lines).strip("\n") + f"\n{match[3]}"

    return _TABLE.sub(made_again, page)


def kept(docs: Path, spec: EfficiencySpec) -> tuple[Results, list[Cost], StrictParts]:
    """Return the lines that are kept beside the page."""
    path = docs / LINES
    return (
        read_results(path, study=spec.study),
        read_costs(path.with_name(f"{path.stem}_{COSTS}"), study=spec.study),
        read_strict(path.with_name(f"{path.stem}_{STRICT}")),
    )


def take_over(study: Path, docs: Path, spec: EfficiencySpec) -> None:
    """Take over the lines of a study: those of trainings that are there already stay at their places."""
    path = docs / LINES
    lines = dict(zip(read_results(path, study=spec.study), path.read_text(encoding="utf-8").splitlines(), strict=True))
    newer = read_results(study / RESULTS, study=spec.study)
    lines |= {cell: to_json(one) for cell, one in newer.items()}
    write_text(path, "".join(f"{line}\n" for line in lines.values()))
    costs_path = path.with_name(f"{path.stem}_{COSTS}")
    costs = [*read_costs(costs_path, study=spec.study), *read_costs(study / COSTS, study=spec.study)]
    newest = {(one.kind, one.name): one for one in costs}
    write_text(costs_path, "".join(f"{to_json(one)}\n" for one in newest.values()))
    if (study / STRICT).exists():
        write_text(path.with_name(f"{path.stem}_{STRICT}"), (study / STRICT).read_text(encoding="utf-8"))


def main(study: Path | None = None, docs: Path = DOCS, *, packaged: bool = False) -> None:
    """Renew the tables and the picture.

    Args:
        study: output folder of a study, whose lines are taken over first.
        docs: the folder of the pages.
        packaged: score the packaged model once more, on the data of the study, and take its line over, too.
    """
    spec = EfficiencySpec()
    if packaged:
        if study is None:
            raise ValueError("--packaged needs --study, the folder where the data set is, or is built")
        append(study / RESULTS, packaged_line(attrs.evolve(spec, output=study)))
    if study is not None:
        take_over(study, docs, spec)
    results, costs, strict = kept(docs, spec)
    made = tables(spec, results, costs, strict)
    for name in PAGES:
        path = docs / name
        write_text(path, renewed(path.read_text(encoding="utf-8"), made))
    write_chart(panels(spec, results), docs / PICTURE)
    say(f"{len(results)} trainings: {', '.join(PAGES)} and {PICTURE} are renewed.")


if __name__ == "__main__":
    from mobileclip.recipes import started

    with started(main, "learning_efficiency.page", __doc__):
        pass  # `main` has run
