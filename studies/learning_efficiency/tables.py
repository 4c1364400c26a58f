"""Markdown tables of finished trainings."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from examples.icons.splits import TEST_NAMES, TEST_PICTURES, TEST_SET, TITLES
from studies.learning_efficiency.curves import (
    Curve,
    describe,
    difference,
    make_curve,
    speedup,
    speedup_limits,
)
from studies.learning_efficiency.results import Result
from studies.learning_efficiency.spec import Cell, EfficiencySpec
from studies.learning_efficiency.variants import LADDER, VARIANTS, Part

METRICS = {"top1": "top-1", "top5": "top-5", "retrieval": "name → picture R@1"}
# What budgets are counted in: plain training, and what the same captions give without a teacher.
BASELINES = {"plain": "plain training", "captions": "training with synthetic captions alone"}
# Held-out parts and scores in the ladder's table.
LADDER_SCORES = (*((TEST_PICTURES, metric) for metric in METRICS), (TEST_SET, "top5"), (TEST_NAMES, "top5"))

Results = Mapping[Cell, Result]


def part_tables(spec: EfficiencySpec, part: Part, results: Results) -> list[str]:
    """Return a part's scores on unseen drawings, with a table per share and budget that has results.

    Args:
        spec: settings of the study.
        part: part of the study.
        results: finished trainings.
    """
    lines = []
    own = set(part.variants) - set(LADDER)
    for share, budgets in ((spec.shares[share], budgets) for share, budgets in part.budgets.items()):
        for budget in (spec.budgets[index] for index in budgets):
            if not any(by_seed(results, name, share, budget) for name in own):
                continue
            reference = by_seed(results, part.reference, share, budget)
            drawn = tuple(part.variants) if part.has_intervals else ()
            curves = variant_curves(results, drawn, share, TEST_PICTURES, "top5", fewest_budgets=1)
            rows = []
            for name, variant in part.variants.items():
                found = by_seed(results, name, share, budget)
                if found:
                    less = "" if name == part.reference else _difference(found, reference)
                    less += _interval(curves, part.reference, name, budget)
                    rows.append([variant.title, str(len(found)), *_cells(found), less])
            head = ["unseen drawings", "seeds", *METRICS.values(), f"top-5 less {part.less}, by seed"]
            lines += [f"{percent(share)} of the pictures, {budget:,} steps:\n", *table(head, rows), ""]
    return lines


def ladder_table(spec: EfficiencySpec, results: Results) -> list[str]:
    """Return the ladder's scores, with a column per share and budget, and a group of rows per score.

    Args:
        spec: settings of the study.
        results: finished trainings.
    """
    columns = _measured(spec, results)
    rows: list[list[str]] = []
    for part, metric in LADDER_SCORES:
        rows.append([f"**{METRICS[metric]}, {TITLES[part]}**", *[""] * len(columns)])
        for name, variant in LADDER.items():
            found = [by_seed(results, name, *column) for column in columns]
            if any(found):
                cells = [
                    spread([getattr(one.scores[part], metric) for one in seeds.values()]) if seeds else ""
                    for seeds in found
                ]
                rows.append([variant.title, *cells])
    return table(["", *_heads(columns)], rows)


def _measured(spec: EfficiencySpec, results: Results) -> list[tuple[float, int]]:
    """Return the shares and budgets with finished trainings of the ladder."""
    found = {(cell.share, cell.budget) for cell in results if cell.variant in LADDER}
    return [(share, budget) for share in spec.shares for budget in spec.budgets if (share, budget) in found]


def _heads(columns: Sequence[tuple[float, int]]) -> list[str]:
    """Return the column heads; the share is above its first budget."""
    shares = [None, *(share for share, _ in columns)]
    return [
        f"{budget:,}" if share == before else f"{percent(share)}, {budget:,} steps"
        for (share, budget), before in zip(columns, shares, strict=False)
    ]


def by_seed(
    results: Results, variant: str, share: float, budget: int, *, learning_rate: float | None = None
) -> dict[int, Result]:
    """Return the trainings of a row by seed, by default with the study's learning rate."""
    wanted = (variant, share, budget, learning_rate)
    return {
        cell.seed: result
        for cell, result in results.items()
        if (cell.variant, cell.share, cell.budget, cell.learning_rate) == wanted
    }


def _cells(found: Mapping[int, Result]) -> list[str]:
    return [spread([float(getattr(one.scores[TEST_PICTURES], metric)) for one in found.values()]) for metric in METRICS]


