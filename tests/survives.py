"""A command that is ended again and again, and run once more, leaves what it leaves when nobody touches it.

What runs as processes of its own is a `Program`. `tests.crash` kills commands before an operation on files.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import attrs

from tests.crash.compared import contents
from tests.descendants import descendants, kill_all, wait_until_gone
from tests.preloaded import Ended
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]
PORTS = itertools.count(20_000 + 20 * (os.getpid() % 500))
SECONDS = 600.0


@attrs.frozen(kw_only=True)
class Moment:
    """When a run is ended, and how.

    Args:
        operation: before this operation on files, from 1 on; -1 when it has returned; None to go by progress.
        more: progress that is waited for; None to count the seconds from the start.
        seconds: that pass then.
        name: of the signal.
        alone: whether the first process alone gets it, with which the others are to end; SIGKILL else takes all.
    """

    operation: int | None = None
    more: int | None = None
    seconds: float = 0.0
    name: str = "SIGKILL"
    alone: bool = False

    @classmethod
    def drawn(
        cls, count: int, seed: int, *, more: tuple[int, int], seconds: float, names: Sequence[str] = ("SIGKILL",)
    ) -> list[Moment]:
        """Return random moments: after progress between two bounds and up to so many seconds; every other one alone."""
        rng, moments = random.Random(seed), []
        for number in range(count):
            waited, name = {"more": rng.randint(*more), "seconds": rng.uniform(0, seconds)}, rng.choice(names)
            moments.append(cls(**waited, name=name, alone=name == "SIGKILL" and number % 2 == 0))
        return moments


class Command(Protocol):
    """What is ended: it fills a folder, runs there, and says what of the folder counts."""

    def make(self, folder: Path) -> None: ...
    def run(self, folder: Path, moment: Moment | None = None) -> Ended: ...
    def contents(self, folder: Path) -> Mapping[str, Any]: ...


@attrs.frozen(kw_only=True)
class Program:
    """A command that runs as processes of its own.

    Args:
        line: behind `python`; `{port}` is a new one each time.
        prepare: makes its input in an empty folder.
        progress: how far a folder is.
        most: progress that a moment is not later than, so that the run is still at its work.
        counted: of the name of a file or folder: whether it is compared.
        read: returns what is compared.
        keeps: whether progress is for good, and no checkpoint is gone back to.
        ends_by_itself: whether its processes end with the first one; Ray's live on for minutes, and are killed.
    """

    line: tuple[str, ...]
    prepare: Callable[[Path], object]
    progress: Callable[[Path], int]
    most: int
    counted: str = ""
    read: Callable[[Path], Mapping[str, Any]] = contents
    keeps: bool = True
    ends_by_itself: bool = True

    def make(self, folder: Path) -> None:
        """Fill an empty folder."""
        self.prepare(folder)

    def contents(self, folder: Path) -> Mapping[str, Any]:
        """Return what counts."""
        return {name: one for name, one in self.read(folder).items() if re.search(self.counted, name)}

    def run(self, folder: Path, moment: Moment | None = None) -> Ended:
        """Run it to its end, or to a moment.

        Raises:
            AssertionError: if it ends before the moment, loses what was done, or leaves a process behind.
        """
        begun, port = self.progress(folder), str(next(PORTS))
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with (folder.parent / "output.txt").open("w+", encoding="utf-8", errors="replace") as log:
            command = [sys.executable, *(word.replace("{port}", port) for word in self.line)]
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            process = subprocess.Popen(command, cwd=folder, env=environment, text=True, **options)
            below: set[int] = set()
            try:
                if moment is not None:
                    self._wait(process, folder, moment, begun)
                    below = descendants(process.pid)
                    self._end(process, below, moment)
                process.wait(SECONDS)
                wait_until_gone(below)
            finally:
                kill_all(process)
            log.seek(0)
            output = log.read()
        assert not self.keeps or self.progress(folder) >= begun, f"something that was done is lost: {output[-3000:]}"
        return Ended(status=process.returncode, output=output, operations=())

    def _wait(self, process: subprocess.Popen[str], folder: Path, moment: Moment, begun: int) -> None:
        if moment.more is not None:
            target = min(begun + moment.more, self.most)
            wait_for(
                lambda: process.poll() is not None or self.progress(folder) >= target, seconds=SECONDS, every=0.003
            )
        time.sleep(moment.seconds)

    def _end(self, process: subprocess.Popen[str], below: set[int], moment: Moment) -> None:
        if process.poll() is not None:
            return
        if moment.name != "SIGKILL":
            os.killpg(process.pid, signal.Signals[moment.name])
            return
        _kill(process.pid, *(() if moment.alone else below))
        if not self.ends_by_itself:
            time.sleep(moment.seconds)  # to write what they can
            _kill(*below)


def _kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@attrs.frozen(kw_only=True)
class Survival:
    """A command whose input is made, and that was run once to its end.

    Args:
        command: that is ended.
        root: with a copy of its input, and the folder that it works in, always the same one.
        changes: what a person does to the folder after each run that is ended, by its number.
        expected: what it leaves, undisturbed.
        operations: that it does on files, in order.
    """

    command: Command
    root: Path
    changes: Callable[[Path, int], object]
    expected: Mapping[str, Any]
    operations: tuple[str, ...]

    @classmethod
    def of(
        cls, command: Command, root: Path, *, changes: Callable[[Path, int], object] = lambda *_: None, count: int = 0
    ) -> Survival:
        """Make the input below an empty folder, and run the command once, after so many changes."""
        work = root / "work"
        work.mkdir(parents=True)
        command.make(work)
        shutil.copytree(work, root / "input", symlinks=True)
        for number in range(count):
            changes(work, number)
        ended = command.run(work)
        assert ended.status == 0, ended.output
        expected = command.contents(work)
        return cls(command=command, root=root, changes=changes, expected=expected, operations=ended.operations)

    @property
    def points(self) -> range:
        """The moments: before each operation, and after the last one, when the command has returned."""
        return range(1, len(self.operations) + 2)

    def at(self, point: int) -> Moment:
        """Return one of these moments."""
        return Moment(operation=-1 if point > len(self.operations) else point)

    def fresh(self) -> Path:
        """Return the folder with the input, and nothing else."""
        work = self.root / "work"
        shutil.rmtree(work)
        shutil.copytree(self.root / "input", work, symlinks=True)
        return work

    def problems(self, *moments: Moment) -> list[str]:
        """Return what is wrong when the command is ended at moments and then run to its end; empty if nothing is."""
        work, found = self.fresh(), []
        for number, moment in enumerate(moments):
            ended = self.command.run(work, moment)
            if ended.status == 0 or (ended.status != -signal.SIGKILL and moment.name == "SIGKILL"):
                found.append(f"it was not ended (status {ended.status}): {ended.output[-300:]}")
            self.changes(work, number)
        where = ", ".join(map(self._told, moments))
        return [f"ended {where}: {one}" for one in found] + self.again(f"ended {where}")

    def again(self, what: str) -> list[str]:
        """Run the command once more, and return what is wrong then; `what` says what was done to it before."""
        again, found = self.command.run(self.root / "work"), []
        if again.status != 0 or "Traceback" in again.output:
            found.append(f"{what}: run again, it ended with {again.status}: {again.output[-600:]}")
        return found + self.differences(what)

    def differences(self, what: str) -> list[str]:
        """Return what differs from an undisturbed run; `what` says what was done to the command before."""
        after, expected = self.command.contents(self.root / "work"), self.expected
        found = {
            "left behind": after.keys() - expected.keys(),
            "missing": expected.keys() - after.keys(),
            "different": {name for name in after.keys() & expected.keys() if after[name] != expected[name]},
        }
        return [f"{what}: {problem}: {sorted(names)}" for problem, names in found.items() if names]

    def _told(self, moment: Moment) -> str:
        if moment.operation is None:
            return f"by {moment.name} after {moment.more} more and {moment.seconds:.2f} s"
        return "when it had returned" if moment.operation < 0 else f"before {self.operations[moment.operation - 1]}"


def survives(command: Command, moments: Sequence[Moment], root: Path, **changes: Callable[[Path, int], object]) -> None:
    """End a command at moments, one run after the other, finish it, and compare; see `Survival`.

    Raises:
        AssertionError: if anything is other than after an undisturbed run.
    """
    survival = Survival.of(command, root / "survival", count=len(moments), **changes)
    assert survival.expected
    assert not (found := survival.problems(*moments)), found
