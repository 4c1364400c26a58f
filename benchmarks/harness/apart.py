"""A call in a process of its own: its memory and settings are gone with it, and so is all that it started."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from mobileclip.storage import printable
from mobileclip.terminal.interruption import leave_to_parent

Result = TypeVar("Result")


class LostProcessError(RuntimeError):
    """A process that failed or died; the message says which."""


def in_own_process(function: Callable[..., Result], *arguments: Any, log: Path | None = None) -> Result:
    """Return what a function returns, called in a fresh process in a session of its own.

    Args:
        function: of a module, so that the process finds it.
        arguments: can be pickled.
        log: the file that gets what the process prints; None for this process's streams.

    Raises:
        LostProcessError: if the function raises, or the process is ended.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_work, args=(sender, log, function, arguments))
    process.start()
    sender.close()
    hint = "" if log is None else f"; see {log}"
    try:
        failure, content = receiver.recv()
    except EOFError:
        process.join()
        raise LostProcessError(
            f"the process ended with status {process.exitcode}, by a crash or for want of memory{hint}"
        ) from None
    finally:
        _end(process)
    if failure is not None:
        raise LostProcessError(failure)
    result: Result = pickle.loads(content)  # noqa: S301 - a process of this program wrote it
    return result


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a process and all that it started."""
    assert process.pid is not None, "it was started"
    # A process that has only just begun has no session of its own yet.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _work(sender: Connection, log: Path | None, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    leave_to_parent(lambda: os.killpg(0, signal.SIGKILL))
    if log is not None:
        with log.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        answer: tuple[str | None, bytes] = None, pickle.dumps(function(*arguments))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the caller is told
        if log is not None:
            traceback.print_exc()
        answer = printable(f"{type(error).__name__}: {error}"), b""
    sender.send(answer)
