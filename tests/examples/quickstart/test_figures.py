"""What README and page tell of the quickstart is what the kept results of its two runs say."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from examples.quickstart.report import COLUMNS, Results
from examples.quickstart.spec import ROWS, TITLES
from examples.quickstart.together import ALL
from mobileclip.serialization import from_json

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
SPLITS = {"test_renderings": "drawings", "test_style": "style", "test_concepts": "concepts"}
# What depends on the teachers.
TAUGHT = ("reinforced", "teachers")


@pytest.fixture(scope="module")
def page():
    return (DOCS / "quickstart.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs():
    """Results with the teachers of the training pictures, and with those of all concepts."""
    names = ("quickstart.json", "quickstart_all_concepts.json")
    return [from_json((DOCS / name).read_text(encoding="utf-8"), Results) for name in names]


def spread(values):
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def row(results, split, name, head):
    cells = (spread([getattr(one[split], column) for one in results.scores[name]]) for column in COLUMNS)
    return f"| {' | '.join([head, TITLES[name], *cells])} |"


def test_the_tables_have_the_kept_scores(page, runs):
    own, _ = runs
    for split, part in SPLITS.items():
        whole = f"{part}: {own.num_images[split]} pictures, {own.num_classes[split]} concepts"
        for name in TITLES:
            assert row(own, split, name, whole if name == "plain" else "") in page


def test_students_without_teachers_are_those_of_both_runs(runs):
    own, wider = runs
    for name in set(ROWS) - set(TAUGHT):
        assert own.scores[name] == wider.scores[name]
        assert len(own.scores[name]) == 5


def test_sums_and_errors_follow_from_the_table(page, runs):
    text = " ".join(page.split())
    own, wider = (one.together for one in runs)
    top5 = (
        f"{part} {spread([one[split].top5 for one in runs[1].scores['reinforced']])}" for split, part in SPLITS.items()
    )
    assert f"top-5 rises by {own['captions - plain']['test_renderings']} points" in text
    both, of_wider = (one["reinforced - captions"][ALL] for one in (own, wider))
    assert f"Over all {both.num_pictures} pictures, top-5 is {both.earlier:.1f} % with captions" in text
    assert f"{both.later:.1f} % with teachers: {both}" in text
    assert f"{of_wider.later:.1f} %: {of_wider} ({', '.join(top5)})" in text


def test_the_readme_tells_what_the_table_says(runs):
    own = runs[0]
    plain, captions, reinforced = (
        f"{statistics.fmean([one['test_renderings'].top5 for one in own.scores[name]]):.0f}" for name in ROWS
    )
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"**Reinforced top-5 of {reinforced} %**, {own.num_images['test_renderings']} unseen drawings" in text
    assert f"{captions} % with synthetic captions, {plain} % plain |" in text
