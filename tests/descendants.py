"""The processes below one, as Linux knows them. Imports nothing slow: children that tests start import it too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.waiting import wait_for

if TYPE_CHECKING:
    from tests.preloaded import Started


def descendants(pid: int) -> set[int]:
    """Return the processes below one, by what Linux knows of them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, above = set[int](), [pid]
    while above:
        below = children.get(above.pop(), [])
        found.update(below)
        above += below
    return found


def environment_of(pid: int) -> bytes:
    """Return the variables that a process was started with, each between two zero bytes."""
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


def wait_until_gone(pids: set[int]) -> None:
    """Wait until processes have ended."""
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def kill_all(process: subprocess.Popen[str] | Started) -> None:
    """Kill a program with all that it has started; its numbers are others' when it has ended."""
    if process.poll() is None:
        for pid in {*descendants(process.pid), process.pid}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.communicate()


def hang(path: Path | str) -> None:
    """Start a process, write both their numbers into a file, and never end."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    part = Path(f"{path}.part")
    part.write_text(f"{os.getpid()} {child.pid}")
    part.rename(path)
    time.sleep(600)


def fail() -> None:
    """Say something and fail."""
    print("said before")
    raise RuntimeError("no room")
