"""A process that has imported the library once, and forks for every call: a process of its own in milliseconds.

What it is asked to call may be killed before a chosen operation on files, may end itself by a signal, and may start
processes: all that is left of it is ended with it. Forking needs Linux or macOS.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import Distribution
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import attrs

_FOLDERS = ("cli", "collections", "datasets.joining:join_images", "evaluation", "export", "recipes.finetuning")
_FOLDERS += ("reinforce", "training")
EVERYTHING = (
    *(f"mobileclip.{folder}" for folder in _FOLDERS),
    # What is imported where it is used, for half a second of a training; the last one for two seconds.
    *("cattrs.preconf.json", "rich.progress", "safetensors.torch", "tokenizers", "typeguard", "tyro:cli", "webdataset"),
    *(one for one in ("pandas", "pyarrow.parquet") if any(Distribution.discover(name=one.partition(".")[0]))),
    "torch._dynamo",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_APPENDING = os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_WRONLY
# What changes files, and which of its arguments is the folder that a path is relative to.
_CHANGES: dict[str, int | None] = dict.fromkeys(("os.rename", "os.mkdir", "os.link", "os.symlink"), 2)
_CHANGES |= {"os.remove": 1, "os.rmdir": 1, "os.truncate": None}
_KILL_AT_END = -1


@attrs.frozen(kw_only=True)
class Ended:
    """What became of a call.

    Args:
        status: exit status; the negative number of the signal that ended it; None if it took too long.
        output: what it printed, on both streams.
        operations: on files below the watched folder: what was done, to what.
    """

    status: int | None
    output: str
    operations: tuple[str, ...]


class Preloaded:
    """The process that forks.

    Args:
        modules: that it imports once; `folder:name` for a name of a folder.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._lock = threading.Lock()
        command = [sys.executable, "-W", "ignore", "-m", "tests.preloaded", *modules]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, text=True, env=environment, start_new_session=True, **pipes)

    def call(
        self,
        function: str,
        *arguments: object,
        folder: Path,
        watched: Path | None = None,
        kill_before: int = 0,
        seconds: float = 60.0,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Ended:
        """Call a function in a process of its own.

        Args:
            function: `module:name`.
            arguments: values of JSON.
            folder: that it works in.
            watched: operations on files below it are counted and can be killed before; None for none.
            kill_before: the number of the operation, from 1 on, that it is killed before; 0 for none, and -1 to be
                killed when the function has returned.
            seconds: that it may take.
            environment: variables that it has beside the others.
        """
        log = folder.parent / f"{folder.name}.called"
        watching = {"watched": str(watched) if watched else None, "kill_before": kill_before}
        asked = {"function": function, "seconds": seconds, "environment": dict(environment), **watching}
        status = self._asked(arguments=arguments, folder=str(folder), log=str(log), **asked)
        output, operations = (Path(f"{log}.{kind}") for kind in ("output", "operations"))
        said = output.read_text(encoding="utf-8", errors="replace")
        done = tuple(map(json.loads, operations.read_text(encoding="utf-8").splitlines()))
        output.unlink()
        operations.unlink()
        return Ended(status=status, output=said, operations=done)

    def start(self, *arguments: object, folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> Started:
        """Start what `python` does with arguments, in a group of its own, and go on.

        Args:
            arguments: of `python`.
            folder: that it works in.
            environment: variables that it has beside this process's.
        """
        log = Path(tempfile.mkdtemp()) / "log"
        for kind in ("output", "errors"):  # which may be asked for before the process has begun
            Path(f"{log}.{kind}").touch()
        asked = {"arguments": [*map(str, arguments)], "folder": str(folder), "environment": os.environ | environment}
        pid = self._asked(watched=None, seconds=None, log=str(log), **asked)
        assert pid is not None, "it was started"
        return Started(pid=pid, log=log)

    def _asked(self, **request: object) -> int | None:
        assert self._process.stdin is not None, "piped"
        assert self._process.stdout is not None, "piped"
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: int | None = json.loads(self._process.stdout.readline())
        return answer


class Started:
    """A process that was started, and can be asked what one of `subprocess.Popen` is asked.

    Args:
        pid: of it, and of its group.
        log: beside what it prints, and its status when it has ended.
    """

    def __init__(self, *, pid: int, log: Path) -> None:
        self.pid, self._log = pid, log
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the status, the negative number of a signal, or None while it runs."""
        if self.returncode is None and (status := Path(f"{self._log}.status")).exists():
            self.returncode = int(status.read_text(encoding="ascii"))
        return self.returncode

    def said(self) -> str:
        """Return what it has printed so far."""
        return Path(f"{self._log}.output").read_text(encoding="utf-8")

    def communicate(self, timeout: float = 600.0) -> tuple[str, str]:
        """Wait for the end, and return what it printed, and its errors.

        Raises:
            TimeoutExpired: if it takes longer.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        output, errors = (Path(f"{self._log}.{kind}") for kind in ("output", "errors"))
        return output.read_text(encoding="utf-8"), errors.read_text(encoding="utf-8")

    def send_signal(self, number: int) -> None:
        """Send a signal to the process alone, as long as it is there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def preloaded(*modules: str) -> Preloaded:
    """Return the process of this test session that has imported modules, by default all; it ends with the session.

    To fork a process of few modules takes milliseconds, one of all some tenths of a second.
    """
    with _ONE:
        return _preloaded(modules or EVERYTHING)


_ONE = threading.Lock()
_preloaded = cache(Preloaded)


def command(*arguments: str) -> None:
    """Run the console command, as a function to call."""
    from mobileclip.cli import main

    main(list(arguments))


def python(*arguments: str) -> None:
    """Do what Python does with these arguments, as a function to call: `-c CODE`, `-m MODULE` or a script, and others.

    What is about the start of Python itself, its flags or streams, wants a new one.
    """
    kind, *others = arguments
    if kind == "-c":
        code, *others = others
        sys.argv = ["-c", *others]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *others]
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))  # noqa: PTH100, PTH120 - links stay
        runpy.run_path(kind, run_name="__main__")


# The exit status of this process's program, once there is one.
_STATUS: list[int] = []


def _leave() -> None:
    """Exit when a program's threads and exit handlers are done: to free a thousand modules takes a second."""
    with contextlib.suppress(Exception):
        for status in _STATUS:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def _run_program(arguments: Sequence[str]) -> NoReturn:
    """Do what Python does with arguments, and end with its status."""
    try:
        python(*arguments)
        sys.exit()
    except SystemExit as leaving:
        _STATUS.append(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
        raise
    except Exception:
        _STATUS.append(1)
        raise


def _serve() -> None:
    atexit.register(_leave)  # the first one, which is called after all others
    gc.disable()  # what is imported is no garbage
    for module in sys.argv[1:]:
        folder, _, name = module.partition(":")
        imported = importlib.import_module(folder)
        if name:
            getattr(imported, name)  # a folder imports it when it is used
    if "mobileclip.registry" in sys.modules:
        sys.modules["mobileclip.registry"].has_others("model")  # what is installed is read once for all
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_started(request) if request["seconds"] is None else _tried(request)), flush=True)


def _started(request: dict[str, Any]) -> int:
    """Fork a process, and one that waits for it and writes down how it ends."""
    read, write = os.pipe()
    if os.fork() == 0:
        child = os.fork()
        if child == 0:
            os.close(write)  # whose other end is read to its end
            _in_child(request)
        os.write(write, str(child).encode())
        os.close(write)
        ended = Path(f"{request['log']}.ended")
        ended.write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), encoding="ascii")
        ended.rename(f"{request['log']}.status")
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        return int(said.read())


