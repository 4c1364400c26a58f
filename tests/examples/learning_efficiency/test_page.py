"""Finished trainings are kept beside the documentation's page: of the plan, counted there, and in its tables."""

from pathlib import Path

import pytest

from examples.learning_efficiency.picture import DRAWN, panels
from examples.learning_efficiency.results import read_results
from examples.learning_efficiency.spec import EfficiencySpec
from examples.learning_efficiency.tables import (
    budget_table,
    difference_table,
    equivalent_table,
    ladder_table,
    part_tables,
)
from examples.learning_efficiency.variants import PARTS

PAGE = Path(__file__).parents[3] / "docs" / "learning_efficiency.md"
SPEC = EfficiencySpec()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The trainings that are kept; of a copy, as reading cuts off a last line that is not whole."""
    kept, copy = PAGE.with_suffix(".jsonl").read_bytes(), tmp_path_factory.mktemp("kept") / "results.jsonl"
    copy.write_bytes(kept)
    found = read_results(copy, study=SPEC.study)
    assert copy.read_bytes() == kept
    assert len(found) == kept.count(b"\n")
    return found


def test_every_training_that_is_kept_is_of_the_plan(results):
    assert set(results) <= set(SPEC.cells())
    assert f"{len(results)} of {len(SPEC.cells())} trainings" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("made", [ladder_table, difference_table, equivalent_table, budget_table])
def test_a_table_is_made_of_what_was_trained(results, made):
    assert len("\n".join(made(SPEC, results)).splitlines()) > 4


@pytest.mark.parametrize("part", ["strengths", "ablations"])
def test_a_part_has_its_tables(results, part):
    assert len("\n".join(part_tables(SPEC, PARTS[part], results)).splitlines()) > 4


def test_every_line_of_the_picture_is_named(results):
    drawn = panels(SPEC, results)
    assert all(panel.has_legend for panel in drawn)
    named = {line.label for panel in drawn for line in panel.lines}
    assert named <= set(DRAWN.values())
    every = {cell.variant for cell in results if cell.variant in DRAWN and cell.learning_rate is None}
    lengths = {name: {cell.budget for cell in results if cell.variant == name} for name in every}
    # A curve needs two budgets.
    assert named == {DRAWN[name] for name in every if len(lengths[name]) > 1}
