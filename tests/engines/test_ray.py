"""A Ray cluster of several machines, as far as Ray can tell: what fails there, and what dies."""

from __future__ import annotations

import random
import re
import sys
import time
from functools import partial

import pytest

from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.engines import FatalError, FunctionWork, InlineEngine, LocalEngine, RayEngine, Retries, held
from mobileclip.extras import install
from mobileclip.reinforce import ReinforcementSpec, reinforce
from mobileclip.serialization import from_json
from tests.collections.pictures import assert_same_rows, draw, pack
from tests.contracts.engines import check_engine
from tests.datasets.joining.world import Data, files_of
from tests.engines.works import Counting, Noting, tasks
from tests.errors import fails
from tests.preloaded import preloaded
from tests.reinforce.program import write_spec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")
AT_ONCE = Retries(pause_seconds=0.0)
_TWICE = Retries(tries=2, pause_seconds=0.0)


def run(engine, folder, names, *, listener=None, **choices):
    folder.mkdir(exist_ok=True)
    listener = listener or Noting()
    engine.run(Counting(folder=folder, **choices), tasks(*names), listener)
    return listener


@pytest.mark.slow
def test_join_writes_what_one_process_writes(ray_cluster, tmp_path):
    data = Data(tmp_path)
    alone = data.join()
    report = data.join(engine=RayEngine(max_workers=2, retries=AT_ONCE), output=str(tmp_path / "ray"))
    assert report.joined == alone.joined == 20
    assert contents_of(tmp_path / "ray") == contents_of(data.output)


@pytest.mark.slow
def test_an_index_holds_what_one_process_finds(ray_cluster, tmp_path, telling_file):
    for number in range(36):
        draw(tmp_path / "photos" / f"{number}.png", number)
    pack(tmp_path / "photos" / "00.tar", 50, 51, 52)
    options = IndexOptions(precision="float32", show_progress=False)
    alone, shared = (
        Collection.create(tmp_path / name, ModelSource(checkpoint=str(telling_file))) for name in ("alone", "shared")
    )
    expected = alone.add(tmp_path / "photos", options=options)
    engine = RayEngine(max_workers=2, retries=AT_ONCE)
    report = shared.add(tmp_path / "photos", options=options, engine=engine)
    assert report == expected
    assert report.num_encoded == 39
    assert_same_rows(shared, alone)


def contents_of(output) -> dict[str, bytes]:
    """What stands in an output, but for what says where it is."""
    return {name: content for name, content in files_of(output).items() if name != "join.json"}


@pytest.mark.slow
def test_an_actor_that_still_loads_for_one_work_does_not_do_the_next_with_it(ray_cluster, tmp_path):
    names = [str(number) for number in range(40)]
    with RayEngine(max_workers=2, retries=AT_ONCE).reuse_workers() as kept:
        run(kept, tmp_path / "one", ["a", "b"], late_seconds=2.0)
        run(kept, tmp_path / "next", names, seconds=0.1)
    assert {path.name for path in (tmp_path / "next").iterdir()} == set(names)


@pytest.mark.slow
def test_it_keeps_the_contract(ray_cluster):
    """With one actor: each takes seconds to start, and three runs are ended, and one is killed three times."""
    check_engine(RayEngine(max_workers=1, retries=AT_ONCE), kills=True, seconds=240.0)


@pytest.fixture(scope="module")
def two(ray_cluster):
    """An engine of two actors, who stay from test to test until one ends a run.

    Two tries: what a unit that kills its actor takes along, because its entry was not told yet, needs another one.
    """
    with RayEngine(max_workers=2, retries=_TWICE).reuse_workers() as kept:
        yield kept


def test_two_actors_do_what_one_process_does(two, tmp_path):
    names = [*(f"good-{number}" for number in range(20)), "away-0", "late-0", "unwritten-0", "raises-0", "fails-0"]
    told = run(two, tmp_path / "ray", names)
    alone = run(InlineEngine(device="cpu", retries=_TWICE), tmp_path / "inline", names)
    assert (told.entries, told.asides, told.num_steps) == (alone.entries, alone.asides, alone.num_steps)


def test_steps_are_told_while_a_unit_is_made(two, tmp_path):
    seen = []

    class Looking(Noting):
        def advanced(self, count):
            seen.append((count, len(self.entries)))

    run(two, tmp_path / "work", ["good-0"], listener=Looking(), seconds=1.0)
    assert seen == [(1, 0)]


def test_a_unit_that_kills_its_actor_is_set_aside_alone(two, tmp_path):
    good = [f"good-{number}" for number in range(6)]
    assert_killed(run(two, tmp_path / "work", [*good[:3], "kills-0", *good[3:]]), good)


def assert_killed(told, good):
    ((name, (reason, tries)),) = told.asides.items()
    assert (set(told.entries), name, tries) == (set(good), "kills-0", 2)
    assert "ActorDiedError" in reason


@pytest.mark.parametrize(
    ("name", "said"),
    [("full-0", "the disk is full"), pytest.param("writes-0", "the disk is full", marks=pytest.mark.slow)],
)
def test_a_full_disk_ends_the_run(two, tmp_path, name, said):
    """The first of them ends its actor, the second finds the other one."""
    with pytest.raises(FatalError, match=said):
        run(two, tmp_path / "work", [name])