def _difference(found: Mapping[int, Result], reference: Mapping[int, Result]) -> str:
    """Return the differences of top-5 between trainings with the same seed, which cancels effects of the seed."""
    values = [
        found[seed].scores[TEST_PICTURES].top5 - reference[seed].scores[TEST_PICTURES].top5
        for seed in sorted(set(found) & set(reference))
    ]
    return spread(values, sign="+") if values else ""


def spread(values: Sequence[float], *, sign: str = "") -> str:
    """Return the mean of values, with their standard deviation if there are several values."""
    mean = f"{statistics.fmean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def ladder_curves(results: Results, share: float, part: str, metric: str) -> dict[str, Curve]:
    """Return the curves of the ladder's variants by name, without variants that have no curve; see `variant_curves`."""
    return variant_curves(results, tuple(LADDER), share, part, metric)


def variant_curves(
    results: Results,
    names: Sequence[str],
    share: float,
    part: str,
    metric: str,
    *,
    fewest_budgets: int = 2,
) -> dict[str, Curve]:
    """Return the curves of variants by name, without variants that have no curve.

    Args:
        results: finished trainings.
        names: names of the variants.
        share: share of the images.
        part: the held-out drawings.
        metric: a field of `Scores`.
        fewest_budgets: minimum number of budgets of a curve.
    """
    curves = {}
    for name in names:
        found = {
            (cell.budget, cell.seed): result.scores[part]
            for cell, result in results.items()
            if (cell.variant, cell.share, cell.learning_rate) == (name, share, None) and part in result.scores
        }
        # Retrieval is counted by names, whose number lines do not have.
        is_counted = metric in ("top1", "top5")
        curve = make_curve(
            {at: float(getattr(scores, metric)) for at, scores in found.items()},
            {at: one.hits.bits(metric) for at, one in found.items() if one.hits is not None} if is_counted else None,
            num_pictures=num_pictures(results, part) if is_counted else 0,
            fewest_budgets=fewest_budgets,
        )
        if curve is not None:
            curves[name] = curve
    return curves


def num_pictures(results: Results, part: str) -> int:
    """Return the number of images in a held-out part, from lines with hits; 0 if no line has hits."""
    found = (one.scores[part].hits for one in results.values() if part in one.scores)
    return next((hits.num_pictures for hits in found if hits is not None), 0)


def _interval(curves: Mapping[str, Curve], reference: str, name: str, budget: int) -> str:
    """Return the interval of a difference in brackets, or an empty text if a curve is missing."""
    if name == reference or not {name, reference} <= set(curves):
        return ""
    if any(budget not in curves[one].steps for one in (name, reference)):
        return ""
    found = difference(curves[reference], curves[name], steps=budget)
    return f" ({found.low:+.1f} to {found.high:+.1f})"


def budget_table(spec: EfficiencySpec, results: Results) -> list[str]:
    """Return the speedup in steps of the ladder's rungs over each budget of their baselines, by top-5.

    Args:
        spec: settings of the study.
        results: finished trainings.

    Returns:
        The table has a group of rows per share and baseline; the result is empty if there is no baseline.
    """
    curves = {share: ladder_curves(results, share, TEST_PICTURES, "top5") for share in spec.shares}
    budgets = sorted({int(steps) for of_share in curves.values() for one in of_share.values() for steps in one.steps})
    rows: list[list[str]] = []
    for share, of_share in curves.items():
        for baseline, title in BASELINES.items():
            rungs = [*of_share]
            later = rungs[rungs.index(baseline) + 1 :] if baseline in of_share else []
            if later:
                rows.append([f"**{percent(share)}, against {title}**", *[""] * len(budgets)])
            for name in later:
                found = _speedups(of_share[baseline], of_share[name])
                rows.append([VARIANTS[name].title, *(found.get(one, "") for one in budgets)])
    return table(["what this many steps give", *(f"{one:,}" for one in budgets)], rows) if rows else []


def _speedups(baseline: Curve, other: Curve) -> dict[int, str]:
    return {
        int(steps): describe(
            speedup(baseline, other, budget=index), limits=speedup_limits(baseline, other, budget=index), digits=1
        )
        for index, steps in enumerate(baseline.steps)
    }


def percent(share: float) -> str:
    """Return a share as text for a heading."""
    return f"{100 * share:.0f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
