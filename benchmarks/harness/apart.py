"""Calls a function in its own process, whose memory, settings and child processes end with the call."""

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
    """A process failed or died; the message describes the cause."""


def in_own_process(function: Callable[..., Result], *arguments: Any, log: Path | None = None) -> Result:
    """Call a function in a new process and session, and return its result.

    Args:
        function: function at the top level of a module, so that the process can import it.
        arguments: can be pickled.
        log: file for the output of the process; None for this process's streams.

    Raises:
        LostProcessError: if the function raises, or the process ends early.
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
            f"the process ended with status {process.exitcode}, because of a crash or lack of memory{hint}"
        ) from None
    finally:
        _end(process)
    if failure is not None:
        raise LostProcessError(failure)
    result: Result = pickle.loads(content)  # noqa: S301 - a process of this program wrote it
    return result


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a process and all its child processes."""
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
