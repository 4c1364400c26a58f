"""What is chosen on validation and reported elsewhere, what a teacher costs, and lines that a page takes over."""

import math

import attrs
import pytest

from examples.icons.splits import TEST_NAMES, TEST_PICTURES, TEST_SET, VALIDATION
from examples.learning_efficiency.costs import Payback, cost_table, seconds_per_step
from examples.learning_efficiency.page import COSTS, LINES, STRICT, take_over
from examples.learning_efficiency.rates import rate_table
from examples.learning_efficiency.results import Cost, Result, append, read_costs, read_results
from examples.learning_efficiency.scoring import Hits, Scores, pack_bits
from examples.learning_efficiency.spec import Cell, EfficiencySpec
from examples.learning_efficiency.strict import StrictPart, StrictParts, strict_table

SPEC = EfficiencySpec()


def scored(top5, hits=None):
    return Scores(top1=0, top5=top5, retrieval=0, hits=hits)


def trained(variant, budget, top5, *, validation=0.0, seed=0, rate=None, share=1.0, seconds=0.0, processor=None):
    cell = Cell(variant=variant, share=share, budget=budget, seed=seed, learning_rate=rate)
    parts = {VALIDATION: scored(validation), TEST_PICTURES: scored(top5)}
    return cell, Result(study=SPEC.study, cell=cell, scores=parts, seconds=seconds, processor_seconds=processor)


def test_a_rate_is_chosen_on_validation_and_told_elsewhere():
    results = dict(
        trained("plain", 1600, test, validation=validation + seed, seed=seed, rate=rate, share=0.1)
        for rate, validation, test in ((1e-3, 4.0, 9.0), (None, 5.0, 3.0), (1e-2, 7.0, 2.0))
        for seed in range(2)
    )
    # The third seed is not trained with every rate.
    results |= dict([trained("plain", 1600, 50.0, validation=99.0, seed=2, rate=1e-3, share=0.1)])
    *_, row = rate_table(SPEC, results)
    assert row == "| plain | 2 | 4.5 ± 0.7 | 5.5 ± 0.7 | 7.5 ± 0.7 | 0.01 | 2.0 ± 0.0 | 3.0 ± 0.0 |"
    assert rate_table(SPEC, dict([trained("plain", 1600, 1.0, share=0.1)])) == []


@pytest.mark.parametrize(
    ("student", "first", "num_students"), [(100, 2.5, 3), (399, 3.2475, 900), (500, 3.5, math.inf)]
)
def test_a_teacher_is_paid_back_by_what_its_students_save(student, first, num_students):
    found = Payback(baseline=400, student=student, shared=900)
    assert (found.first, found.num_students) == (first, num_students)


def test_costs_follow_from_lines():
    """Half the steps give the score of 1,600: 80 of 160 seconds are saved, and ten students pay a teacher's 800."""
    results = dict(
        trained(name, budget, top5, seconds=budget / 10)
        for name, scores in (("plain", (1, 2, 3)), ("distillation", (1.5, 2.5, 3.5)))
        for budget, top5 in zip((400, 1600, 6400), scores, strict=True)
    )
    assert seconds_per_step(results, "plain", 1.0) == pytest.approx(0.1)
    costs = [
        Cost(study=SPEC.study, kind="teacher", name="first", processor_seconds=600),
        Cost(study=SPEC.study, kind="store", name="weak-10-1 first", processor_seconds=200),
        Cost(study=SPEC.study, kind="teacher", name="second", processor_seconds=9e9),
    ]
    rows = [line for line in cost_table(SPEC, results, costs) if line.startswith("| 1,600 steps of plain")]
    assert rows == ["| 1,600 steps of plain training | 2.7 | 1.3 | 13.3 | 5.5 | 10 |"]
    assert seconds_per_step({}, "plain", 1.0) is None


def test_counted_seconds_do_not_mix_with_those_of_the_clock():
    lines = [
        trained("plain", 1600, 1.0, seconds=160),
        trained("plain", 1600, 1.0, seed=1, seconds=16000, processor=320),
    ]
    assert seconds_per_step(dict(lines), "plain", 1.0) == pytest.approx(0.1)
    assert seconds_per_step(dict(lines[1:]), "plain", 1.0) == pytest.approx(0.2)


def test_stricter_parts_count_the_pictures_that_are_left():
    hits = Hits(num_pictures=10, top1=pack_bits([0] * 10), top5=pack_bits([1] * 4 + [0] * 6))
    cell, result = trained("plain", 400, 40.0)
    parts = {part: scored(40.0, hits) for part in (TEST_PICTURES, TEST_SET, TEST_NAMES)}
    bits = {"same_glyph": pack_bits([1, 1, 0, 0, 0, 0, 0, 0, 0, 0]), "seen_words": pack_bits([1] * 5 + [0] * 5)}
    strict = StrictParts(num_training=1, named={}, parts=dict.fromkeys(parts, StrictPart(num_pictures=10, bits=bits)))
    rows = strict_table(SPEC, {cell: attrs.evolve(result, scores=parts)}, strict)
    assert rows.count("| the same glyph is in training | 2 | 100.0 |") == 3
    assert rows.count("| the glyph is not in training | 8 | 25.0 |") == 3
    assert rows[-2:] == [
        "| of words that are in names of training | 5 | 80.0 |",
        "| with a word that is in none | 5 | 0.0 |",
    ]
    assert strict_table(SPEC, {cell: result}, strict) == []


def test_a_page_takes_over_what_is_new_and_leaves_the_rest(tmp_path):
    docs, study = tmp_path / "docs", tmp_path / "study"
    old, other = trained("plain", 400, 1.0)[1], trained("plain", 1600, 2.0)[1]
    newer, added = attrs.evolve(old, seconds=9.0), trained("names", 400, 3.0)[1]
    for one in (old, other):
        append(docs / LINES, one)
    line = (docs / LINES).read_text().splitlines()[1].replace(", ", ",  ")
    (docs / LINES).write_text((docs / LINES).read_text().splitlines()[0] + "\n" + line + "\n")
    for one in (newer, added):
        append(study / "results.jsonl", one)
    cost = Cost(study=SPEC.study, kind="teacher", name="first", processor_seconds=600)
    append(study / COSTS, cost)
    (study / STRICT).write_text("{}")
    for _ in range(2):
        take_over(study, docs, SPEC)
        found = read_results(docs / LINES, study=SPEC.study)
        assert list(found.values()) == [newer, other, added]
        assert (docs / LINES).read_text().splitlines()[1] == line
        assert read_costs(docs / "learning_efficiency_costs.jsonl", study=SPEC.study) == [cost]
        assert (docs / "learning_efficiency_strict.json").read_text() == "{}"
