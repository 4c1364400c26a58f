"""Ctrl-C, SIGTERM and SIGUSR1: a command saves what it must, says so in a line, and leaves with 130, 143 or 75.

SIGUSR1 is how schedulers warn: SLURM's `--signal=USR1@120` sends it two minutes before the time is over. 75 says "try
again" (`EX_TEMPFAIL`); 138 would be what a shell says of a process that SIGUSR1 has killed before it could save.

The first signal raises `Interrupted` wherever the program is, or is kept until a training step is done; the second one
leaves at once. What a signal ends must not hang: a program that has saved leaves within seconds, whatever waits. An
error that comes after a signal stays an error. Processes that a command has started leave the decision to it, and end
with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any, NoReturn

from mobileclip.processes import this_process
from mobileclip.terminal import say
from mobileclip.terminal.signal_state import (
    LOOK_SECONDS,
    WARNING,
    Interrupted,
    become_child,
    heard,
    install,
    leave_soon,
    restore,
    status_of,
)

__all__ = [
    "Interrupted",
    "Postponed",
    "ending",
    "interruptible",
    "leave_to_parent",
    "postponed",
    "save_for_parent",
    "serve_loader",
]


@contextmanager
def interruptible(name: str, kept: str, *, is_program: bool = True) -> Iterator[None]:
    """Let signals end a command as a person expects; only the main thread of a program hears any.

    Args:
        name: of the command, which the line begins with.
        kept: what is saved and how to go on, in a sentence without its full stop.
        is_program: whether the program ends with the command: a second signal then ends it while it tidies up, and so
            does what takes longer than a few seconds to tidy up.

    Raises:
        SystemExit: with 130 after SIGINT, 143 after SIGTERM and 75 after SIGUSR1.
        BaseException: what ended the command otherwise, a signal that came before or not.
    """
    before = install((signal.SIGINT, signal.SIGTERM, WARNING))
    if is_program and before is not None:
        heard.program = (name, kept)
    try:
        yield
    except BaseException as error:
        interrupted = _signal_behind(error)
        if interrupted is None:
            raise
        heard.is_told = True
        if this_process().is_first:
            say(f"{name}: interrupted by {interrupted}; {interrupted.kept or kept}", error=True)
        leave_soon(interrupted)
        raise SystemExit(status_of(interrupted.number)) from None
    finally:
        if before is not None and not (is_program and heard.number is not None):
            restore(before)


class Postponed:
    """Reports a signal received during work that must not be cut short, and raises it afterwards."""

    @property
    def requested(self) -> bool:
        """Whether a signal has come meanwhile."""
        return heard.number is not None and threading.current_thread() is threading.main_thread()

    @property
    def warned(self) -> bool:
        """Whether a scheduler's warning has come meanwhile."""
        return self.requested and heard.number == WARNING

    def stop(self, kept: str, *, warned: bool = False) -> NoReturn:
        """Raise what the signal asked for; of another process's signal where this one has heard none.

        Args:
            kept: what is saved and how to go on, in a sentence without its full stop.
            warned: whether a scheduler has warned any process of the run, so that all leave with one status.
        """
        number = signal.SIGTERM if heard.number is None else heard.number
        if warned:
            number = WARNING
        interrupted = Interrupted(number, kept)
        leave_soon(interrupted)
        raise interrupted

    @contextmanager
    def not_now(self) -> Iterator[None]:
        """Let a signal raise at once while something is done, or waited for, that may be cut short.

        Raises:
            Interrupted: if a signal comes, or came before; the state is to be saved then, see `stop`.
        """
        if not heard.postponed or threading.current_thread() is not threading.main_thread():
            yield
            return
        before, heard.may_be_cut = heard.may_be_cut, True
        try:
            if heard.number is not None:
                raise Interrupted(heard.number)
            yield
        finally:
            heard.may_be_cut = before


