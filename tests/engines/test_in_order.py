"""Entries that are finished in any order come in that of their units."""

import random

import pytest

from mobileclip.engines import InlineEngine, OrderedResults, Retries, SetAside
from tests.engines.works import Counting, tasks


@pytest.mark.parametrize("seed", range(3))
def test_each_comes_once_and_in_its_turn(seed):
    units, taken = tasks(*(f"u{number}" for number in range(20))), []
    order = list(units)
    random.Random(seed).shuffle(order)
    with OrderedResults(units, lambda unit, result: taken.append((unit.name, result))) as listener:
        for unit in order:
            if unit.name == "u7":
                listener.gave_up(unit, SetAside(unit="u7", reason="it is of no use", tries=3))
            else:
                listener.finished(unit, [unit.name] * 2)
    assert [name for name, _ in taken] == [unit.name for unit in units]
    assert dict(taken)["u7"] == SetAside(unit="u7", reason="it is of no use", tries=3)
    assert all(result == [name] * 2 for name, result in taken if name != "u7")


def test_those_behind_one_that_fails_wait_for_it_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "waiting"))
    (tmp_path / "waiting").mkdir()
    (tmp_path / "tries").mkdir()
    units, taken = tasks("good-0", "late-1", "good-2", "away-3", "good-4"), []
    engine = InlineEngine(device="cpu", retries=Retries(tries=2, pause_seconds=0.05))
    with OrderedResults(units, lambda _, result: taken.append(result)) as listener:
        engine.run(Counting(folder=tmp_path / "tries"), units, listener)
    assert taken[:3] == [f"entry of {name}" for name in ("good-0", "late-1", "good-2")]
    assert (taken[3].unit, taken[3].tries, taken[4]) == ("away-3", 2, "entry of good-4")
    assert not list((tmp_path / "waiting").iterdir())
