"""Ctrl-C, SIGTERM and SIGUSR1: a command saves what it must, says so in a line, and leaves with 130, 143 or 75.

SIGUSR1 is how schedulers warn: SLURM's `--signal=USR1@120` sends it two minutes before the time is over. 75 says "try
again" (`EX_TEMPFAIL`); 138 would be what a shell says of a process that SIGUSR1 has killed before it could save.

The first signal raises `Interrupted` wherever the program is, or is kept until a training step is done; the second one
leaves at once. Processes that a command has started leave the decision to it.
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
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import attrs

from mobileclip.processes import this_process
from mobileclip.terminal import say

# A launcher passes on what a terminal has sent as well: signals so close together are one.
_ONE_SIGNAL_SECONDS = 1.0
_WARNING = getattr(signal, "SIGUSR1", None)  # Windows has none
_AGAIN = 75
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """A person, or the system, asked the program to stop.

    Args:
        number: of the signal.
        kept: what is saved and how to go on, where the one who raises it knows; for the person.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number = number
        self.kept = kept


@attrs.define
class _Heard:
    """What this process has heard, and how it answers.

    Args:
        process: whose signals these are; a forked child has a copy, which is not meant for it.
        number: of the first signal.
        at: when it came.
        postponed: how many are waiting for the end of what they do.
        is_child: whether the one who started this process waits for it: outside of such work it just ends.
        is_over: whether what a scheduler had warned of has come.
        swallowed: whether the exception came to nothing, in a destructor for instance, and is to be raised again.
    """

    process: int = attrs.field(factory=os.getpid)
    number: int | None = None
    at: float = 0.0
    postponed: int = 0
    is_child: bool = False
    is_over: bool = False
    swallowed: bool = False


_heard = _Heard()


@contextmanager
def interruptible(name: str, kept: str, *, is_program: bool = True) -> Iterator[None]:
    """Let signals end a command as a person expects; only the main thread of a program hears any.

    Args:
        name: of the command, which the line begins with.
        kept: what is saved and how to go on, in a sentence without its full stop.
        is_program: whether the program ends with the command: a second signal then ends it while it tidies up.

    Raises:
        SystemExit: with 130 after SIGINT, 143 after SIGTERM and 75 after SIGUSR1.
    """
    before = _install((signal.SIGINT, signal.SIGTERM, *_warnings()))
    try:
        yield
    except BaseException as error:
        number = _number(error)
        if number is None:
            raise
        if this_process().is_first:
            say(f"{name}: interrupted by {signal.Signals(number).name}; {_known(error) or kept}", error=True)
        raise SystemExit(_status(number)) from None
    finally:
        if before is not None and not (is_program and _heard.number is not None):
            _restore(before)


class Postponed:
    """What a step, or whatever must not be cut short, asks when it is done."""

    @property
    def requested(self) -> bool:
        """Whether a signal has come meanwhile."""
        return _heard.number is not None and threading.current_thread() is threading.main_thread()

    @property
    def warned(self) -> bool:
        """Whether a scheduler's warning has come meanwhile."""
        return _WARNING is not None and self.requested and _heard.number == _WARNING

    def stop(self, kept: str, *, warned: bool = False) -> NoReturn:
        """Raise what the signal asked for; of another process's signal where this one has heard none.

        Args:
            kept: what is saved and how to go on, in a sentence without its full stop.
            warned: whether a scheduler has warned any process of the run, so that all leave with one status.
        """
        if warned and _WARNING is not None:
            raise Interrupted(_WARNING, kept)
        raise Interrupted(signal.SIGTERM if _heard.number is None else _heard.number, kept)

    @contextmanager
    def not_now(self) -> Iterator[None]:
        """Let a signal raise at once while something is done that may be cut short, one that came before too."""
        depth, _heard.postponed = _heard.postponed, 0
        try:
            if depth and _heard.number is not None:
                raise Interrupted(_heard.number)
            yield
        finally:
            _heard.postponed = depth


@contextmanager
def postponed() -> Iterator[Postponed]:
    """Keep signals until the end of what is done here, which asks for them in between.

    Outside of a command, in a notebook for instance, this holds for Ctrl-C alone.

    Raises:
        Interrupted: at the end, if a signal has come that nobody asked for.
    """
    before = _install((signal.SIGINT,))
    if _heard.is_child and _heard.number is not None:
        raise Interrupted(_heard.number)
    _heard.postponed += 1
    try:
        yield Postponed()
    finally:
        _heard.postponed -= 1
        number = _heard.number
        if before is not None:
            _restore(before)
    if number is not None and not _heard.postponed:
        raise Interrupted(number)


def leave_to_parent() -> None:
    """In a process that a command has started: Ctrl-C and warnings are the command's, which ends its processes."""
    for number in (signal.SIGINT, *_warnings()):
        signal.signal(number, signal.SIG_IGN)


