"""The report: tables and a chart of all finished trainings.

`python -m studies.learning_efficiency.report` prints the tables for the result lines next to this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.icons.splits import TEST_NAMES, TEST_PICTURES, TEST_SET, TITLES
from examples.quickstart.emoji.on_disk import DrawnDataset
from mobileclip.charts import Line, Panel, write_chart
from mobileclip.storage import write_text
from mobileclip.terminal import say
from studies.learning_efficiency.curves import Curve, half_widths
from studies.learning_efficiency.results import RESULTS, read_results
from studies.learning_efficiency.spec import EfficiencySpec
from studies.learning_efficiency.stores import Store, card_of, store_of
from studies.learning_efficiency.strict import STRICT, StrictParts, read_strict, strict_table
from studies.learning_efficiency.tables import (
    Results,
    budget_table,
    ladder_table,
    part_tables,
    percent,
    table,
    variant_curves,
)
from studies.learning_efficiency.teachers import TeacherScores
from studies.learning_efficiency.variants import CAPTIONS, FIRST, LADDER, PARTS

# The ladder, its losing rungs too, and plain training on names: what synthetic captions are to be compared with.
DRAWN = {**{name: one.title for name, one in LADDER.items()}, "names": CAPTIONS["names"].title}


def panels(spec: EfficiencySpec, results: Results) -> list[Panel]:
    """Return top-5 on unseen drawings over the steps, with a panel per share of the images.

    A line is the mean over seeds; its band is the central 90 % under resampling of seeds and images.

    Args:
        spec: settings of the study.
        results: finished trainings.
    """
    found = []
    for share in spec.shares:
        curves = variant_curves(results, tuple(DRAWN), share, TEST_PICTURES, "top5")
        ends = [f"{DRAWN[name]} {curves[name].mean[-1]:.1f} %" for name in ("plain", "distillation") if name in curves]
        steps = max((int(curve.steps[-1]) for curve in curves.values()), default=0)
        title = f"{percent(share)} of the pictures, {steps:,} steps:\n{', '.join(ends)}"
        lines = [_line(curve, name) for name, curve in curves.items()]
        axes = {"x_label": "training steps", "y_label": "top-5 on unseen drawings, %"}
        found.append(Panel(lines=lines, title=title, is_log=True, from_zero=True, **axes))
    return found


def _line(curve: Curve, name: str) -> Line:
    return Line(
        x=curve.steps.tolist(),
        y=curve.mean.tolist(),
        label=DRAWN[name],
        spread=half_widths(curve).tolist(),
    )


def write_report(
    spec: EfficiencySpec,
    results: Results,
    teachers: Sequence[TeacherScores],
    dataset: DrawnDataset,
    strict: StrictParts | None = None,
) -> str:
    """Write report.md and curves.png, and return the report.

    Args:
        spec: settings of the study.
        results: finished trainings.
        teachers: scores of the ensembles.
        dataset: the pictures.
        strict: the easier held-out images; None leaves their table out.
    """
    done = sum(cell in results for cell in spec.cells())
    sizes = ", ".join(f"{part.num_samples:,} {TITLES[part.name]}" for part in dataset.tests)
    about = (
        f"{done:,} of {len(spec.cells()):,} trainings; {dataset.train.num_samples:,} pictures to learn from; held out: "
        f"{sizes}. In per cent{', mean ± standard deviation over seeds' if spec.num_seeds > 1 else ''}.\n"
    )
    lines = [
        "# Learning efficiency\n",
        about,
        *(["## Teachers\n", *_teacher_table(teachers), "", *_view_table(spec)] if teachers else []),
    ]
    lines += result_tables(spec, results, strict)
    text = "\n".join([*lines, "\n![curves](curves.png)"])
    write_text(spec.output / "report.md", text + "\n")
    write_chart(panels(spec, results), spec.output / "curves.png")
    return text


def result_tables(spec: EfficiencySpec, results: Results, strict: StrictParts | None) -> list[str]:
    """Return the tables of trainings; see `write_report`."""
    lines: list[str] = []
    for part in map(PARTS.__getitem__, spec.parts):
        if part.variants is not LADDER and part is not PARTS["rates"]:
            lines += [f"\n## {part.title}\n", *part_tables(spec, part, results)]
    return [
        *lines,
        "\n## The ladder\n",
        *ladder_table(spec, results),
        "\nTimes fewer steps for the top-5 that so many steps of a baseline give:\n",
        *budget_table(spec, results),
        *_section("Stricter parts", [] if strict is None else strict_table(spec, results, strict)),
    ]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"\n## {title}\n", *lines] if lines else []


def _teacher_table(teachers: Sequence[TeacherScores]) -> list[str]:
    parts = (TEST_PICTURES, TEST_SET, TEST_NAMES)
    rows = []
    for one in teachers:
        cells = [f"{one.scores[part].top1:.1f} / {one.scores[part].top5:.1f}" for part in parts if part in one.scores]
        rows.append([" + ".join(one.names), *cells])
    return table(["top-1 / top-5", *(TITLES[part] for part in parts)], rows)


def _view_table(spec: EfficiencySpec) -> list[str]:
    """Return the share of views that the first teacher recognises, for each existing store."""
    stores: dict[Store, None] = dict.fromkeys(store_of(cell, spec) for cell in spec.cells())
    rows = []
    for store in stores:
        try:
            found = card_of(spec, store, FIRST).agreement
        except (OSError, ValueError):
            continue
        if found is not None:
            cells = (f"{100 * value:.0f}" for value in (found.plain_accuracy, found.view_accuracy, found.agreement))
            rows.append([store.view, percent(store.share), str(store.num_views), *cells])
    head = ["views", "of the pictures", "stored", "plain picture recognised", "view recognised", "taken for the same"]
    return table(head, rows)


def main() -> None:
    """Print the tables for the result lines next to this file."""
    spec, here = EfficiencySpec(), Path(__file__).parent
    results = read_results(here / RESULTS, study=spec.study)
    say("\n".join(result_tables(spec, results, read_strict(here / STRICT))))


if __name__ == "__main__":
    main()
