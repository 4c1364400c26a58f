"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1: a command ends after the current unit, and says what is kept in a line.

Its status is 130, 143 or 129. SIGUSR1 is how schedulers warn: SLURM's `--signal=USR1@120` sends it two minutes before
the time is over; the status is 75 then, "try again" (`EX_TEMPFAIL`).

The first signal raises `Interrupted` wherever the program is, or waits for the end of a training step; a second one,
more than a second later, leaves at once. A program that tidies up for longer than a few seconds leaves then, too. An
error that comes after a signal stays an error. Processes that a command has started leave the decision to it, and end
with it.
"""

from __future__ import annotations

import _thread
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
from types import FrameType
from typing import Any, NoReturn

import attrs

from mobileclip.processes import this_process
from mobileclip.terminal import say

WARNING, _AGAIN = signal.SIGUSR1, 75
# A launcher passes on what a terminal has sent as well: signals so close together are one.
_ONE_SIGNAL_SECONDS = 1.0
# What is left after the state is saved: closing files, ending processes, an upload that hangs. Docker kills after 10.
_TIDYING_SECONDS = 8.0
_LOOK_SECONDS = 0.1
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """A person, or the system, asked the program to stop.

    Args:
        number: of the signal.
        kept: what is saved and how to go on, where the one who raises it knows; for the person.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@attrs.define
class _Heard:
    """The first signal that this process received, and how the process responds to it.

    Args:
        process: whose signals these are; a forked child has a copy, which is not meant for it.
        is_child: whether a command has started this process, and waits for it.
        postponed: how many are waiting for the end of what they do.
        may_be_cut: whether what they do now may be cut short.
        number: of the first signal.
        at: when the first one came that is no scheduler's warning.
        program: name of the command, and what is kept, where the program ends with it and has not said so yet.
    """

    process: int = attrs.field(factory=os.getpid)
    is_child: bool = False
    postponed: int = 0
    may_be_cut: bool = False
    number: int | None = None
    at: float | None = None
    program: tuple[str, str] | None = None

    def forget(self) -> None:
        """Be as before the first signal, in the process that asks for it."""
        self.process, self.number, self.at, self.program = os.getpid(), None, None, None


heard = _Heard()


def _install(*numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Hear those of these signals that nobody else asks for, in the main thread; return who heard them before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    nobody = (signal.default_int_handler, signal.SIG_DFL)
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) in nobody}
    for number in before:
        signal.signal(number, _on_signal)
    if before:
        heard.forget()
    return before


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
    if before:
        heard.forget()


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if os.getpid() != heard.process:  # a copy in a forked child, whose parent decides what Ctrl-C means
        if number == signal.SIGTERM:
            os._exit(_status_of(number))
        return
    is_first = heard.number is None
    heard.number = number if heard.number is None else heard.number
    if number != WARNING:
        if heard.at is not None and time.monotonic() - heard.at > _ONE_SIGNAL_SECONDS:
            _leave(number)
        heard.at = time.monotonic() if heard.at is None else heard.at
    if not is_first:
        return
    if heard.is_child and not heard.postponed:
        os._exit(_status_of(number))
    if heard.postponed and not heard.is_child:
        # Not through a stream, which may be in the middle of a line of its own.
        _write(f"\n{signal.Signals(number).name}: stopping after this step; once more leaves at once\n")
    if heard.may_be_cut:
        raise Interrupted(number)
    if not heard.postponed:
        raise _left_soon(Interrupted(number))


def _left_soon(interrupted: Interrupted) -> Interrupted:
    """Bound what is left to do in a program: a thread that waits, or a process that hangs, must not keep it."""
    if heard.program:
        # Not by `threading`, whose locks whatever the signal came into may hold.
        _thread.start_new_thread(_leave_late, (interrupted,))
    return interrupted


def _leave_late(interrupted: Interrupted) -> None:
    time.sleep(_TIDYING_SECONDS)
    if heard.program:
        _write(_told(interrupted, *heard.program))
    _leave(interrupted.number)


