"""Commands on a disk that fills up while they write: a tmpfs of a few pages, which Linux lets a process mount.

Without the right to mount, no file may grow beyond a limit, which libraries see as a full disk too.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import resource
import shutil
import signal
import tempfile
from pathlib import Path

from tests.crash.world import SECONDS, Command
from tests.preloaded import Ended, preloaded
from tests.survives import Survival

PAGE = resource.getpagesize()
_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000  # CLONE_NEWNS and CLONE_NEWUSER
_PRIVATE, _AGAIN = 0x4000 | 0x40000, 0x20  # MS_REC with MS_PRIVATE, and MS_REMOUNT
_TEMPORARY = "tmp"
_OF_ONNX = ".ses"  # what ONNX Runtime keeps for itself
_CONSOLE = "tests.preloaded:command"
_TOLD = re.compile(r"no space left|file too large|make room|disk is full", re.IGNORECASE)


def run(command: Command, folder: Path, room: int) -> Ended:
    """Run a command in a folder on a disk with room for so many pages more; what it leaves is in the folder then."""
    after = folder.with_name(f"{folder.name}.after")
    ended = preloaded().call(
        "tests.crash.full:on_small_disk",
        *(str(folder), str(after), room, command.function, *command.arguments),
        folder=folder,
        seconds=SECONDS,
        environment={"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home" / "cache")},
    )
    assert after.is_dir(), ended.output
    shutil.rmtree(folder)
    after.rename(folder)
    return ended


def pages_written(before: Path, after: Path) -> int:
    """Return how many pages the files have that are not in a folder of before, or are newer there."""
    old = {path.relative_to(before): path.stat().st_mtime_ns for path in before.rglob("*")}
    files = {path.relative_to(after): path.stat() for path in after.rglob("*") if path.is_file()}
    return sum(-(-one.st_size // PAGE) for path, one in files.items() if old.get(path) != one.st_mtime_ns)


def problems(survival: Survival, room: int) -> list[str]:
    """Return what is wrong when a command finds the disk full after so many pages, and is run again with more room."""
    command, expected, work = survival.command, survival.expected, survival.fresh()
    before = command.contents(work)
    ended = run(command, work, room)
    spoiled = [path.name for path in (work / _TEMPORARY).iterdir() if path.name != _OF_ONNX]
    shutil.rmtree(work / _TEMPORARY)
    left = command.contents(work)
    if ended.status == 0:  # there was room enough
        # What a person's own folders would remember for later may be missing.
        missing = [name for name, one in expected.items() if left.get(name) != one and name[:5] != "home/"]
        return [f"with {room} pages of room: not as it should be: {missing}"] if missing else []
    is_console = command.function == _CONSOLE
    is_traced = is_console and "Traceback" in ended.output
    is_told = not is_traced and any(_TOLD.search(line) for line in ended.output.splitlines()[-1:])
    changed = [name for name in before if left.get(name) not in (before[name], expected.get(name))]
    found = {
        f"exit status {ended.status}: {ended.output[-600:]}": is_console and ended.status not in (1, 2),
        f"no line that says what is wrong: {ended.output[-900:]}": not is_told,
        f"left in TMPDIR: {spoiled}": spoiled,
        f"neither old nor new: {changed}": changed,
        f"temporary files below {work}": [*work.rglob("*.tmp")],
    }
    full = f"full after {room} pages"
    return [f"{full}: {what}" for what, is_so in found.items() if is_so] + survival.again(full)


def on_small_disk(folder: str, after: str, room: int, function: str, *arguments: str) -> None:
    """Do what a command does, and copy what it leaves; for a process of its own, which ends as the command does."""
    place = Path(folder)
    is_mounted = _mounted(place, after)
    (place / _TEMPORARY).mkdir()
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        shutil.copytree(place, after, symlinks=True)
        os._exit(status if status >= 0 else 128 - status)
    os.chdir(place)
    os.environ["TMPDIR"] = tempfile.tempdir = str(place / _TEMPORARY)
    if is_mounted:
        disk = os.statvfs(place)
        _mount(place, _AGAIN, (disk.f_blocks - disk.f_bfree + room) * disk.f_frsize)
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # The first page of what the command prints, too, is in a file.
        resource.setrlimit(resource.RLIMIT_FSIZE, ((room + 1) * PAGE, resource.RLIM_INFINITY))
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(*arguments)


def _mounted(place: Path, spare: str) -> bool:
    """Put a folder on a disk of its own, and return whether that could be done."""
    user, group = os.getuid(), os.getgid()
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "unshare") or library.unshare(_NEW_MOUNTS | (_NEW_USER if user else 0)):
        return False
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    if library.mount(b"none", b"/", None, _PRIVATE, None):
        return False
    shutil.copytree(place, spare, symlinks=True)
    _mount(place, 0, 2**30)
    shutil.copytree(spare, place, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(spare)
    return True


def _mount(place: Path, flags: int, num_bytes: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags, f"size={num_bytes}".encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))