def _tried(request: dict[str, Any]) -> int | None:
    child = os.fork()
    if child == 0:
        _in_child(request)
    deadline = time.monotonic() + request["seconds"]
    if hasattr(os, "pidfd_open"):
        handle = os.pidfd_open(child)
        select.select([handle], [], [], request["seconds"])
        os.close(handle)
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if not ended[0]:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(ended[1])


def _in_child(request: dict[str, Any]) -> NoReturn:
    os.setpgid(0, 0)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    is_started = request["seconds"] is None
    output, errors, operations = (
        os.open(f"{request['log']}.{kind}", _APPENDING)
        for kind in ("output", "errors" if is_started else "output", "operations")
    )
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (errors, 2)):
        os.dup2(source, target)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - to the end of the process
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["mobileclip"]
    if request["watched"] is not None:
        _watch(os.path.abspath(request["watched"]), request["kill_before"], operations)  # noqa: PTH100 - links stay
    if is_started:  # signals are its own, not those of a copy of a command, and it ends as Python does
        importlib.import_module("mobileclip.terminal.interruption").heard.process = os.getpid()
        _run_program(request["arguments"])
    status = 99
    try:
        module, _, name = request["function"].partition(":")
        getattr(importlib.import_module(module), name)(*request["arguments"])
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - this is told
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        if request["kill_before"] == _KILL_AT_END:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(status)


def _watch(folder: str, kill_before: int, log: int) -> None:
    """Write down every operation that changes a file below a folder, and end the process before one of them."""
    process, count = os.getpid(), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITES:
                return
        elif event not in _CHANGES:
            return
        if os.getpid() != process or isinstance(arguments[0], int) or not arguments[0]:
            return
        path, place = os.fsdecode(arguments[0]), _CHANGES.get(event)
        if place is not None and arguments[place] >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[place]}"), path)  # noqa: PTH115, PTH118
        path = os.path.abspath(path)  # noqa: PTH100
        if not path.startswith(folder):
            return
        count += 1
        os.write(log, json.dumps(f"{event} {path.removeprefix(folder)}").encode() + b"\n")
        if count == kill_before:
            os.kill(process, signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    _serve()
