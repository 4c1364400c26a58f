"""What a student costs with everything that it needs, and how many students pay for a teacher."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import attrs

from examples.icons.splits import TEST_PICTURES
from studies.learning_efficiency.curves import Curve, speedup
from studies.learning_efficiency.results import Cost
from studies.learning_efficiency.spec import EfficiencySpec
from studies.learning_efficiency.tables import BASELINES, Results, ladder_curves, table
from studies.learning_efficiency.variants import FIRST, VARIANTS
from studies.learning_efficiency.views import WEAK

# Starting a training takes a part of the shortest ones that is not theirs.
_FEWEST_STEPS = 1000
# What students of a teacher are called.
_DISTILLED = "distillation"


@attrs.frozen(kw_only=True)
class Payback:
    """What a score of a baseline costs in two ways, in processor's seconds.

    Args:
        baseline: of a student that is trained as the baseline.
        student: of one that is distilled.
        shared: of the teacher and of what it says of all views, which any number of students use.
    """

    baseline: float
    student: float
    shared: float

    @property
    def first(self) -> float:
        """How many times the baseline's seconds the first student takes, its teacher included."""
        return (self.student + self.shared) / self.baseline

    @property
    def num_students(self) -> float:
        """How many students are as dear as so many of the baseline; infinity where each costs more."""
        saved = self.baseline - self.student
        return math.ceil(self.shared / saved) if saved > 0 else math.inf


def seconds_per_step(results: Results, variant: str, share: float) -> float | None:
    """Return the median over a variant's trainings: by the clock of those whose processor time was not counted.

    Those were measured on two cores without much other work, one core each; lines with processor time were not. None
    without any.
    """
    lines = [
        (one.seconds if one.processor_seconds is None else one.processor_seconds, one.processor_seconds, cell.budget)
        for cell, one in results.items()
        if (cell.variant, cell.share) == (variant, share) and cell.budget >= _FEWEST_STEPS and one.seconds > 0
    ]
    by_clock = [seconds / budget for seconds, processor, budget in lines if processor is None]
    return statistics.median(by_clock or [seconds / budget for seconds, _, budget in lines]) if lines else None


def payback(
    paces: tuple[float | None, float | None],
    costs: Sequence[Cost],
    curves: Mapping[str, Curve],
    *,
    baseline: str,
    other: str,
    index: int,
) -> Payback | None:
    """Return what a budget's score of a baseline costs with and without a teacher; None where it is not known.

    Args:
        paces: seconds of a step of the baseline and of the distilled variant.
        costs: of teachers and stores.
        curves: by variant, of one share of the pictures.
        baseline: whose score is reached.
        other: the distilled variant.
        index: of the baseline's budget.
    """
    faster = speedup(curves[baseline], curves[other], budget=index).value
    if paces[0] is None or paces[1] is None or not 0 < faster < math.inf or not costs:
        return None
    steps = float(curves[baseline].steps[index])
    return Payback(
        baseline=steps * paces[0],
        student=steps / faster * paces[1],
        shared=sum(one.processor_seconds for one in costs),
    )


def shared_costs(spec: EfficiencySpec, costs: Sequence[Cost]) -> list[Cost]:
    """Return what all students of one teacher and all pictures share: the teacher, and its store."""
    store = f"{WEAK}-{VARIANTS[_DISTILLED].num_views}-{spec.shares[2]:g} {FIRST}"
    return [one for one in costs if (one.kind, one.name) in (("teacher", FIRST), ("store", store))]


def cost_table(spec: EfficiencySpec, results: Results, costs: Sequence[Cost]) -> list[str]:
    """Return what one student with all pictures costs, and how many pay back the teacher, by budget of the baselines.

    Args:
        spec: the choices.
        results: the trainings that are finished.
        costs: of all teachers and stores.
    """
    other, needed = _DISTILLED, shared_costs(spec, costs)
    curves = ladder_curves(results, spec.shares[2], TEST_PICTURES, "top5")
    rows = []
    for baseline, title in BASELINES.items():
        paces = (seconds_per_step(results, baseline, spec.shares[2]), seconds_per_step(results, other, spec.shares[2]))
        for index, steps in enumerate(curves[baseline].steps if {baseline, other} <= set(curves) else ()):
            found = payback(paces, needed, curves, baseline=baseline, other=other, index=index)
            if found is not None:
                minutes = (f"{seconds / 60:.1f}" for seconds in (found.baseline, found.student, found.shared))
                students = "none" if math.isinf(found.num_students) else f"{found.num_students:,}"
                rows.append([f"{steps:,.0f} steps of {title}", *minutes, f"{found.first:.1f}", students])
    head = ["the score of", "minutes", "of a distilled student", "of its teacher and store"]
    return table([*head, "first student, times as dear", "students that pay it back"], rows) if rows else []


def pace_table(results: Results, names: Sequence[str], share: float) -> list[str]:
    """Return the milliseconds that a step of each variant takes on one core, with a share of the pictures."""
    found = {name: seconds_per_step(results, name, share) for name in names}
    rows = [[VARIANTS[name].title, f"{1000 * pace:.0f}"] for name, pace in found.items() if pace is not None]
    return table(["", "ms a step"], rows) if rows else []
