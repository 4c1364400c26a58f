"""Defines the console command `mobileclip`.

Each module of this package defines the flags of some commands; other subpackages do the work.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mobileclip.cli import training
from mobileclip.cli.commands import COMMANDS, Command, Commands
from mobileclip.extras import VERSION
from mobileclip.machine import machine_line
from mobileclip.registry import with_parts
from mobileclip.terminal import has_reader, say
from mobileclip.terminal.interruption import interruptible
from mobileclip.terminal.streams import discard_output, ensure_streams

__all__ = ["COMMANDS", "Command", "Commands", "main"]

_KEPT = "finished work is saved and no file is incomplete; the same command resumes"

_MOST = 1_600


def main(arguments: list[str] | None = None) -> None:
    """Run the console command; print user-correctable errors without a traceback.

    Args:
        arguments: the arguments after `mobileclip`; `sys.argv[1:]` by default.
    """
    ensure_streams()
    try:
        _require_working_folder()
        typed = with_parts(sys.argv[1:] if arguments is None else arguments)
        if typed == ["--version"]:
            say(f"mobileclip {VERSION}")
            return
        if training.is_run(typed):
            training.run(typed[0], typed[1:])
            return
        with interruptible("mobileclip", _KEPT, is_program=arguments is None):
            COMMANDS.run("mobileclip", _with_default(typed))
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not has_reader():
            discard_output()
            return
        line = machine_line(error, _KEPT)
        if line is None and not isinstance(error, (ValueError, OSError, ImportError)):
            raise
        say(f"mobileclip: {_bounded(line or str(error))}", error=True)
        sys.exit(2)


def _require_working_folder() -> None:
    """Raise if the working folder was deleted; `import torch` fails in a deleted folder."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise FileNotFoundError("the working folder was deleted; change to another folder: cd ~") from None


def _with_default(arguments: list[str]) -> list[str]:
    """Return the arguments, with `run` inserted after `eval` if there is no subcommand."""
    own = COMMANDS.members["eval"]
    if arguments[:1] == ["eval"] and arguments[1:] and isinstance(own, Commands) and arguments[1] not in own.members:
        return ["eval", "run", *arguments[1:]]
    return arguments


def _bounded(message: str) -> str:
    """Return a message, shortened to its beginning and end if it is long."""
    return message if len(message) <= _MOST else f"{message[: _MOST // 2]} ... {message[-_MOST // 2 :]}"