def _told(interrupted: Interrupted, name: str, kept: str) -> str:
    return f"{name}: interrupted by {interrupted}; {interrupted.kept or kept}\n"


def _leave(number: int) -> NoReturn:
    for child in multiprocessing.active_children():
        child.kill()
    if sys.stderr.isatty():
        _write(_SHOW_CURSOR)
    os._exit(_status_of(number))


def _write(text: str) -> None:
    if this_process().is_first:
        with suppress(OSError):
            os.write(2, text.encode())


def _status_of(number: int) -> int:
    return _AGAIN if number == WARNING else 128 + number


@contextmanager
def interruptible(name: str, kept: str, *, is_program: bool = True) -> Iterator[None]:
    """Let signals end a command as a person expects; only the main thread of a program hears any.

    Args:
        name: of the command, which the line begins with.
        kept: saved state and how to resume, a sentence without a full stop.
        is_program: whether the program ends with the command, also where it takes longer than a few seconds to tidy up.

    Raises:
        SystemExit: with 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP, and 75 after SIGUSR1.
        BaseException: what ended the command otherwise, a signal that came before or not.
    """
    before = _install(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, WARNING)
    heard.program = (name, kept) if is_program and before else heard.program
    try:
        yield
    except BaseException as error:
        interrupted = _signal_behind(error)
        if interrupted is None:
            raise
        _left_soon(interrupted)
        heard.program = None
        if this_process().is_first:
            with suppress(OSError):  # the terminal may be gone
                say(_told(interrupted, name, kept).rstrip(), error=True)
        raise SystemExit(_status_of(interrupted.number)) from None
    finally:
        if not (is_program and heard.number is not None):
            _restore(before)


def _signal_behind(error: BaseException | None) -> Interrupted | None:
    """Return the signal that an exception is, or is raised from, which libraries do."""
    if error is None or isinstance(error, Interrupted):
        return error
    return Interrupted(signal.SIGINT) if isinstance(error, KeyboardInterrupt) else _signal_behind(error.__cause__)


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
            kept: saved state and how to resume, a sentence without a full stop.
            warned: whether a scheduler has warned any process of the run, so that all leave with one status.
        """
        raise _left_soon(Interrupted(WARNING if warned else heard.number or signal.SIGTERM, kept))

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
    before = _install(signal.SIGINT)
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
        _restore(before)
    if number is not None and not heard.postponed:
        raise _left_soon(Interrupted(number))


def _end_abruptly() -> None:
    os._exit(1)


def leave_to_parent(end: Callable[[], None] = _end_abruptly) -> None:
    """In a process that a command has started: Ctrl-C and warnings are the command's, with which it ends, however.

    Args:
        end: called when the command is gone, killed or not; ends this process, and what it has started.
    """
    for number in (signal.SIGINT, signal.SIGHUP, WARNING):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:  # nobody's child: a process of Ray, or a command itself
        return

    def watch() -> None:
        wait([parent.sentinel])
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def save_for_parent() -> None:
    """In a process that a command has started to train: SIGTERM waits for the step's end, or else ends it.

    It ends with the command, having saved.
    """

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while heard.postponed:
            time.sleep(_LOOK_SECONDS)
        os._exit(_status_of(signal.SIGTERM))

    heard.is_child, heard.postponed, heard.may_be_cut = True, 0, False
    heard.forget()
    signal.signal(signal.SIGTERM, _on_signal)
    leave_to_parent(end)


def serve_loader(_worker: int) -> None:
    """In a worker of a data loader, forked or spawned: only the process that loads ends it.

    A launcher, or a scheduler, sends SIGTERM to all processes at once, and the step that is under way needs its batch.
    """
    if sys.platform == "linux":  # elsewhere nobody says who has sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before any thread, which would hear it
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
    leave_to_parent()


def _obey(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)


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
            for failure in (one.exception() for one in begun if one.done() and not one.cancelled()):
                if isinstance(failure, Exception) and not isinstance(failure, BrokenExecutor):
                    raise failure from None
        raise
