"""The steps, one after another; what an earlier run finished is read, not done again."""

from __future__ import annotations

from examples.learning_efficiency.data import load_roles
from examples.learning_efficiency.grid import finished, run_grid, runs
from examples.learning_efficiency.report import Counts, write_report
from examples.learning_efficiency.spec import EfficiencySpec
from examples.learning_efficiency.students import RunResult, replace_text
from examples.learning_efficiency.teachers import build_teachers, reinforce_both, score_teachers
from mobileclip.serialization import to_json
from mobileclip.terminal import say

_SPEC = "spec.json"


def run(spec: EfficiencySpec) -> list[RunResult]:
    """Run the comparison, or what earlier runs left undone of it, write the report, and return all results.

    Raises:
        ValueError: if the output folder holds a comparison with other choices, or a step says why it cannot go on.
    """
    spec = spec.resolved
    _claim(spec)
    roles = load_roles(spec.roles, spec.data, spec.output / "data")
    teachers = build_teachers(spec, roles)
    scores = score_teachers(spec, roles, teachers)
    for name, one in scores.items():
        say(f"{name}: top-1 {one.validation.top1:.1f} % on validation, {one.test.top1:.1f} % on test")
    counts = Counts(
        student=len(roles.student),
        teacher=len(roles.teacher),
        validation=len(roles.validation),
        test=len(roles.test),
        classes=len(roles.class_names),
    )
    directories = reinforce_both(spec, roles, teachers)
    try:
        run_grid(spec, directories)
    finally:
        # An interrupted comparison has a report of what is finished.
        results = finished(spec)
        text = write_report(spec, results, scores, counts, num_runs=len(runs(spec)))
    say(text)
    say(f"\nThe report and the curves are in {spec.output}; the same command with more seeds or budgets extends it.")
    return results


def _claim(spec: EfficiencySpec) -> None:
    """Mark the output folder as made with `spec`, or refuse one whose trainings are not comparable."""
    path, own = spec.output / _SPEC, to_json(spec.identity, indent=1)
    if not path.exists():
        replace_text(path, own)
    elif path.read_text(encoding="utf-8").strip() != own:
        raise ValueError(
            f"{spec.output} holds a comparison with other choices ({path}); delete it or give --output. Only "
            "--budgets, --num-seeds, --variants and --num-processes may change"
        )
