"""Hostile and mistaken input, each tried in a process of its own that may not run code, hang or take endless memory.

A case makes its input in an empty folder, does with it what a user of the library would, and says what became of it.
The process that tries it is forked from one that has imported everything; it is watched by an audit hook, its address
space is bounded, and it is killed after a time. Forking needs Linux or macOS.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import attrs

Outcome = Literal["refused", "skipped", "accepted", "ran code", "hung", "out of memory", "traceback", "wrong"]
GOOD: tuple[Outcome, ...] = ("refused", "skipped", "accepted")
BAD: tuple[Outcome, ...] = ("ran code", "hung", "out of memory", "traceback", "wrong")

AREAS = (
    "checkpoints",
    "specs",
    "exports",
    "images",
    "tars",
    "arrays",
    "samples",
    "tables",
    "tokenizers",
    "servers",
    "commands",
)

# An error is read by a person.
MAX_MESSAGE = 2000
_CANARY = "mobileclip.canary"
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", _CANARY)
_LOOPBACK = ("127.", "::1", "localhost")
# Python's own search for libraries asks a compiler and the linker.
_KNOWN_PROGRAMS = ("ldconfig", "gcc", "cc", "ld", "objdump")

CANARY = f"__import__('sys').audit({_CANARY!r})"
"""Python that shows that it was run."""


class PickledCanary:
    """An object whose pickle, when it is read, shows that it was run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.audit, (_CANARY,)


@attrs.frozen(kw_only=True)
class Case:
    """One input.

    Args:
        name: unlike any other of its area.
        attempt: makes the input in the folder it is given, uses it as a user would, and returns `refused`, `skipped`
            (counted, by reason) or `accepted` (and right). A ValueError, OSError, ImportError or SystemExit(2) that
            comes out of it counts as refused, an AssertionError as wrong, and every other exception as a traceback.
        seconds: that it may take.
        num_bytes: that it may take in memory beyond what the process had.
        may_start: whether it may start programs, as commands with workers do.
    """

    name: str
    attempt: Callable[[Path], Outcome]
    seconds: float = 10.0
    num_bytes: int = 3 * 2**29
    may_start: bool = False


@attrs.frozen(kw_only=True)
class Tried:
    """What became of an input.

    Args:
        area: of the library.
        name: of the case.
        outcome: in a word or two.
        message: what the person was told, or what went wrong.
        seconds: that it took.
        num_bytes: the largest memory that its process had beyond that of the one it was forked from: a lower bound,
            since it has but some of that one's pages.
    """

    area: str
    name: str
    outcome: Outcome
    message: str
    seconds: float
    num_bytes: int


@attrs.frozen(kw_only=True)
class Finished:
    """What a command left behind: its exit status, and what it printed."""

    status: int
    output: str
    errors: str


def run_command(arguments: Sequence[str]) -> Finished:
    """Run the console command in this process."""
    from mobileclip.cli import main

    output, errors = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main(list(arguments))
        except SystemExit as leaving:
            if isinstance(leaving.code, str):
                print(leaving.code, file=errors)
            status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return Finished(status=status, output=output.getvalue(), errors=errors.getvalue())


def cases_of(area: str) -> list[Case]:
    """Return the cases of an area."""
    cases = list(importlib.import_module(f"tests.trials.{area}").cases())
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), f"{area}: two cases have one name"
    return cases


def try_all(area: str, cases: Sequence[Case]) -> Iterator[Tried]:
    """Yield what becomes of each case, one after another."""
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="trial-", ignore_cleanup_errors=True) as folder:
            yield _try(area, case, Path(folder))


def _try(area: str, case: Case, folder: Path) -> Tried:
    receiving, sending = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _in_child(case, folder, sending)
    os.close(sending)
    answer = _answer(receiving, started + case.seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - started
    num_bytes = max(0, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) - _resident())
    if answer is None:
        outcome: Outcome = "hung" if seconds >= case.seconds else "traceback"
        message = f"killed after {seconds:.1f} s" if outcome == "hung" else f"the process ended with {status}"
        return Tried(area=area, name=case.name, outcome=outcome, message=message, seconds=seconds, num_bytes=num_bytes)
    return Tried(area=area, name=case.name, seconds=seconds, num_bytes=num_bytes, **answer)


def _answer(receiving: int, deadline: float) -> dict[str, Any] | None:
    """Return what the child says, or None if it says nothing in time."""
    said = b""
    with os.fdopen(receiving, "rb", buffering=0) as stream:
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([stream], [], [], left)[0]:
                return None
            piece = stream.read(2**16)
            if not piece:
                break
            said += piece
            if said.endswith(b"\n"):
                break
    answer: dict[str, Any] | None = json.loads(said) if said else None
    return answer


def _in_child(case: Case, folder: Path, sending: int) -> NoReturn:
    os.setpgid(0, 0)
    os.chdir(folder)
    quiet = os.open(folder.parent / f"{folder.name}.printed", os.O_CREAT | os.O_RDWR)
    (folder.parent / f"{folder.name}.printed").unlink()
    for stream in (1, 2):
        os.dup2(quiet, stream)
    violations: list[str] = []
    sys.addaudithook(_watch(violations, may_start=case.may_start))
    limit = _address_space() + case.num_bytes
    if limit > case.num_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    outcome, message = _outcome(case, folder)
    if violations:
        outcome, message = "ran code", "; ".join(violations)
    os.write(sending, json.dumps({"outcome": outcome, "message": message[: 2 * MAX_MESSAGE]}).encode() + b"\n")
    os._exit(0)


def _outcome(case: Case, folder: Path) -> tuple[Outcome, str]:
    try:
        return case.attempt(folder), ""
    except AssertionError:
        return "wrong", traceback.format_exc(limit=-4)
    except MemoryError:
        return "out of memory", traceback.format_exc(limit=-4)
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
        told = bool(message.strip()) and len(message) <= MAX_MESSAGE
        return ("refused" if told else "traceback"), f"{type(error).__name__}: {message}"
    except SystemExit as leaving:
        return ("refused" if leaving.code in (1, 2) else "wrong"), f"exit status {leaving.code}"
    except BaseException:  # noqa: BLE001 - this is what is looked for
        return "traceback", traceback.format_exc(limit=-6)


def _watch(violations: list[str], *, may_start: bool) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _PROGRAMS:
            program = os.path.basename(str(arguments[0])) if arguments else ""  # noqa: PTH119 - bytes too
            if event == _CANARY or not (may_start or program in _KNOWN_PROGRAMS):
                violations.append(f"{event} {program}".strip())
        elif event in ("socket.connect", "socket.getaddrinfo"):
            host = arguments[1][0] if event == "socket.connect" else arguments[0]
            if isinstance(host, str) and not host.startswith(_LOOPBACK):
                violations.append(f"{event} {host}")

    return hook


def _address_space() -> int:
    """Return the bytes of this process's address space; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0
