"""A run in an output: what stands there of it while it goes on and afterwards."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from mobileclip import storage
from mobileclip.engines import RUN, InlineEngine, Retries, held, read_set_aside, read_status, run as runs
from mobileclip.progress import duration
from tests.engines.works import Counting, Noting, tasks
from tests.errors import fails
from tests.waiting import wait_for

ENGINE = InlineEngine(device="cpu", retries=Retries(pause_seconds=0.0))


IN_A_STORE = pytest.mark.parametrize("output", ["local", "store"], indirect=True)


@pytest.fixture
def output(request, tmp_path):
    """A folder of this machine, or a store."""
    if getattr(request, "param", "local") == "local":
        return str(tmp_path / "out")
    request.getfixturevalue("store")
    return "s3://data/out"


def run(output, folder, *names, listener=None, num_done_before=0, renewal_seconds=15.0):
    folder.mkdir(exist_ok=True)
    listener = listener or Noting()
    with held(output, ENGINE, renewal_seconds=renewal_seconds) as one:
        one.begin("counting", num_units=num_done_before + len(names), num_done_before=num_done_before)
        one.do(Counting(folder=folder), tasks(*names), listener)
    return listener, one.set_aside


@IN_A_STORE
def test_the_status_says_what_was_done(output, tmp_path):
    _, asides = run(output, tmp_path / "work", "good-0", "away-0", "good-1", "fails-0", num_done_before=5)
    status = read_status(output)
    assert (status.under_way, status.units_per_hour, status.seconds_left) == ((), 0, None), "no pace in seconds"
    assert str(status).splitlines() == [
        f"finished at {status.written}, started at {status.began}",
        "counting: 7 of 9 shards done, 5 of them by earlier runs",
        "set aside: 2 (see set_aside.jsonl); failed attempts: 4",
    ]
    assert read_set_aside(output) == asides


@IN_A_STORE
def test_a_run_that_is_refused_leaves_the_status_of_the_one_before(output, tmp_path):
    run(output, tmp_path / "work", "good-0")
    before = storage.read_bytes(f"{output}/run/status.json", limit=2**20)

    with fails(ValueError, "no room"), held(output, ENGINE):
        raise ValueError("no room")
    assert storage.read_bytes(f"{output}/run/status.json", limit=2**20) == before
    with fails(ValueError, "no room"), held(output, ENGINE) as one:
        one.begin("counting")
        raise ValueError("no room")
    assert read_status(output).reason == "ValueError: no room"


def test_speed_and_time_left_come_from_the_units_of_this_run(output, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(runs, "time", clock)

    class Timed(Noting):
        def finished(self, unit, entry):
            clock.now += 600 if unit.name == "good-0" else 60  # the first one loads and compiles
            super().finished(unit, entry)

    (tmp_path / "work").mkdir()
    for count, told in ((3, (0, None)), (10, (60, 20 * 60))):
        with held(output, ENGINE) as one:
            one.begin("counting", num_units=50, num_done_before=30 - count)
            one.do(Counting(folder=tmp_path / "work"), tasks(*(f"good-{number}" for number in range(count))), Timed())
        status = read_status(output)
        assert (status.units_per_hour, status.seconds_left) == told


def test_parts_of_a_unit_are_counted_in_its_place(output, tmp_path):
    _, asides = run(output, tmp_path / "work", "good-0+good-1+good-2+fails-3", "good-4")
    assert [one.unit for one in asides] == ["fails-3"]
    status = read_status(output)
    assert (status.num_units, status.num_done, status.num_set_aside) == (4, 3, 1)


def test_a_run_of_several_kinds_of_work_has_one_list_and_says_what_comes_next(output, tmp_path):
    said = []
    with held(output, ENGINE) as one:
        one.refuse("lost", "there is no such file")
        for doing, names, then in (
            ("reading", ("fails-0", "good-0"), ("matching", "writing")),
            ("matching", (), ("writing",)),
            ("writing", ("good-1", "fails-1"), ()),
        ):
            one.begin(doing, num_units=len(names) + 1 if names else 0, num_done_before=1 if names else 0, then=then)
            said.append(str(read_status(output)).splitlines()[1])
            for name in names:
                one.do(Counting(folder=tmp_path), tasks(name), Noting())
    assert [(one.unit, one.tries) for one in read_set_aside(output)] == [("lost", 1), ("fails-0", 1), ("fails-1", 1)]
    status = read_status(output)
    assert said[0] == "reading: 1 of 3 shards done, 1 of them by earlier runs, then matching and writing"
    assert re.fullmatch(r"matching since 20.{17} UTC, then writing", said[1])
    assert said[2] == "writing: 1 of 3 shards done, 1 of them by earlier runs"
    assert (status.state, status.stage, status.num_done, status.num_set_aside) == ("finished", "writing", 1, 3)


@IN_A_STORE
def test_what_was_set_aside_comes_last_the_next_time(output, tmp_path):
    run(output, tmp_path / "work", "fails-0", "good-0")
    told, _ = run(output, tmp_path / "work", "fails-0", "good-1")
    assert told.begun_by[0][0] == "good-1"
    run(output, tmp_path / "work", "good-2")
    assert read_set_aside(output) == ()
    assert not storage.exists(f"{output}/set_aside.jsonl")


@IN_A_STORE
def test_a_running_output_says_what_every_worker_does(output, tmp_path):
    seen = []

    class Looking(Noting):
        def advanced(self, count):  # noqa: ARG002 - as a `Listener` does
            if not seen:
                seen.append(wait_for(lambda: (status := read_status(output)).under_way and status))

    run(output, tmp_path / "work", "good-0", listener=Looking(), renewal_seconds=0.05)
    (status,) = seen
    (one,) = status.under_way
    assert (status.state, one.unit, one.worker) == ("running", "good-0", "cpu")
    said = [f"running at {status.written}, started at {status.began}", "counting: 0 of 1 shards done"]
    assert str(status).splitlines() == [*said, f"cpu: good-0, for {duration(one.seconds)}"]


@IN_A_STORE
def test_a_run_that_breaks_off_says_why(output, tmp_path):
    with pytest.raises(ValueError, match="the disk is full"):
        run(output, tmp_path / "work", "fatal-0")
    status = read_status(output)
    assert str(status).splitlines()[0] == (
        f"ended at {status.written}, started at {status.began}: FatalError: the disk is full"
    )


# As a run wrote it that was killed.
BEFORE = {
    "state": "running", "began": "2026-01-02 03:04:05 UTC", "written": "2026-01-02 03:05:05 UTC", "num_units": 4,
    "num_done_before": 1, "num_done": 2, "num_failed": 0, "num_set_aside": 0, "units_per_hour": 60.0,
    "seconds_left": 60.0, "under_way": [{"worker": "cpu", "unit": "0.tar", "seconds": 7.0}], "stage": "joining",
    "stage_began": "2026-01-02 03:04:05 UTC", "then": [], "reason": "", "unit_name": "shards",
}  # fmt: skip


def test_what_a_killed_run_wrote_is_read_and_taken_over_and_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / RUN / "status.json"
    path.parent.mkdir()
    path.write_text(json.dumps(BEFORE))
    first, *rest = str(read_status(tmp_path)).splitlines()
    assert first.startswith(f"no update since {BEFORE['written']}, started at {BEFORE['began']}: the run was killed")
    assert rest[0] == "joining: 3 of 4 shards done, 1 of them by earlier runs"
    assert rest[1:] == ["60.0 shards an hour, 1:00 left of joining", "cpu: 0.tar, for 0:07"]
    with held(str(tmp_path)) as one:
        one.begin("joining")
        assert read_status(tmp_path).began != BEFORE["began"]
    path.write_text("{")
    with fails(ValueError, str(path)):
        read_status(tmp_path)
    path.unlink()
    with fails(ValueError, "status.json"):
        read_status(tmp_path)


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    with held(str(tmp_path)), fails(ValueError, str(tmp_path)), held(str(tmp_path)):
        pass
    with held(str(tmp_path)):
        pass
