"""The tables and the picture, from whatever has been trained so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from examples.learning_efficiency.curves import Curve, describe, equivalents, make_curve, speedup
from examples.learning_efficiency.spec import VARIANTS, EfficiencySpec
from examples.learning_efficiency.students import RunResult, replace_text
from examples.learning_efficiency.teachers import TeacherScores

# What budgets are counted in: plain training, and what the same captions give without a teacher.
BASELINES = {
    "plain": "plain training",
    "captions": "training with synthetic captions, without a teacher",
    "control": "training with synthetic captions and strong augmentation, without a teacher",
}
METRICS = {"top1": "zero-shot top-1", "top5": "zero-shot top-5", "retrieval": "name → picture R@1"}


@attrs.frozen(kw_only=True)
class Counts:
    """How many pictures and names there are.

    Args:
        student: pictures that the students learn from.
        teacher: pictures that the teachers learned from.
        validation: held-out drawings to choose settings on.
        test: held-out drawings that are reported.
        classes: names that classification chooses from.
    """

    student: int
    teacher: int
    validation: int
    test: int
    classes: int


def write_report(
    spec: EfficiencySpec,
    results: Sequence[RunResult],
    teachers: Mapping[str, TeacherScores],
    counts: Counts,
    *,
    num_runs: int,
) -> str:
    """Write report.md and curves.png, and return the report.

    Args:
        spec: the choices.
        results: the trainings that are finished.
        teachers: scores of the teachers and of the ensemble.
        counts: of pictures and names.
        num_runs: trainings of the whole comparison.
    """
    about = (
        f"{len(results)} of {num_runs} trainings. {counts.student} pictures for the students, {counts.teacher} for the "
        f"teachers; {counts.test} held-out drawings, {counts.classes} names. In per cent, mean ± standard deviation "
        "over seeds.\n"
    )
    lines = ["# Learning efficiency\n", about]
    for metric, title in METRICS.items():
        curves = _curves(spec, results, metric)
        lines += [f"## {title}\n", *_score_table(spec, curves), ""]
        lines += [f"- {name}: {getattr(one.test, metric):.1f}" for name, one in teachers.items()]
        for baseline, name in BASELINES.items():
            if baseline in curves and len(curves) > 1:
                about = f"\nSteps of {name} that give the same score (90 % intervals, given several seeds):\n"
                lines += [about, *_equivalent_table(spec, curves, baseline), ""]
    text = "\n".join([*lines, "![curves](curves.png)"])
    replace_text(spec.output / "report.md", text)
    draw(spec, results, teachers, spec.output / "curves.png")
    return text


def draw(spec: EfficiencySpec, results: Sequence[RunResult], teachers: Mapping[str, TeacherScores], path: Path) -> None:
    """Draw every score over the steps, a line with a band of one standard deviation for each variant.

    Args:
        spec: the choices.
        results: the trainings that are finished.
        teachers: the ensemble's score is written beside.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(4.4 * len(METRICS), 4.0), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(METRICS), squeeze=False)[0], METRICS.items(), strict=True):
        curves = _curves(spec, results, metric)
        for name, curve in curves.items():
            style = "--" if name == "control" else "-"
            (line,) = axes.plot(curve.steps, curve.mean, style, marker="o", markersize=3, label=VARIANTS[name].title)
            low, high = curve.mean - curve.deviation, curve.mean + curve.deviation
            axes.fill_between(curve.steps, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
        if "ensemble" in teachers:
            # As a level it would press the curves together.
            level = f"ensemble of the teachers: {getattr(teachers['ensemble'].test, metric):.1f}"
            axes.text(0.02, 0.98, level, transform=axes.transAxes, va="top", fontsize=8, color="gray")
        axes.set_xscale("log")
        axes.set_xticks(list(spec.budgets))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
        axes.set_xlabel("training steps")
        axes.set_title(f"{title}, %")
        axes.grid(alpha=0.3)
    figure.axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.0, 0.94))
    figure.savefig(path, dpi=120)


def _curves(spec: EfficiencySpec, results: Iterable[RunResult], metric: str) -> dict[str, Curve]:
    """Return the curves, on the test part, of the variants that have any."""
    scores: dict[str, dict[tuple[int, int], float]] = {name: {} for name in spec.variants}
    for result in results:
        scores[result.variant][result.budget, result.seed] = float(getattr(result.test, metric))
    curves = {name: make_curve(points) for name, points in scores.items()}
    return {name: curve for name, curve in curves.items() if curve is not None}


def _score_table(spec: EfficiencySpec, curves: Mapping[str, Curve]) -> list[str]:
    rows = []
    for name, curve in curves.items():
        cells = {
            int(steps): f"{mean:.1f} ± {deviation:.1f}" if curve.scores.shape[1] > 1 else f"{mean:.1f}"
            for steps, mean, deviation in zip(curve.steps, curve.mean, curve.deviation, strict=True)
        }
        rows.append([VARIANTS[name].title, str(curve.scores.shape[1]), *(cells.get(one, "") for one in spec.budgets)])
    return _table(["steps", "seeds", *map(str, spec.budgets)], rows)


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
    return _table(["steps", *map(str, spec.budgets), "times fewer steps to its best"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
