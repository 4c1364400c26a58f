"""Finished trainings are kept beside the documentation's page: they are those of the plan, and the page counts them."""

from __future__ import annotations

from pathlib import Path

from examples.learning_efficiency.results import read_results
from examples.learning_efficiency.spec import EfficiencySpec

PAGE = Path(__file__).parents[3] / "docs" / "learning_efficiency.md"


def test_every_training_that_is_kept_is_of_the_plan(tmp_path):
    kept, spec = PAGE.with_suffix(".jsonl").read_bytes(), EfficiencySpec()
    # Reading cuts off a last line that is not whole.
    copy = tmp_path / "results.jsonl"
    copy.write_bytes(kept)
    results = read_results(copy, study=spec.study)
    assert copy.read_bytes() == kept
    assert len(results) == kept.count(b"\n")
    assert set(results) <= set(spec.cells())
    assert f"{len(results)} of {len(spec.cells())} trainings" in PAGE.read_text(encoding="utf-8")
