"""What the recipes' command lines share: runs written as JSON, errors in a line, and what a signal keeps."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mobileclip.machine import machine_line
from mobileclip.recipes.header import read_header
from mobileclip.registry import taken, with_parts
from mobileclip.serialization import from_json, to_json
from mobileclip.terminal import has_reader, shown
from mobileclip.terminal.interruption import interruptible
from mobileclip.terminal.streams import ensure_streams, give_up_output

GOES_ON = "what was finished is kept; the same command goes on from there"
RUN = "--run"

T = TypeVar("T")


@contextmanager
def reported(name: str, arguments: Sequence[str] | None, *, kept: str = GOES_ON) -> Iterator[None]:
    """Turn errors and signals into a line and an exit status.

    Args:
        name: of the recipe.
        arguments: the command line; None for the process's own, with which the program ends.
        kept: what a signal leaves and how to go on, in a sentence without its full stop.

    Raises:
        SystemExit: with 1 and the error's message, 130 after Ctrl-C, 143 after SIGTERM, or 75 after
            SIGUSR1.
    """
    ensure_streams()
    try:
        with interruptible(name, kept, is_program=arguments is None):
            yield
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not has_reader():
            give_up_output()
            return
        line = machine_line(error)
        if line is None and not isinstance(error, (ValueError, FloatingPointError, OSError, ImportError)):
            raise
        raise SystemExit(f"error: {shown(line or error)}") from None


def typed(arguments: Sequence[str] | None) -> list[str]:
    """Return a command line, the process's own where there is none; what `--import` names in it is imported."""
    return with_parts(sys.argv[1:] if arguments is None else arguments)


def described(docstring: str | None) -> str:
    """Return what a recipe's `--help` begins with: its whole header, with the command that runs it here."""
    text, name = docstring or "", Path(sys.argv[0]).name
    if name.startswith("mobileclip "):
        text = re.sub(r"\bpython recipes/\w+\.py", name, text)
        text = re.sub(r"\brecipes/\w+\.py", f"-m mobileclip.cli{name.removeprefix('mobileclip')}", text)
    return read_header(text).description()


def written_run(arguments: Sequence[str], cls: type[T]) -> tuple[T | None, list[str]]:
    """Return the choices in the file that `--run` names, the last one, and the command line without it.

    Args:
        arguments: the command line.
        cls: what `--show` writes.

    Raises:
        ValueError: if no file is named, or it holds something else.
        OSError: if it cannot be read.
    """
    files, rest = taken(RUN, arguments)
    if not all(files):
        raise ValueError(f"{RUN} needs the name of a file that --show has written")
    if not files:
        return None, rest
    file = files[-1]
    try:
        return from_json(Path(file).read_text(encoding="utf-8"), cls), rest
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text; expected what --show has written") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def show(choices: Any) -> None:
    """Write choices to standard output as JSON, to the letter: they are read back with `--run`."""
    sys.stdout.write(f"{to_json(choices, indent=1)}\n")
