"""Contract suite of engines: units that work, fail, kill their worker, or end the run."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs

from mobileclip.engines import Engine, FatalError, Listener, SetAside, Work, WorkerResources
from mobileclip.storage import StorageError
from tests.errors import fails


def check_engine(engine: Engine, *, kills: bool = False, seconds: float = 60.0) -> None:
    """Check that an engine does every unit once, tries failing ones again, and names those that it gives up.

    What fails of something that may pass is tried again, what is broken is not; either is set aside by its name, with
    the reason and the number of tries, and the others are done. Parts of a unit that keeps failing are tried in its
    place. Where workers cannot load what they need, where a unit says that no other would do, and where the listener
    raises, the run ends within seconds, with that error. A unit that kills its worker is set aside with the reason, and
    costs no other unit anything. An engine that is kept does one kind of work after another.

    Args:
        engine: that tries a unit three times, at once (`Retries(tries=3, pause_seconds=0.0)`), in processes that find
            this module.
        kills: whether workers are processes of their own, so that one of them may be killed.
        seconds: that the end of a run may take, where it ends before its time.

    Raises:
        AssertionError: if something of it is not so.
    """
    for num_units, most in ((0, 1), (1, 1), (3, 3)):
        assert 1 <= engine.most_workers(num_units) <= most
    with tempfile.TemporaryDirectory() as folder, engine.reuse_workers() as kept:
        _check_ends(kept, Path(folder))
        _check_parts(kept, Path(folder))
        _check_broken_off(kept, Path(folder), seconds)
        told = _run(kept, Path(folder, "after"), ["good-0", "good-1"])
        assert told.entries.keys() == {"good-0", "good-1"}, "no other work is done after one that broke off"
        if kills:
            _check_killed(kept, Path(folder))
        assert not _run(engine, Path(folder), []).entries


@attrs.frozen(kw_only=True)
class _Unit:
    name: str


@attrs.frozen(kw_only=True)
class _Trying(Work[_Unit, str]):
    """Writes a line for each try, and does what the first part of the unit's name says; several are joined by `+`."""

    folder: Path
    is_broken: bool = False

    def open(self, resources: WorkerResources) -> Callable[[_Unit, Callable[[int], None]], Callable[[], str]]:  # noqa: ARG002
        if self.is_broken:
            raise ValueError("the weights are not there")
        return self._make

    def split(self, unit: _Unit) -> Sequence[_Unit]:
        parts = unit.name.split("+")
        return [_Unit(name=part) for part in parts] if len(parts) > 1 else ()

    def _make(self, unit: _Unit, on_progress: Callable[[int], None], /) -> Callable[[], str]:
        path = self.folder / unit.name
        with path.open("a", encoding="utf-8") as stream:
            stream.write("try\n")
        on_progress(1)
        for name in unit.name.split("+"):
            _do(name.partition("-")[0], path.read_text(encoding="utf-8").count("\n"))
        return partial(_finished, unit.name)


def _do(kind: str, num_tries: int) -> None:
    match kind:
        case "broken":
            raise ValueError("its picture is damaged")
        case "odd":
            raise KeyError("its key is odd")
        case "away":
            raise StorageError("the store is away")
        case "late" if num_tries == 1:
            raise OSError(errno.EIO, "the disk is slow")
        case "fatal":
            raise FatalError("the disk is full")
        case "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        case "slow":
            time.sleep(0.05)


def _finished(name: str) -> str:
    if name.startswith("unread"):
        raise StorageError("it is not what was written")
    return f"entry of {name}"


@attrs.define(kw_only=True, eq=False)
class _Told(Listener[_Unit, str]):
    """Notes what it is told."""

    entries: dict[str, str] = attrs.field(factory=dict)
    asides: dict[str, SetAside] = attrs.field(factory=dict)
    begun_by: list[str] = attrs.field(factory=list)
    num_steps: int = 0
    raises: bool = False

    def begun(self, unit: _Unit, worker: str) -> None:
        assert worker, f"{unit.name} is begun by a worker without a name"
        self.begun_by.append(unit.name)

    def advanced(self, count: int) -> None:
        self.num_steps += count

    def finished(self, unit: _Unit, entry: str) -> None:
        if self.raises:
            raise OSError(errno.ENOSPC, "no room for the manifest")
        assert unit.name not in self.entries, f"{unit.name} is finished twice"
        self.entries[unit.name] = entry

    def gave_up(self, unit: _Unit, aside: SetAside) -> None:
        assert aside.unit == unit.name, f"{unit.name} is set aside as {aside.unit}"
        self.asides[unit.name] = aside


def _run(engine: Engine, folder: Path, names: Sequence[str], *, raises: bool = False, is_broken: bool = False) -> _Told:
    folder.mkdir(exist_ok=True, parents=True)
    told = _Told(raises=raises)
    engine.run(_Trying(folder=folder, is_broken=is_broken), [_Unit(name=name) for name in names], told)
    return told


def _check_ends(engine: Engine, folder: Path) -> None:
    good = [f"good-{number}" for number in range(6)]
    told = _run(engine, folder / "ends", ["away-0", "late-0", "odd-0", "broken-0", "unread-0", *good])
    assert told.entries == {name: f"entry of {name}" for name in (*good, "late-0")}
    assert told.num_steps >= len(told.entries)
    wanted = {
        "away-0": ("the store is away", 3),
        "odd-0": ("KeyError: 'its key is odd'", 3),
        "unread-0": ("it is not what was written", 3),
        "broken-0": ("its picture is damaged", 1),
    }
    assert {name: (aside.reason, aside.tries) for name, aside in told.asides.items()} == wanted
    tries_of = dict.fromkeys(good, 1) | {"late-0": 2} | {name: tries for name, (_, tries) in wanted.items()}
    assert Counter(told.begun_by) == tries_of
    for name, tries in tries_of.items():
        assert (folder / "ends" / name).read_text(encoding="utf-8").count("\n") == tries, name


def _check_parts(engine: Engine, folder: Path) -> None:
    told = _run(engine, folder / "parts", ["good-0+broken-1+good-2"])
    assert (set(told.asides), set(told.entries)) == ({"broken-1"}, {"good-0", "good-2"})


def _check_broken_off(engine: Engine, folder: Path, seconds: float) -> None:
    # More than can be done in the time.
    count = round(20 * (seconds + 1) * engine.most_workers(10**6))
    names = [f"slow-{number}" for number in range(count)]
    for first, error, said, choices in (
        ("fatal-0", FatalError, "the disk is full", {}),
        ("good-0", OSError, "no room for the manifest", {"raises": True}),
        ("good-0", ValueError, "the weights are not there", {"is_broken": True}),
    ):
        started = time.monotonic()
        with fails(error, said):
            _run(engine, folder / said, [first, *names], **choices)
        assert time.monotonic() - started < seconds, said


def _check_killed(engine: Engine, folder: Path) -> None:
    good = [f"slow-{number}" for number in range(12)]
    told = _run(engine, folder / "killed", [*good[:6], "kills-0", *good[6:]])
    assert (set(told.asides), set(told.entries)) == ({"kills-0"}, set(good))
    assert told.asides["kills-0"].tries == 3
    assert "worker" in told.asides["kills-0"].reason