@pytest.mark.slow
def test_a_signal_ends_a_command_as_it_does_without_ray(tmp_path):
    """In a process of its own: a cluster is started there, and Ray takes SIGTERM for itself."""
    import ray  # noqa: F401

    code = (
        "import signal\nfrom mobileclip.engines import RayEngine\n"
        "from mobileclip.terminal.interruption import interruptible\n"
        "with interruptible('index', 'all is kept'), RayEngine().channels():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
    )
    process = preloaded().start("-c", code, folder=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert errors.endswith("index: interrupted by SIGTERM; all is kept\n")


@pytest.mark.slow
def test_an_actor_that_is_stuck_is_ended_and_its_unit_set_aside(ray_cluster, tmp_path):
    told = run(
        RayEngine(max_workers=1, retries=Retries(tries=1), progress_seconds=90.0),
        tmp_path / "work",
        ["good-0", "hangs-0"],
    )
    assert told.entries.keys() == {"good-0"}
    assert told.asides["hangs-0"] == ("its worker made no progress for 90 s", 1)


@pytest.mark.slow
def test_a_cluster_without_room_is_told_and_one_that_is_not_ready(ray_cluster, tmp_path):
    for engine, choices in (
        (RayEngine(cpus_per_worker=64, progress_seconds=2.0), {}),
        (RayEngine(progress_seconds=8.0), {"late_seconds": 60.0}),
    ):
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / "work" / "first worker").touch()
        with fails(ValueError, f"{engine.progress_seconds:g}"):
            run(engine, tmp_path / "work", ["good-0"], **choices)


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"the engine 'ray' needs ray: `{install('ray')}`")):
        RayEngine().run(FunctionWork(function=str), tasks("one"), Noting())


@pytest.mark.parametrize("job", ["join", "reinforcement"])
def test_a_second_driver_is_refused_before_it_joins_the_cluster(monkeypatch, tmp_path, job):
    """Joining takes seconds, and may start a cluster; without Ray it fails."""
    monkeypatch.setitem(sys.modules, "ray", None)
    if job == "join":
        data = Data(tmp_path)
        output, begin = data.output, partial(data.join, engine=RayEngine())
    else:
        write_spec(tmp_path, num_shards=1, num_samples=1)
        spec = from_json((tmp_path / "spec.json").read_text(), ReinforcementSpec)
        output, begin = spec.output, partial(reinforce, spec, engine=RayEngine())
    with held(str(output)), fails(ValueError, str(output)):
        begin()
    with pytest.raises(ModuleNotFoundError):
        begin()


class Removing(Noting):
    """Takes a machine away once its actor has begun and, maybe, has finished what nobody has fetched yet."""

    def __init__(self, cluster, node, *, seconds=0.0, graceful=False):
        super().__init__()
        self.cluster, self.node, self.seconds, self.graceful, self.removed = cluster, node, seconds, graceful, False
        self.lost_units = []

    def lost(self, unit, reason):
        assert "machine" in reason
        self.lost_units.append(unit.name)

    def finished(self, unit, entry):
        super().finished(unit, entry)
        theirs = [name for name, worker in self.begun_by if self.node.node_id[:8] in worker]
        if self.removed:
            return
        if set(theirs) <= set(self.entries):
            time.sleep(0.2)  # until its actor has loaded what it needs
            return
        time.sleep(self.seconds)
        self.removed = True
        self.cluster.remove_node(self.node, allow_graceful=self.graceful)


@pytest.mark.parametrize("graceful", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_machine_that_goes_is_no_failed_try_of_the_units_that_it_had(ray_cluster, tmp_path, graceful):
    """Preempted machines say goodbye; one that breaks is missed after seconds. Large entries go with their machine."""
    (second,) = ray_cluster.worker_nodes
    names = [f"good-{number}" for number in range(30)]
    told = Removing(ray_cluster, second, seconds=1.0, graceful=graceful)
    engine = RayEngine(max_workers=2, retries=Retries(tries=1))
    try:
        run(engine, tmp_path / "work", names, listener=told, seconds=0.05, num_bytes=10**6)
    finally:
        ray_cluster.add_node(num_cpus=1)
    assert told.removed
    assert told.lost_units
    assert (set(told.entries), told.asides, told.reasons) == (set(names), {}, {})
    tries = {name: len((tmp_path / "work" / name).read_text().splitlines()) for name in names}
    assert {name for name, count in tries.items() if count > 1} <= set(told.lost_units)


@pytest.mark.slow
def test_five_thousand_units_end_alike_on_every_engine(ray_cluster, tmp_path):
    """1 % fail, 3 kill their worker; in this process, nothing may."""
    rng = random.Random(0)
    names = [f"{'fails' if number % 100 == 7 else 'good'}-{number}" for number in range(4997)]
    names += [f"kills-{number}" for number in range(3)]
    rng.shuffle(names)
    good = {name for name in names if name.startswith("good")}
    told = {
        "inline": run(
            InlineEngine(device="cpu", retries=AT_ONCE),
            tmp_path / "inline",
            [name for name in names if not name.startswith("kills")],
        ),
        "local": run(LocalEngine(num_workers=2, devices=("cpu",), retries=AT_ONCE), tmp_path / "local", names),
        "ray": run(RayEngine(max_workers=2, retries=AT_ONCE), tmp_path / "ray", names),
    }
    for name, one in told.items():
        assert set(one.entries) == good, name
        assert {unit: tries for unit, (_, tries) in one.asides.items()} == {
            unit: 3 if unit.startswith("kills") else 1
            for unit in set(names) - good
            if name != "inline" or not unit.startswith("kills")
        }, name


@pytest.mark.slow
def test_a_unit_that_kills_its_actor_is_set_aside_and_a_machine_that_goes_costs_no_unit(ray_cluster, tmp_path):
    """This test comes last: the machine stays away."""
    (second,) = ray_cluster.worker_nodes
    names = [f"good-{number}" for number in range(40)]
    told = Removing(ray_cluster, second)
    engine = RayEngine(max_workers=2, retries=_TWICE)
    run(engine, tmp_path / "work", [*names, "kills-0"], listener=told, seconds=0.05)
    assert told.removed
    assert_killed(told, names)
