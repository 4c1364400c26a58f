"""What has come out, as Markdown tables of finished trainings."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from examples.icons.splits import TEST_NAMES, TEST_PICTURES, TEST_SET, TITLES
from examples.learning_efficiency.curves import Curve, describe, equivalents, make_curve, speedup, speedup_limits
from examples.learning_efficiency.results import Result
from examples.learning_efficiency.spec import Cell, EfficiencySpec
from examples.learning_efficiency.variants import LADDER, VARIANTS, Part

METRICS = {"top1": "top-1", "top5": "top-5", "retrieval": "name → picture R@1"}
# What budgets are counted in: plain training, and what the same captions give without a teacher.
BASELINES = {"plain": "plain training", "captions": "training with synthetic captions alone"}
# What the ladder's table has, as held-out parts and scores.
LADDER_SCORES = (*((TEST_PICTURES, metric) for metric in METRICS), (TEST_SET, "top5"), (TEST_NAMES, "top5"))
# Whose differences are told: each rung of the ladder less the one below it, and the teacher less plain training.
COMPARED = (*((upper, lower) for lower, upper in pairwise(LADDER)), ("distillation", "plain"))
# What the ablations differ from by one choice.
_REFERENCE = "distillation"

Results = Mapping[Cell, Result]


def part_tables(spec: EfficiencySpec, part: Part, results: Results) -> list[str]:
    """Return a part's scores on unseen drawings, a table for each share and budget that has any of its own.

    Args:
        spec: the choices.
        part: of the study.
        results: the trainings that are finished.
    """
    lines = []
    own = set(part.variants) - set(LADDER)
    for share, budgets in ((spec.shares[share], budgets) for share, budgets in part.budgets.items()):
        for budget in (spec.budgets[index] for index in budgets):
            if not any(_by_seed(results, name, share, budget) for name in own):
                continue
            reference = _by_seed(results, _REFERENCE, share, budget)
            rows = []
            for name, variant in part.variants.items():
                found = _by_seed(results, name, share, budget)
                if found:
                    less = "" if name == _REFERENCE else _difference(found, reference)
                    rows.append([variant.title, str(len(found)), *_cells(found), less])
            head = ["unseen drawings", "seeds", *METRICS.values(), "top-5 less the ladder's one teacher, by seed"]
            lines += [f"{percent(share)} of the pictures, {budget:,} steps:\n", *table(head, rows), ""]
    return lines


def ladder_table(spec: EfficiencySpec, results: Results) -> list[str]:
    """Return the ladder's scores: a column for each share and budget, a group of rows for each score.

    Args:
        spec: the choices.
        results: the trainings that are finished.
    """
    columns = _measured(spec, results)
    rows: list[list[str]] = []
    for part, metric in LADDER_SCORES:
        rows.append([f"**{METRICS[metric]}, {TITLES[part]}**", *[""] * len(columns)])
        for name, variant in LADDER.items():
            found = [_by_seed(results, name, *column) for column in columns]
            if any(found):
                cells = [
                    _spread([getattr(one.scores[part], metric) for one in seeds.values()]) if seeds else ""
                    for seeds in found
                ]
                rows.append([variant.title, *cells])
    return table(["", *_heads(columns)], rows)


def difference_table(spec: EfficiencySpec, results: Results) -> list[str]:
    """Return what one rung of the ladder adds to another in top-5 on unseen drawings, seed by seed.

    Args:
        spec: the choices.
        results: the trainings that are finished.
    """
    columns = _measured(spec, results)
    rows = []
    for upper, lower in COMPARED:
        cells = [
            _difference(_by_seed(results, upper, *column), _by_seed(results, lower, *column)) for column in columns
        ]
        if any(cells):
            titles = (VARIANTS[name].title.removeprefix("+ ") for name in (upper, lower))
            rows.append([", less ".join(titles), *cells])
    return table(["", *_heads(columns)], rows)


def equivalent_table(spec: EfficiencySpec, results: Results) -> list[str]:
    """Return how many steps of the baselines give the top-5 on unseen drawings that the ladder's rungs give.

    Args:
        spec: the choices.
        results: the trainings that are finished.

    Returns:
        A group of rows for each share and baseline that a further rung is trained for; nothing where there is none.
    """
    curves = {share: ladder_curves(results, share, TEST_PICTURES, "top5") for share in spec.shares}
    budgets = sorted({int(steps) for of_share in curves.values() for one in of_share.values() for steps in one.steps})
    rows: list[list[str]] = []
    for share, of_share in curves.items():
        for baseline, title in BASELINES.items():
            if baseline in of_share and (found := _equivalent_rows(budgets, of_share, baseline)):
                rows += [[f"**{percent(share)}, in steps of {title}**", *[""] * (len(budgets) + 1)], *found]
    return table(["steps", *(f"{one:,}" for one in budgets), "times fewer steps to its best"], rows) if rows else []


def _measured(spec: EfficiencySpec, results: Results) -> list[tuple[float, int]]:
    """Return the shares and budgets that any training of the ladder has finished."""
    found = {(cell.share, cell.budget) for cell in results if cell.variant in LADDER}
    return [(share, budget) for share in spec.shares for budget in spec.budgets if (share, budget) in found]


def _heads(columns: Sequence[tuple[float, int]]) -> list[str]:
    """Return the heads of columns: the share stands over the first of its budgets."""
    shares = [None, *(share for share, _ in columns)]
    return [
        f"{budget:,}" if share == before else f"{percent(share)}, {budget:,} steps"
        for (share, budget), before in zip(columns, shares, strict=False)
    ]


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


def _difference(found: Mapping[int, Result], reference: Mapping[int, Result]) -> str:
    """Return the differences of top-5 from trainings of the same seeds: what seeds have in common is gone."""
    values = [
        found[seed].scores[TEST_PICTURES].top5 - reference[seed].scores[TEST_PICTURES].top5
        for seed in sorted(set(found) & set(reference))
    ]
    return _spread(values, sign="+") if values else ""


def _spread(values: Sequence[float], *, sign: str = "") -> str:
    mean = f"{statistics.fmean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def ladder_curves(results: Results, share: float, part: str, metric: str) -> dict[str, Curve]:
    """Return the curves of the ladder's variants that have any, by name.

    Args:
        results: the trainings that are finished.
        share: of the pictures.
        part: the held-out drawings.
        metric: a field of `Scores`.
    """
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


def _equivalent_rows(budgets: Sequence[int], curves: Mapping[str, Curve], baseline: str) -> list[list[str]]:
    reference = curves[baseline]
    limits = (reference.steps[0], reference.steps[-1])
    rows = []
    names = list(curves)
    for name in names[names.index(baseline) + 1 :]:
        curve = curves[name]
        cells = {
            int(steps): describe(interval, limits=limits)
            for steps, interval in zip(curve.steps, equivalents(reference, curve), strict=True)
        }
        faster = describe(speedup(reference, curve), limits=speedup_limits(reference, curve), digits=1)
        rows.append([VARIANTS[name].title, *(cells.get(one, "") for one in budgets), faster])
    return rows


def percent(share: float) -> str:
    """Return a share as it stands in a heading."""
    return f"{100 * share:.0f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
