"""A command that is killed before one operation on files, run again, and compared with one that nobody touched."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import attrs

from tests.crash.compared import contents
from tests.crash.world import Command


@attrs.frozen(kw_only=True)
class Crashes:
    """A command whose input is made, and that was run once to its end.

    Args:
        command: that is killed.
        root: with a copy of its input, and the folder that it works in, always the same one.
        expected: what it leaves, undisturbed.
        operations: that it does on files, in order.
    """

    command: Command
    root: Path
    expected: dict[str, str]
    operations: tuple[str, ...]

    @classmethod
    def of(cls, command: Command, root: Path) -> Crashes:
        """Make the input below an empty folder, and run the command once."""
        work = root / "work"
        work.mkdir(parents=True)
        command.make(work)
        shutil.copytree(work, root / "input", symlinks=True)
        ended = command.run(work)
        assert ended.status == 0, ended.output
        return cls(command=command, root=root, expected=contents(work), operations=ended.operations)

    @property
    def points(self) -> range:
        """The moments: before each operation, and after the last one, when the command has returned."""
        return range(1, len(self.operations) + 2)

    def problems(self, point: int) -> list[str]:
        """Return what is wrong when the command is killed at a moment and run again; empty if nothing is."""
        work = self.root / "work"
        shutil.rmtree(work)
        shutil.copytree(self.root / "input", work, symlinks=True)
        is_last = point > len(self.operations)
        killed = self.command.run(work, kill_before=-1 if is_last else point)
        again = self.command.run(work)
        found = []
        if killed.status != -signal.SIGKILL:
            found.append(f"it was not killed (status {killed.status}): {killed.output[-300:]}")
        if again.status != 0:
            found.append(f"run again, it ended with {again.status}: {again.output[-600:]}")
        if "Traceback" in again.output:
            found.append(f"a traceback: {again.output[-600:]}")
        after = contents(work)
        if more := sorted(after.keys() - self.expected.keys()):
            found.append(f"left behind: {more}")
        if missing := sorted(self.expected.keys() - after.keys()):
            found.append(f"missing: {missing}")
        if others := sorted(name for name in after.keys() & self.expected.keys() if after[name] != self.expected[name]):
            found.append(f"different: {others}")
        where = "when it had returned" if is_last else f"before {self.operations[point - 1]}"
        return [f"killed at {point} of {self.points[-1]}, {where}: {one}" for one in found]
