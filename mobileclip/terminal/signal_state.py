"""The signals that this process has received, and its response: raise, postpone, or exit."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import attrs

from mobileclip.processes import this_process

# A launcher passes on what a terminal has sent as well: signals so close together are one.
_ONE_SIGNAL_SECONDS = 1.0
WARNING = signal.SIGUSR1  # by which schedulers warn
_AGAIN = 75
# What is left after the state is saved: closing files, ending processes, an upload that hangs. Docker kills after 10.
_TIDYING_SECONDS = 8.0
LOOK_SECONDS = 0.1
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

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@attrs.define
class Heard:
    """The first signal that this process received, and how the process responds to it.

    Args:
        process: whose signals these are; a forked child has a copy, which is not meant for it.
        number: of the first signal.
        at: when it came.
        postponed: how many are waiting for the end of what they do.
        may_be_cut: whether what they do now may be cut short.
        is_child: whether the one who started this process waits for it: outside of such work it just ends.
        is_over: whether what a scheduler had warned of has come.
        swallowed: whether the exception came to nothing, in a destructor for instance, and is to be raised again.
        program: name of the command, and what is kept, where the program ends with it.
        is_leaving: whether what is left to do is bounded already.
        is_told: whether the command has said what ended it.
    """

    process: int = attrs.field(factory=os.getpid)
    number: int | None = None
    at: float = 0.0
    postponed: int = 0
    may_be_cut: bool = False
    is_child: bool = False
    is_over: bool = False
    swallowed: bool = False
    program: tuple[str, str] | None = None
    is_leaving: bool = False
    is_told: bool = False


heard = Heard()


@attrs.frozen
class Before:
    """The signal handlers that were installed before this library's own."""

    handlers: dict[signal.Signals, Any]
    hook: Callable[[Any], Any]


def install(numbers: tuple[signal.Signals, ...]) -> Before | None:
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
    before = Before(handlers, sys.unraisablehook)
    for number in handlers:
        signal.signal(number, _on_signal)
    sys.unraisablehook = _raise_again_after(sys.unraisablehook)
    _forget()
    return before


def become_child() -> None:
    """Take note that this is a process of its own, whose end another one waits for."""
    heard.process, heard.is_child, heard.postponed, heard.may_be_cut = os.getpid(), True, 0, False
    _forget()


def restore(before: Before) -> None:
    """Let those hear who did before."""
    for number, handler in before.handlers.items():
        signal.signal(number, handler)
    sys.unraisablehook = before.hook
    _forget()


def _forget() -> None:
    heard.number, heard.is_over = None, False
    heard.program, heard.is_leaving, heard.is_told = None, False, False


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if os.getpid() != heard.process:
        _in_a_copy(number)
        return
    again, heard.swallowed = heard.swallowed, False
    if heard.number is not None and not again:
        _hear_more(number)
        return
    heard.number = number
    if not again:
        heard.at = time.monotonic()
    if not heard.postponed:
        if heard.is_child:
            os._exit(status_of(number))
        interrupted = Interrupted(number)
        leave_soon(interrupted)
        raise interrupted
    if this_process().is_first and not heard.is_child and not again:
        # Not through a stream, which may be in the middle of a line of its own.
        _write(f"\n{signal.Signals(number).name}: stopping after this step; once more leaves at once\n")
    if heard.may_be_cut:
        raise Interrupted(number)


def _hear_more(number: int) -> None:
    """Answer a further signal: leave at once, unless it is no more than the first one again."""
    if number == WARNING:
        return  # a scheduler may say it twice
    if heard.number == WARNING and not heard.is_over:
        # The end that it warned of: nobody insists yet, while the state is being saved.
        heard.is_over, heard.at = True, time.monotonic()
    elif time.monotonic() - heard.at > _ONE_SIGNAL_SECONDS:
        _leave(number)


def _in_a_copy(number: int) -> None:
    """Answer in a forked child, whose handlers are copies: its parent decides what Ctrl-C means."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def leave_soon(interrupted: Interrupted) -> None:
    """Bound what is left to do in a program: a thread that waits, or a process that hangs, must not keep it."""
    if heard.program is None or heard.is_leaving:
        return
    heard.is_leaving = True
    # Not by `threading`, whose locks whatever the signal came into may hold.
    _thread.start_new_thread(_leave_late, (interrupted, *heard.program))


def _leave_late(interrupted: Interrupted, name: str, kept: str) -> None:
    time.sleep(_TIDYING_SECONDS)
    if not heard.is_told and this_process().is_first:
        _write(f"{name}: interrupted by {interrupted}; {interrupted.kept or kept}\n")
    _leave(interrupted.number)


def _leave(number: int) -> NoReturn:
    for child in multiprocessing.active_children():
        child.kill()
    if sys.stderr.isatty():
        _write(_SHOW_CURSOR)
    os._exit(status_of(number))


def _write(text: str) -> None:
    with suppress(OSError):
        os.write(2, text.encode())


def status_of(number: int) -> int:
    """Return what a process leaves with."""
    return _AGAIN if number == WARNING else 128 + number


def _raise_again_after(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a hook for exceptions that cannot be raised where they are: those of this module come a little later."""

    def again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            heard.swallowed = True
            # From another thread: this one would raise it in here, where it comes to nothing too.
            _thread.start_new_thread(_interrupt_again, (unraisable.exc_value.number,))
        else:
            hook(unraisable)

    return again


def _interrupt_again(number: int) -> None:
    time.sleep(LOOK_SECONDS)
    _thread.interrupt_main(signal.Signals(number))
