"""The tables and the picture, from whatever has been trained so far."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from examples.icons.splits import TEST_NAMES, TEST_PICTURES, TEST_SET, TITLES
from examples.learning_efficiency.curves import Curve, describe, equivalents, make_curve, speedup
from examples.learning_efficiency.results import Result
from examples.learning_efficiency.spec import Cell, EfficiencySpec
from examples.learning_efficiency.stores import Store, card_of, store_of
from examples.learning_efficiency.teachers import TeacherScores
from examples.learning_efficiency.variants import FIRST, LADDER, PARTS, VARIANTS, Part
from examples.quickstart.emoji import DrawnDataset
from mobileclip.storage import write_text

METRICS = {"top1": "top-1", "top5": "top-5", "retrieval": "name → picture R@1"}
# What budgets are counted in: plain training, and what the same captions give without a teacher.
BASELINES = {"plain": "plain training", "captions": "training with synthetic captions, without a teacher"}
# What the ablations differ from by one choice.
_REFERENCE = "distillation"

Results = Mapping[Cell, Result]


def write_report(
    spec: EfficiencySpec, results: Results, teachers: Sequence[TeacherScores], dataset: DrawnDataset
) -> str:
    """Write report.md and curves.png, and return the report.

    Args:
        spec: the choices.
        results: the trainings that are finished.
        teachers: scores of the ensembles.
        dataset: the pictures.
    """
    done = sum(cell in results for cell in spec.cells())
    sizes = ", ".join(f"{part.num_samples:,} {TITLES[part.name]}" for part in dataset.tests)
    about = (
        f"{done:,} of {len(spec.cells()):,} trainings; {dataset.train.num_samples:,} pictures to learn from; held out: "
        f"{sizes}. In per cent, mean ± standard deviation over seeds.\n"
    )
    lines = [
        "# Learning efficiency\n",
        about,
        "## Teachers\n",
        *_teacher_table(teachers),
        "",
        *_view_table(spec),
    ]
    for name in spec.parts:
        if name in ("ladder", "long"):
            continue
        lines += [f"\n## {PARTS[name].title}\n", *_part_tables(spec, PARTS[name], results)]
    for share in spec.shares:
        lines += _ladder_section(spec, share, results)
    text = "\n".join([*lines, "\n![curves](curves.png)"])
    write_text(spec.output / "report.md", text + "\n")
    draw(spec, results, spec.output / "curves.png")
    return text


def draw(spec: EfficiencySpec, results: Results, path: Path) -> None:
    """Draw the ladder's top-5 on unseen drawings over the steps, a panel for each share of the pictures.

    A line is the mean over seeds, its band one standard deviation.

    Args:
        spec: the choices.
        results: the trainings that are finished.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(4.4 * len(spec.shares), 4.0), layout="constrained")
    for axes, share in zip(figure.subplots(1, len(spec.shares), squeeze=False)[0], spec.shares, strict=True):
        for name, curve in _curves(results, share, TEST_PICTURES, "top5").items():
            (line,) = axes.plot(curve.steps, curve.mean, marker="o", markersize=3, label=VARIANTS[name].title)
            low, high = curve.mean - curve.deviation, curve.mean + curve.deviation
            axes.fill_between(curve.steps, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(list(spec.budgets))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
        axes.set_xlabel("training steps")
        axes.set_title(f"{share:.0%} of the pictures: top-5, %")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _teacher_table(teachers: Sequence[TeacherScores]) -> list[str]:
    parts = (TEST_PICTURES, TEST_SET, TEST_NAMES)
    rows = []
    for one in teachers:
        cells = [f"{one.scores[part].top1:.1f} / {one.scores[part].top5:.1f}" for part in parts if part in one.scores]
        rows.append([" + ".join(one.names), *cells])
    return _table(["top-1 / top-5", *(TITLES[part] for part in parts)], rows)


def _view_table(spec: EfficiencySpec) -> list[str]:
    """Return how far the first teacher recognises the views of each store that is there."""
    stores: dict[Store, None] = dict.fromkeys(store_of(cell, spec) for cell in spec.cells())
    rows = []
    for store in stores:
        try:
            found = card_of(spec, store, FIRST).agreement
        except (OSError, ValueError):
            continue
        if found is not None:
            cells = (f"{100 * value:.0f}" for value in (found.plain_accuracy, found.view_accuracy, found.agreement))
            rows.append([store.view, f"{store.share:.0%}", str(store.num_views), *cells])
    head = ["views", "of the pictures", "stored", "plain picture recognised", "view recognised", "taken for the same"]
    return _table(head, rows)


def _part_tables(spec: EfficiencySpec, part: Part, results: Results) -> list[str]:
    lines = []
    for share, budgets in ((spec.shares[share], budgets) for share, budgets in part.budgets.items()):
        for budget in (spec.budgets[index] for index in budgets):
            rows = []
            for name, variant in part.variants.items():
                found = _by_seed(results, name, share, budget)
                if found:
                    rows.append(
                        [variant.title, str(len(found)), *_cells(found), _difference(results, found, share, budget)]
                    )
            if rows:
                head = ["unseen drawings", "seeds", *METRICS.values(), "top-5 less the ladder's one teacher, by seed"]
                lines += [f"{share:.0%} of the pictures, {budget:,} steps:\n", *_table(head, rows), ""]
    return lines


def _ladder_section(spec: EfficiencySpec, share: float, results: Results) -> list[str]:
    lines = [f"\n## The ladder with {share:.0%} of the pictures\n"]
    for part, metric in (
        *((TEST_PICTURES, metric) for metric in METRICS),
        (TEST_SET, "top5"),
        (TEST_NAMES, "top5"),
    ):
        curves = _curves(results, share, part, metric)
        if curves:
            lines += [f"{METRICS[metric]}, {TITLES[part]}:\n", *_score_table(spec, curves), ""]
    curves = _curves(results, share, TEST_PICTURES, "top5")
    for baseline, title in BASELINES.items():
        if baseline in curves and len(curves) > 1:
            about = (
                f"Steps of {title} that give the same top-5 on unseen drawings (90 % intervals, given several seeds):\n"
            )
            lines += [about, *_equivalent_table(spec, curves, baseline), ""]
    return lines


def _by_seed(results: Results, variant: str, share: float, budget: int) -> dict[int, Result]:
    return {
        cell.seed: result
        for cell, result in results.items()
        if (cell.variant, cell.share, cell.budget) == (variant, share, budget)
    }


def _cells(found: Mapping[int, Result]) -> list[str]:
    return [
        _spread([float(getattr(one.scores[TEST_PICTURES], metric)) for one in found.values()]) for metric in METRICS
    ]


def _difference(results: Results, found: Mapping[int, Result], share: float, budget: int) -> str:
    """Return the differences of top-5 from the reference of the same seed: what seeds have in common is gone."""
    reference = _by_seed(results, _REFERENCE, share, budget)
    both = sorted(set(found) & set(reference))
    if not both or found == reference:
        return ""
    values = [found[seed].scores[TEST_PICTURES].top5 - reference[seed].scores[TEST_PICTURES].top5 for seed in both]
    return _spread(values, sign="+")


def _spread(values: Sequence[float], *, sign: str = "") -> str:
    mean = f"{statistics.fmean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def _curves(results: Results, share: float, part: str, metric: str) -> dict[str, Curve]:
    """Return the curves of the ladder's variants that have any."""
    curves = {}
    for name in LADDER:
        scores = {
            (cell.budget, cell.seed): float(getattr(result.scores[part], metric))
            for cell, result in results.items()
            if cell.variant == name and cell.share == share and part in result.scores
        }
        curve = make_curve(scores)
        if curve is not None:
            curves[name] = curve
    return curves


def _score_table(spec: EfficiencySpec, curves: Mapping[str, Curve]) -> list[str]:
    rows = []
    for name, curve in curves.items():
        cells = {int(steps): _spread(list(scores)) for steps, scores in zip(curve.steps, curve.scores, strict=True)}
        rows.append([VARIANTS[name].title, str(curve.scores.shape[1]), *(cells.get(one, "") for one in spec.budgets)])
    return _table(["steps", "seeds", *(f"{one:,}" for one in spec.budgets)], rows)


def _equivalent_table(spec: EfficiencySpec, curves: Mapping[str, Curve], baseline: str) -> list[str]:
    reference = curves[baseline]
    limits = (reference.steps[0], reference.steps[-1])
    rows = []
    for name, curve in curves.items():
        if name == baseline:
            continue
        cells = {
            int(steps): describe(interval, limits=limits)
            for steps, interval in zip(curve.steps, equivalents(reference, curve), strict=True)
        }
        # The least and the greatest ratio that the budgets can show.
        ratios = (reference.steps[0] / curve.steps[-1], reference.steps[-1] / curve.steps[0])
        faster = describe(speedup(reference, curve), limits=ratios, digits=1)
        rows.append([VARIANTS[name].title, *(cells.get(one, "") for one in spec.budgets), faster])
    return _table(["steps", *(f"{one:,}" for one in spec.budgets), "times fewer steps to its best"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