@contextmanager
def postponed() -> Iterator[Postponed]:
    """Keep signals until the end of what is done here, which asks for them in between.

    Outside of a command, in a notebook for instance, this holds for Ctrl-C alone.

    Raises:
        Interrupted: at the end, if a signal has come that nobody asked for.
    """
    before = install((signal.SIGINT,))
    if heard.is_child and heard.number is not None:
        raise Interrupted(heard.number)
    heard.postponed += 1
    may_be_cut, heard.may_be_cut = heard.may_be_cut, False
    try:
        yield Postponed()
    finally:
        heard.postponed -= 1
        heard.may_be_cut = may_be_cut
        number = heard.number
        if before is not None:
            restore(before)
    if number is not None and not heard.postponed:
        interrupted = Interrupted(number)
        leave_soon(interrupted)
        raise interrupted


def _end_abruptly() -> None:
    os._exit(1)


def leave_to_parent(end: Callable[[], None] = _end_abruptly) -> None:
    """In a process that a command has started: Ctrl-C and warnings are the command's, with which it ends, however.

    Args:
        end: called when the command is gone; ends this process, and what it has started.
    """
    for number in (signal.SIGINT, WARNING):
        signal.signal(number, signal.SIG_IGN)
    _after_parent(end)


def save_for_parent() -> None:
    """In a process that a command has started to train: a signal waits for the step's end, or else ends it.

    It ends with the command, having saved.
    """
    become_child()
    install((signal.SIGINT, signal.SIGTERM))

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while heard.postponed:
            time.sleep(LOOK_SECONDS)
        os._exit(status_of(signal.SIGTERM))

    _after_parent(end)


def _after_parent(end: Callable[[], None]) -> None:
    """Have this process end when the one that started it is gone, killed or not: nobody waits for its work any more."""
    parent = multiprocessing.parent_process()
    if parent is None:  # nobody's child: a process of Ray, or a command itself
        return

    def watch() -> None:
        wait([parent.sentinel])
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def serve_loader(_worker: int) -> None:
    """In a worker of a data loader, forked or spawned: only the process that loads ends it.

    A launcher, or a scheduler, sends SIGTERM to all processes at once, and the step that is under way needs its batch.
    """
    if sys.platform == "linux":  # elsewhere nobody says who has sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before any thread, which would hear it
    leave_to_parent()
    if sys.platform == "linux":
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


@contextmanager
def ending(pool: ProcessPoolExecutor) -> Iterator[Callable[..., Future[Any]]]:
    """End the processes of a pool when what is done with it ends early: those that train save their state first.

    Args:
        pool: its waiting calls are not begun.

    Yields:
        The pool's `submit`, whose calls are looked at once more after a signal.

    Raises:
        Exception: what one of these calls raised after the signal, when it could not save for instance.
    """
    begun: list[Future[Any]] = []

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        begun.append(pool.submit(function, *arguments))
        return begun[-1]

    try:
        yield submit
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.terminate()
            if child.pid is not None:
                with suppress(ProcessLookupError):  # one that is stopped hears nothing before it goes on
                    os.kill(child.pid, signal.SIGCONT)
        pool.shutdown(cancel_futures=True)
        if isinstance(error, KeyboardInterrupt):
            _tell_of_failures(begun)
        raise


def _tell_of_failures(ended: list[Future[Any]]) -> None:
    """Raise what a call raised that was not ended by a signal as well."""
    failures = [one.exception() for one in ended if one.done() and not one.cancelled()]
    for failure in failures:
        if isinstance(failure, Exception) and not isinstance(failure, BrokenExecutor):
            raise failure


def _obey(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)


def _signal_behind(error: BaseException) -> Interrupted | None:
    """Return the signal that an exception is, or is raised from, which libraries do; an error behind one is its own."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, Interrupted):
            return behind
        if isinstance(behind, KeyboardInterrupt):
            return Interrupted(signal.SIGINT)
        behind = behind.__cause__
    return None
