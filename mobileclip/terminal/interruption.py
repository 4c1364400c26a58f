"""Handles Ctrl-C, SIGTERM, SIGHUP and SIGUSR1: a command stops early, and prints a line about the saved state.

The exit status of the command is 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP. After SIGUSR1, a scheduler's
warning, the exit status is 75, "try again" (`EX_TEMPFAIL`): SLURM's `--signal=USR1@120` sends SIGUSR1 two minutes
before the time limit.

The first signal raises `Interrupted` immediately, or at the end of a training step. The process exits at once after a
second signal that arrives more than a second later, or after a few seconds of cleanup. Errors after a signal still
propagate. Child processes of a command ignore signals, and exit when the command exits.
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
# A launcher forwards signals that the terminal also sent: signals within this time count as one.
_ONE_SIGNAL_SECONDS = 1.0
# For the work after the state is saved: closing files, ending processes, a hanging upload. Docker kills after 10 s.
_TIDYING_SECONDS = 8.0
_LOOK_SECONDS = 0.1
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """Raised after a signal that asks the program to stop.

    Args:
        number: signal number.
        kept: description of the saved state and of the command that resumes, for the user; empty if unknown.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@attrs.define
class _Heard:
    """The first signal that this process received, and the settings for the response to signals.

    Args:
        process: id of the process that owns the object; a forked child must ignore a copied object.
        is_child: whether this process is a child process of a command.
        postponed: number of active `postponed` contexts.
        may_be_cut: whether a signal may now interrupt the code in a `postponed` context.
        number: number of the first signal; None before any signal.
        at: `time.monotonic()` of the first signal other than SIGUSR1; None before such a signal.
        program: name and saved state of the command, for the message; None if the process outlives the command, or has
            already printed the message.
    """

    process: int = attrs.field(factory=os.getpid)
    is_child: bool = False
    postponed: int = 0
    may_be_cut: bool = False
    number: int | None = None
    at: float | None = None
    program: tuple[str, str] | None = None

    def forget(self) -> None:
        """Reset to the state before any signal, for the current process."""
        self.process, self.number, self.at, self.program = os.getpid(), None, None, None


heard = _Heard()


def _install(*numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """In the main thread, install handlers for signals with default handlers; return the previous handlers."""
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
        # Not through a stream, which the interrupted code may be writing to.
        _write(f"\n{signal.Signals(number).name}: stopping after this step; a second signal stops at once\n")
    if heard.may_be_cut:
        raise Interrupted(number)
    if not heard.postponed:
        raise _left_soon(Interrupted(number))


def _left_soon(interrupted: Interrupted) -> Interrupted:
    """Return the error, and limit the time until the program exits, in case a thread or process hangs."""
    if heard.program:
        # Not with `threading`, since the interrupted code may hold locks of `threading`.
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
    """Handle signals during a command; outside the main thread, do nothing.

    Args:
        name: name of the command, for the message.
        kept: saved state and the way to resume, as a sentence without a full stop.
        is_program: whether the program exits with the command; the program then exits after a few seconds, even during
            cleanup.

    Raises:
        SystemExit: with status 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP, and 75 after SIGUSR1.
        BaseException: any error of the command that no signal caused.
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
    """Return the `Interrupted` in an exception's chain of causes, since libraries wrap exceptions; else None."""
    if error is None or isinstance(error, Interrupted):
        return error
    return Interrupted(signal.SIGINT) if isinstance(error, KeyboardInterrupt) else _signal_behind(error.__cause__)


class Postponed:
    """Reports a signal that arrived during a `postponed` context, and raises `Interrupted` on request."""

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived, for code in the main thread."""
        return heard.number is not None and threading.current_thread() is threading.main_thread()

    @property
    def warned(self) -> bool:
        """Whether the first signal was a scheduler's warning (SIGUSR1)."""
        return self.requested and heard.number == WARNING

    def stop(self, kept: str, *, warned: bool = False) -> NoReturn:
        """Raise `Interrupted` after a signal to this process or to another process of the run.

        Args:
            kept: saved state and the way to resume, as a sentence without a full stop.
            warned: whether any process of the run received a scheduler's warning; all processes then exit with the same
                status, 75.
        """
        raise _left_soon(Interrupted(WARNING if warned else heard.number or signal.SIGTERM, kept))

    @contextmanager
    def not_now(self) -> Iterator[None]:
        """Let a signal raise `Interrupted` immediately, for example while the code in the context waits.

        Raises:
            Interrupted: if a signal arrives during or before the context. The caller should catch the error, save the
                state, and call `stop`.
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
    """Postpone signals to the end of the context; the code in the context polls the yielded object for signals.

    Outside a command, for example in a notebook, the context postpones only Ctrl-C.

    Raises:
        Interrupted: at the end of the context, if a signal arrived and the code did not call `stop`.
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
    """In a child process of a command: ignore SIGINT, SIGHUP and SIGUSR1, and exit when the command exits.

    Args:
        end: function to call after the command exits; it must end this process and all child processes.
    """
    for number in (signal.SIGINT, signal.SIGHUP, WARNING):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:  # no parent: a Ray process, or the command itself
        return

    def watch() -> None:
        wait([parent.sentinel])
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def save_for_parent() -> None:
    """In a training child process: end on SIGTERM after the current step, or immediately outside training.

    When the command exits, the child process saves the training state and exits as well.
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
    """Ignore SIGTERM in a data loader worker (forked or spawned), except from the parent process.

    Launchers and schedulers send SIGTERM to all processes together, but the current training step still needs a batch
    from the worker.
    """
    if sys.platform == "linux":  # other systems do not report the sender of a signal
        signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGTERM}
        )  # before any other thread exists, since such a thread would receive the signal
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
    leave_to_parent()


def _obey(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)


@contextmanager
def ending(pool: ProcessPoolExecutor) -> Iterator[Callable[..., Future[Any]]]:
    """End the processes of a pool if the context ends with an error; training processes first save the training state.

    Args:
        pool: process pool; after an error, the context manager also cancels pending calls.

    Yields:
        A function like the pool's `submit`; after a signal, the context manager checks all submitted calls for errors.

    Raises:
        Exception: if a submitted call failed after a signal, for example while saving the training state.
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
                with suppress(ProcessLookupError):  # a stopped process receives no signal before it continues
                    os.kill(child.pid, signal.SIGCONT)
        pool.shutdown(cancel_futures=True)
        if isinstance(error, KeyboardInterrupt):
            for failure in (one.exception() for one in begun if one.done() and not one.cancelled()):
                if isinstance(failure, Exception) and not isinstance(failure, BrokenExecutor):
                    raise failure from None
        raise
