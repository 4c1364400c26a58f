"""Work for the tests of engines: small, real, and as bad as its units ask for."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import attrs

from mobileclip.engines import FatalError, Listener, Work, WorkerResources
from mobileclip.storage import StorageError


@attrs.frozen(kw_only=True)
class Task:
    """A unit.

    Args:
        name: its name; what it does is its first part, up to the first `-`. Several, joined by `+`, are done in turn.
    """

    name: str


@attrs.frozen(kw_only=True)
class Counting(Work[Task, str]):
    """Writes a line into a file of a folder for every try of a unit, and does what its name says.

    Args:
        folder: where it writes.
        seconds: of a unit's making and of its finishing.
        num_bytes: of an entry, beside its text.
        error: what they raise when they load it.
        late_seconds: that all workers but the first take to load what they need.
    """

    folder: Path
    seconds: float = 0.0
    num_bytes: int = 0
    error: Exception | None = None
    late_seconds: float = 0.0

    def open(self, resources: WorkerResources) -> Counting.Worker:  # noqa: ARG002 - as `Work` does
        if self.error is not None:
            raise self.error
        if self.late_seconds:
            try:
                (self.folder / "first worker").touch(exist_ok=False)
            except FileExistsError:
                time.sleep(self.late_seconds)
        return self.Worker(self)

    def split(self, unit: Task) -> list[Task]:
        """Return the halves of a task that is several, joined by `+`."""
        names = unit.name.split("+")
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        return tasks(*("+".join(half) for half in halves)) if len(names) > 1 else []

    class Worker:
        def __init__(self, work: Counting) -> None:
            self.work = work

        def __call__(self, unit: Task, on_progress):
            path = self.work.folder / unit.name
            with path.open("a") as stream:
                stream.write("try\n")
            num_tries = len(path.read_text().splitlines())
            time.sleep(self.work.seconds)
            on_progress(1)
            for name in unit.name.split("+"):
                if name.startswith("interrupts"):
                    signal.raise_signal(signal.SIGINT)
                self._do(name, num_tries)
            return partial(self._finish, unit)

        def _do(self, name: str, num_tries: int) -> None:
            match name.partition("-")[0]:
                case "fails":
                    raise ValueError(f"it is\nof no use, at s3://key:secret@bucket/{name}")
                case "raises":
                    raise KeyError(name)
                case "away":
                    raise StorageError(f"the store of {name} is away")
                case "late" if num_tries == 1:
                    raise OSError(errno.EIO, "Input/output error", name)
                case "kills" | "stops" as kind:
                    os.kill(os.getpid(), signal.SIGKILL if kind == "kills" else signal.SIGSTOP)
                case "writes":
                    with Path("/dev/full").open("w") as stream:
                        stream.write(name)
                case "allocates":
                    bytearray(2**60)
                case "fatal":
                    raise FatalError("the disk is full")
                case "hangs":
                    time.sleep(600)

        def _finish(self, unit: Task) -> str:
            time.sleep(self.work.seconds)
            if unit.name.startswith("unwritten"):
                raise StorageError(f"{unit.name} is not what is read back")
            if unit.name.startswith("stuck"):
                time.sleep(600)
            if unit.name.startswith("full"):
                raise FatalError("the disk is full")
            return f"entry of {unit.name}{' ' * self.work.num_bytes}"


@attrs.define(kw_only=True, eq=False)
class Noting(Listener[Task, str]):
    """Notes what it is told."""

    entries: dict[str, str] = attrs.field(factory=dict)
    asides: dict[str, tuple[str, int]] = attrs.field(factory=dict)
    pauses: dict[str, list[float]] = attrs.field(factory=dict)
    reasons: dict[str, list[str]] = attrs.field(factory=dict)
    divisions: dict[str, int] = attrs.field(factory=dict)
    begun_by: list[tuple[str, str]] = attrs.field(factory=list)
    num_steps: int = 0
    threads: set[str] = attrs.field(factory=set)

    def begun(self, unit, worker):
        self.begun_by.append((unit.name, worker))

    def advanced(self, count):
        self.num_steps += count

    def finished(self, unit, entry):
        self.threads.add(threading.current_thread().name)
        assert unit.name not in self.entries, "it is finished once"
        self.entries[unit.name] = entry

    def failed(self, unit, reason, pause_seconds):
        self.pauses.setdefault(unit.name, []).append(pause_seconds)
        self.reasons.setdefault(unit.name, []).append(reason)

    def divided(self, unit, reason, parts):
        assert reason
        self.divisions[unit.name] = len(parts)

    def gave_up(self, unit, aside):
        assert aside.unit == unit.name
        self.asides[unit.name] = (aside.reason, aside.tries)


def tasks(*names: str) -> list[Task]:
    return [Task(name=name) for name in names]


def workers_of_this_process() -> list[int]:
    return sorted(child.pid for child in multiprocessing.active_children())
