"""Tasks keep the contract of tasks, and each way to break it is told."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import attrs
import numpy as np
import pytest

from mobileclip.data import SkipReport
from mobileclip.evaluation import (
    BenchmarkSample,
    DatasetResult,
    Features,
    Task,
    TaskEntry,
    evaluation_tasks,
)
from mobileclip.evaluation.intervals import Outcomes
from tests.contracts.tasks import check_task
from tests.evaluation.models import COLOURS, session_of
from tests.evaluation.public_layout import write_benchmark
from tests.evaluation.tasks.test_evaluate import encoded

NUMBERS = itertools.count()


@pytest.fixture
def session():
    return session_of(batch_size=4)


def test_a_task_keeps_the_contract(session, tmp_path):
    def write(noise):
        shutil.rmtree(tmp_path / "wds_vtab-pets_test", ignore_errors=True)
        samples = [
            BenchmarkSample(key=f"{number}", image=encoded(colour, noise=noise, seed=number), label=number % 4)
            for number, colour in enumerate([*COLOURS.values()] * 3)
        ]
        choices = {"class_names": list(COLOURS), "templates": ["{}"]}
        write_benchmark(tmp_path / "wds_vtab-pets_test", samples, **choices)

    write(0.0)
    check_task("vtab/pets", tmp_path, session, change=lambda: write(40.0))


@attrs.frozen(kw_only=True)
class OddTask(Task):
    """What share of the lines of a file say yes; it breaks the contract in one way."""

    path: str
    odd: str

    def content(self):
        content = Path(self.path, "answers.txt").read_text()
        return {"restless": f"{next(NUMBERS)}", "unmoved": "the same"}.get(self.odd, content)

    def features(self, session):
        if self.odd == "failing":
            raise KeyError("yes")
        header = {"keys": self.content().splitlines(), "batch_size": session.batch_size}
        return Features(tensors={}, header=header, report=SkipReport(log=False))

    def score(self, features):
        batch_size = features.header["batch_size"]
        hits = np.array([line == "yes" for line in features.keys], dtype=np.float32)
        number = {"restless in numbers": next(NUMBERS), "batched": batch_size}.get(self.odd, 0)
        result = {
            "key": "odd/yes",
            "dataset": "Yes or no",
            "metrics": {"main_metric": float(hits.mean()) + (self.odd == "apart") + number},
            "num_images": len(hits),
            "num_skipped": 0,
        }
        result |= {
            "other key": {"key": "other"},
            "nameless result": {"dataset": " "},
            "over none": {"num_images": 0},
            "miscounting": {"num_skipped": 3},
        }.get(self.odd, {})
        values = {"not finite": hits + np.inf, "without values": hits[:0]}.get(self.odd, hits + number)
        keys = {"unasked": (), "restless in order": (f"{batch_size}",)}.get(self.odd, ("lines",))
        return (
            None
            if self.odd == "silent"
            else DatasetResult(
                **result,
                report=features.report,
                outcomes=Outcomes(keys=keys, values=values, num_effective=len(hits)),
            )
        )


def placed(odd):
    def place(key, data):
        if odd != "easy" and not Path(data, "answers.txt").exists():
            if odd == "crashing":
                raise KeyError(key)
            raise ValueError("there is nothing" if odd == "vague" else f"{data} has no answers.txt")
        return data

    return place


def check(odd, session, folder, monkeypatch):
    (folder / "answers.txt").write_text("yes\nno\nyes\nno")
    entry = TaskEntry(
        name=" " if odd == "nameless" else "Yes or no",
        place=placed(odd),
        opener=lambda found, _: OddTask(path=found.path, odd=odd),
    )
    monkeypatch.setattr(evaluation_tasks, "_values", evaluation_tasks._values | {"odd/yes": entry})
    check_task("odd/yes", folder, session, change=lambda: (folder / "answers.txt").write_text("yes"))


def test_the_smallest_keeps_it(session, tmp_path, monkeypatch):
    check("", session, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("nameless", "the task 'odd/yes' has no name"),
        ("easy", "odd/yes takes a folder without data"),
        ("crashing", "odd/yes is to refuse a folder without data by a ValueError: KeyError: 'odd/yes'"),
        ("vague", "odd/yes refuses a folder without data, and does not name it: there is nothing"),
        ("restless", "the content of odd/yes is another when it is opened again"),
        ("failing", "no model can be evaluated on odd/yes: KeyError: 'yes'"),
        ("silent", "odd/yes gives NoneType, not a DatasetResult"),
        ("other key", "the result of odd/yes has the key 'other'"),
        ("nameless result", "the result of odd/yes has no name"),
        ("over none", "the result of odd/yes is over 0 images"),
        ("miscounting", "the result of odd/yes says 3 left out, its report 0"),
        ("unasked", "the outcomes of odd/yes do not say what was asked"),
        ("without values", "odd/yes has no outcomes"),
        ("not finite", "the outcomes of odd/yes are not finite"),
        ("apart", "the mean of the outcomes of odd/yes is 0.5000, and its main metric 1.5000"),
        ("restless in numbers", "on odd/yes again, not"),
        ("batched", "on odd/yes in batches of another size, not"),
        ("restless in order", "odd/yes asks about other images, or in another order"),
        ("unmoved", "the data of odd/yes have changed, and its content has not"),
    ],
)
def test_each_way_to_break_it_is_told(odd, said, session, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match=re.escape(said)):
        check(odd, session, tmp_path, monkeypatch)
