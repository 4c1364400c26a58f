"""What every engine does with units that work, fail, kill, and end the run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
import weakref
from functools import partial
from pathlib import Path

import attrs
import pytest

from mobileclip.engines import FatalError, FunctionWork, InlineEngine, LocalEngine, RayEngine, Retries, Work
from mobileclip.storage import StoreLimits, store_limits, use_limits
from tests.contracts.engines import check_engine
from tests.engines.works import Counting, Noting, Task, tasks, workers_of_this_process
from tests.errors import fails

AT_ONCE = Retries(pause_seconds=0.0)
ENGINES = {
    "inline": InlineEngine(device="cpu", retries=AT_ONCE),
    "local": LocalEngine(num_workers=2, devices=("cpu",), retries=AT_ONCE),
}


@pytest.fixture(params=ENGINES, scope="module")
def engine(request):
    """An engine whose processes go from test to test, which is one kind of work after another."""
    with ENGINES[request.param].reuse_workers() as kept:
        yield kept
    assert not workers_of_this_process()


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_keeps_the_contract(name):
    check_engine(ENGINES[name], kills=name == "local")


def run(engine, folder, *names, **choices):
    listener = Noting()
    engine.run(Counting(folder=folder, **choices), tasks(*names), listener)
    return listener


def num_tries(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (InlineEngine(device="cpu"), [1, 1, 1, 1]),
        (LocalEngine(num_workers=4, devices=("cpu",)), [1, 1, 3, 4]),
        (RayEngine(max_workers=4), [1, 1, 3, 4]),
    ],
    ids=["inline", "local", "ray"],
)
def test_there_are_no_more_workers_than_units(engine, expected):
    assert [engine.most_workers(num_units) for num_units in (0, 1, 3, 9)] == expected


def test_pauses_grow_while_other_units_are_done(tmp_path):
    engine = InlineEngine(device="cpu", retries=Retries(pause_seconds=0.05, pause_growth=2.0))
    started = time.monotonic()
    told = run(engine, tmp_path, "away-0", "good-0", "good-1", "fails-0")
    assert time.monotonic() - started >= 0.15
    assert told.pauses == {"away-0": [0.05, 0.1]}
    assert [name for name, _ in told.begun_by][:4] == ["away-0", "good-0", "good-1", "fails-0"]


def without_room(unit: Task) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", f"/data/{unit.name}")


def test_a_full_disk_ends_the_run():
    with fails(FatalError, "'/data/one'"):
        ENGINES["inline"].run(FunctionWork(function=without_room), tasks("one"), Noting())


@pytest.mark.parametrize(
    ("name", "said", "tries"),
    [("writes-0", "the disk is full", 1), ("full-0", "the disk is full", 1), ("allocates-0", "the memory is full", 3)],
)
def test_for_what_the_machine_lacks_no_unit_is_set_aside(engine, tmp_path, name, said, tries):
    """Where a unit is made and where it is finished. Memory may come back, and is waited for."""
    listener = Noting()
    with fails(FatalError, said):
        engine.run(Counting(folder=tmp_path), tasks("good-0", name), listener)
    assert (listener.asides, num_tries(tmp_path)[name]) == ({}, tries)


def test_units_that_kill_their_worker_are_set_aside(tmp_path):
    """A unit that was lost with another one is tried alone, so that none is blamed for what its neighbour does."""
    good, before = [f"good-{number}" for number in range(12)], workers_of_this_process()
    engine = LocalEngine(num_workers=2, devices=("cpu",), retries=Retries(tries=2, pause_seconds=0.0))
    told = run(engine, tmp_path, *good[:6], "kills-0", *good[6:], seconds=0.02)
    ((name, (reason, tries)),) = told.asides.items()
    assert (set(told.entries), name, tries) == (set(good), "kills-0", 2)
    assert "exit code -9" in reason
    assert workers_of_this_process() == before


def test_how_many_workers_may_be_lost_in_a_row_depends_on_how_many_there_are(tmp_path):
    names = [f"kills-{number}" for number in range(35)]
    four = LocalEngine(num_workers=4, devices=("cpu",), retries=Retries(tries=1, pause_seconds=0.0))
    told = run(four, tmp_path, *names, "good-0")
    assert (set(told.asides), set(told.entries)) == (set(names), {"good-0"})
    with fails(ValueError, "30 workers"):
        run(attrs.evolve(four, num_workers=1, apart=True), tmp_path, *names, "good-0")


def test_of_a_unit_that_keeps_failing_the_part_that_does_is_set_aside_alone(engine, tmp_path):
    names = [f"good-{number}" for number in range(16)]
    names[5], names[11] = "raises-5", "fails-11"
    told = run(engine, tmp_path, "+".join(names), "good-alone")
    assert told.asides == {
        "raises-5": ("KeyError: 'raises-5'", 3),
        "fails-11": ("it is of no use, at s3://bucket/fails-11", 1),
    }
    done = [name for group in told.entries for name in group.split("+")]
    assert sorted(done) == sorted({*names, "good-alone"} - {"raises-5", "fails-11"})
    # A group is tried twice, a half of it once, and what has no parts three times.
    assert num_tries(tmp_path)["+".join(names)] == 2
    assert num_tries(tmp_path)["+".join(names[:8])] == 1
    assert told.divisions.keys() > {"+".join(names), "+".join(names[:8])}
    assert told.pauses.keys() == {"+".join(names), "raises-5"}


def test_of_a_broken_unit_the_parts_are_tried_at_once(tmp_path):
    told = run(ENGINES["inline"], tmp_path, "good-0+fails-1")
    assert (set(told.asides), set(told.entries)) == ({"fails-1"}, {"good-0"})
    assert (told.divisions, told.pauses) == ({"good-0+fails-1": 2}, {})


@pytest.mark.slow
def test_a_part_that_kills_its_worker_costs_the_others_nothing(tmp_path):
    good = [f"good-{number}" for number in range(7)]
    engine = LocalEngine(num_workers=2, devices=("cpu",), retries=Retries(tries=2, pause_seconds=0.0))
    told = run(engine, tmp_path, "+".join([*good[:4], "kills-0", *good[4:]]), "good-7")
    assert told.asides.keys() == {"kills-0"}
    assert sorted(name for group in told.entries for name in group.split("+")) == [*good, "good-7"]


@pytest.mark.slow
def test_workers_that_load_without_end_end_the_run(tmp_path):
    (tmp_path / "first worker").touch()
    engine = LocalEngine(num_workers=2, devices=("cpu",), progress_seconds=3.0)
    with fails(ValueError, "3"):
        run(engine, tmp_path, "good-0", "good-1", late_seconds=60.0)


@pytest.mark.slow
def test_a_unit_that_hangs_is_set_aside(tmp_path):
    engine = LocalEngine(num_workers=2, devices=("cpu",), retries=Retries(tries=1), progress_seconds=15.0)
    told = run(engine, tmp_path, "hangs-0", "good-0")
    assert told.asides == {"hangs-0": ("its worker made no progress for 15 s", 1)}
    assert set(told.entries) == {"good-0"}


@attrs.frozen
class Meeting(Work):
    """What finishes a unit waits until the next one is being made, of as many as there are."""

    num_units: int
    begun: list = attrs.field(factory=lambda: [threading.Event() for _ in range(9)])

    def open(self, resources):  # noqa: ARG002 - as `Work` does
        return self.make

    def make(self, unit, on_progress):  # noqa: ARG002 - as a `Worker` does
        self.begun[int(unit.name)].set()
        return partial(self.finish, int(unit.name))

    def finish(self, number):
        is_met = number + 1 == self.num_units or self.begun[number + 1].wait(30)
        return is_met and not self.begun[number + 2].is_set()


def test_the_next_unit_is_made_while_one_is_finished():
    told = Noting()
    ENGINES["inline"].run(Meeting(num_units=4), tasks("0", "1", "2", "3"), told)
    assert list(told.entries.items()) == [("0", True), ("1", True), ("2", True), ("3", True)]
    assert all(name.startswith("finishing") for name in told.threads)


@attrs.frozen
class Holding(Work):
    """Makes something for every unit; what finishes the first one ends the run."""

    made: list = attrs.field(factory=list)

    def open(self, resources):  # noqa: ARG002 - as `Work` does
        return self.make

    def make(self, unit, on_progress):  # noqa: ARG002 - as a `Worker` does
        thing = Noting()
        self.made.append(weakref.ref(thing))
        return partial(self.finish, unit, thing)

    def finish(self, unit, thing):  # noqa: ARG002 - it is held
        raise FatalError(unit.name)


def test_what_is_made_when_the_one_before_it_ends_the_run_is_let_go():
    """Such as a file that is not whole."""
    work = Holding()
    with pytest.raises(FatalError, match="one") as caught:
        ENGINES["inline"].run(work, tasks("one", "two"), Noting())
    assert [ref() for ref in work.made[1:]] == [None], caught.tb


def seconds_of_stores(unit: Task) -> float:
    return store_limits().call_seconds


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.usefixtures("new_workers")
def test_workers_wait_for_stores_as_long_as_the_driver(name):
    told = Noting()
    engine = ENGINES[name] if name == "inline" else attrs.evolve(ENGINES[name], num_workers=1, apart=True)
    with use_limits(StoreLimits(call_seconds=7.0)):
        engine.run(FunctionWork(function=seconds_of_stores), tasks("one", "two"), told)
    assert told.entries == {"one": 7.0, "two": 7.0}


def process_of(unit: Task) -> int:
    return os.getpid()


def processes_of(engine, num_units=6) -> set[int]:
    told, units = Noting(), tasks(*(f"{number}" for number in range(num_units)))
    engine.run(FunctionWork(function=process_of), units, told)
    assert set(told.entries) == {unit.name for unit in units}
    assert not told.pauses
    return set(told.entries.values())


def test_a_function_is_work_too_and_its_processes_are_those_of_the_work_before(engine, tmp_path):
    run(engine, tmp_path, *(f"good-{number}" for number in range(4)))
    workers = multiprocessing.active_children()
    before = {worker.pid for worker in workers}
    assert processes_of(engine) <= (before or {os.getpid()})
    assert set(workers_of_this_process()) == before
    for worker in workers:
        worker.kill()
        worker.join()
    assert not processes_of(engine) & before, "one that died with nothing to do is no failed try of any unit"


@pytest.mark.parametrize(("before", "error"), [("full-0", FatalError), ("good-0", KeyboardInterrupt)])
def test_a_full_disk_is_told_though_a_signal_came_while_the_unit_was_finished(tmp_path, before, error):
    """Told as a signal, the same command would be started again, and meet the same disk."""
    listener = Noting()
    with pytest.raises(error):
        InlineEngine(device="cpu").run(Counting(folder=tmp_path, seconds=0.1), tasks(before, "interrupts-0"), listener)
    assert list(listener.entries) == (["good-0"] if before == "good-0" else [])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_keeps_workers_from_working_is_one_line(tmp_path, num_workers):
    engine = LocalEngine(num_workers=num_workers, devices=("cpu",), apart=True)
    for error, said in (
        (FileNotFoundError(errno.ENOENT, "no such file", "weights.pt"), "weights.pt"),
        (RuntimeError("no kernel for this card"), "RuntimeError: no kernel for this card"),
    ):
        with pytest.raises(FatalError, match=said) as told:
            run(engine, tmp_path, "good-0", "good-1", error=error)
        assert len(str(told.value).splitlines()) == 1