def save_for_parent() -> None:
    """In a process that a command has started to train: a signal waits for the step's end, or else ends it."""
    global _heard  # noqa: PLW0603 - of this process
    _heard = _Heard(is_child=True)
    _install((signal.SIGINT, signal.SIGTERM))


def serve_loader(_worker: int) -> None:
    """In a worker of a data loader, forked or spawned: only the process that loads ends it.

    A launcher, or a scheduler, sends SIGTERM to all processes at once, and the step that is under way needs its batch.
    """
    leave_to_parent()
    if sys.platform == "linux":  # elsewhere nobody says who has sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


@contextmanager
def ending(pool: ProcessPoolExecutor) -> Iterator[None]:
    """End the processes of a pool when what is done with it ends early: those that train save their state first.

    Args:
        pool: its waiting calls are not begun.
    """
    try:
        yield
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
            if sys.platform != "win32" and child.pid is not None:
                with suppress(ProcessLookupError):  # one that is stopped hears nothing before it goes on
                    os.kill(child.pid, signal.SIGCONT)
        pool.shutdown(cancel_futures=True)
        raise


def _obey(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)


@attrs.frozen
class _Before:
    """Who heard the signals before."""

    handlers: dict[signal.Signals, Any]
    hook: Callable[[Any], Any]


def _install(numbers: tuple[signal.Signals, ...]) -> _Before | None:
    """Hear these signals from now on, those that nobody else asks for; return who did before, or None where we do."""
    if threading.current_thread() is not threading.main_thread():
        return None
    handlers = {number: signal.getsignal(number) for number in numbers}
    handlers = {
        number: handler
        for number, handler in handlers.items()
        if handler in (signal.default_int_handler, signal.SIG_DFL)
    }
    if not handlers:
        return None
    before = _Before(handlers, sys.unraisablehook)
    for number in handlers:
        signal.signal(number, _on_signal)
    sys.unraisablehook = _raise_again_after(sys.unraisablehook)
    _heard.number, _heard.is_over = None, False
    return before


def _restore(before: _Before) -> None:
    for number, handler in before.handlers.items():
        signal.signal(number, handler)
    sys.unraisablehook = before.hook
    _heard.number, _heard.is_over = None, False


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if os.getpid() != _heard.process:
        _in_a_copy(number)
        return
    again, _heard.swallowed = _heard.swallowed, False
    if _heard.number is not None and not again:
        if number == _WARNING:
            return  # a scheduler may say it twice
        if _heard.number == _WARNING and not _heard.is_over:
            # The end that it warned of: nobody insists yet, while the state is being saved.
            _heard.is_over, _heard.at = True, time.monotonic()
            return
        if time.monotonic() - _heard.at > _ONE_SIGNAL_SECONDS:
            _leave(number)
        return
    _heard.number = number
    if not again:
        _heard.at = time.monotonic()
    if not _heard.postponed:
        if _heard.is_child:
            os._exit(_status(number))
        raise Interrupted(number)
    if this_process().is_first and not _heard.is_child:
        # Not through a stream, which may be in the middle of a line of its own.
        _write(f"\n{signal.Signals(number).name}: stopping after this step; once more leaves at once\n")


def _in_a_copy(number: int) -> None:
    """Answer in a forked child, whose handlers are copies: its parent decides what Ctrl-C means."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _leave(number: int) -> NoReturn:
    for child in multiprocessing.active_children():
        child.kill()
    if sys.stderr.isatty():
        _write(_SHOW_CURSOR)
    os._exit(_status(number))


def _write(text: str) -> None:
    with suppress(OSError):
        os.write(2, text.encode())


def _warnings() -> tuple[signal.Signals, ...]:
    return () if _WARNING is None else (_WARNING,)


def _status(number: int) -> int:
    """Return what a process leaves with."""
    return _AGAIN if number == _WARNING else 128 + number


def _number(error: BaseException) -> int | None:
    """Return the signal that an exception comes from; what breaks behind a signal comes from it too."""
    if isinstance(error, Interrupted):
        return error.number
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    return None if isinstance(error, SystemExit) else _heard.number


def _known(error: BaseException) -> str:
    """Return what an exception says of what is kept: one of this module all of it, others what could not be saved."""
    if isinstance(error, Interrupted):
        return error.kept
    is_saving = isinstance(error, (ValueError, OSError)) and not isinstance(error, ConnectionError)
    return str(error) if is_saving else ""


def _raise_again_after(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a hook for exceptions that cannot be raised where they are: those of this module come a little later."""

    def again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            _heard.swallowed = True
            _thread.interrupt_main(signal.Signals(unraisable.exc_value.number))
        else:
            hook(unraisable)

    return again
