"""The entry point of recipes: reads and writes runs as JSON, reports errors in a line, handles signals."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mobileclip.machine import machine_line
from mobileclip.recipes.flags import ASKING_ALL, asks_briefly, brief_help, canonical
from mobileclip.recipes.header import read_header
from mobileclip.registry import nearest_file, taken, with_parts
from mobileclip.terminal import has_reader, say, shown
from mobileclip.terminal.common import taken_common, use_common
from mobileclip.terminal.help import parse
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
        SystemExit: with 1 and the error's message, 0 where nobody reads the output any more, 130 after Ctrl-C, 143
            after SIGTERM, or 75 after SIGUSR1.
    """
    ensure_streams()
    try:
        with interruptible(name, kept, is_program=arguments is None):
            yield
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not has_reader():
            give_up_output()
            raise SystemExit(0) from None
        line = machine_line(error, kept)
        if line is None and not isinstance(error, (ValueError, FloatingPointError, OSError, ImportError)):
            raise
        raise SystemExit(f"error: {shown(line or error)}") from None


def typed(arguments: Sequence[str] | None) -> list[str]:
    """Return a command line, the process's own where there is none; what `--import` names in it is imported."""
    return with_parts(sys.argv[1:] if arguments is None else arguments)


@contextmanager
def started(
    target: Callable[..., T],
    name: str,
    docstring: str | None,
    arguments: Sequence[str] | None = None,
    *,
    kept: str = GOES_ON,
    **choices: Any,
) -> Iterator[T]:
    """Yield what a program's command line says, hold its `--quiet`, and report what happens then as `reported` does.

    Args:
        target: a class or a function, every argument of which is a flag.
        name: of the program.
        docstring: its header.
        arguments: the command line; None for the process's own.
        kept: see `reported`.
        choices: for `mobileclip.terminal.help.parse`.
    """
    with reported(name, None, kept=kept):
        told, rest = taken_common(["--quiet"], typed(arguments))
        with use_common(told):
            yield parse(target, rest, description=described(docstring), **choices)


@contextmanager
def opened(
    kind: str,
    name: str,
    docstring: str | None,
    arguments: Sequence[str] | None,
    *,
    cls: type[T],
    rows: Mapping[str, str] | None = None,
) -> Iterator[tuple[T | None, list[str]]]:
    """Yield what `--run` names and the rest of a command line, and report what happens then as `reported` does.

    Args:
        kind: of the recipe, a key of `FLAGS`.
        name: of the recipe.
        docstring: its header.
        arguments: the command line; None for the process's own.
        cls: what `--show` writes.
        rows: the recipe's runs to their titles, where it has several.

    Raises:
        SystemExit: after the short help, and as `reported` has it.
    """
    with reported(name, arguments):
        told, rest = taken_common(["--quiet"], typed(arguments))
        given = canonical(kind, rest)
        if asks_briefly(given):
            say(helped(kind, docstring, sys.argv[0], rows))
            raise SystemExit(0)
        with use_common(told):
            yield written_run(["--help" if one == ASKING_ALL else one for one in given], cls)


def helped(kind: str, docstring: str | None, program: str, rows: Mapping[str, str] | None = None) -> str:
    """Return a recipe's short help; `program` is what was typed before the flags, or the recipe's file."""
    typed_before = f"python {program}" if program.endswith(".py") else program
    return f"{read_header(_as_run(docstring, program)).brief()}\n\n{brief_help(kind, typed_before, rows)}"


def described(docstring: str | None) -> str:
    """Return what a recipe's `--help-all` begins with: its whole header, with the command that runs it here."""
    header = read_header(_as_run(docstring, Path(sys.argv[0]).name))
    return f"{header.description()}\n\nIt takes --quiet, too: show no progress."


def _as_run(docstring: str | None, program: str) -> str:
    """Return a header with the commands that run the recipe here."""
    text = docstring or ""
    if program.startswith("mobileclip "):
        text = re.sub(r"\bpython recipes/\w+\.py", program, text)
        text = re.sub(r"\brecipes/\w+\.py", f"-m mobileclip.cli{program.removeprefix('mobileclip')}", text)
    return text


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
    from mobileclip.serialization import from_json  # slow, and `--help` does not need it

    file = files[-1]
    try:
        return from_json(Path(file).read_text(encoding="utf-8"), cls), rest
    except FileNotFoundError:
        near = nearest_file(Path(file))
        raise ValueError(f"there is no {file}{near}; write one: {again('--show')[:-1]} > {file}`") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text; expected what --show has written") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def again(*flags: str) -> str:
    """Return the command that was typed, with its row and these flags alone, in backticks."""
    typed_before = f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else sys.argv[0]
    row = [one for one in sys.argv[1:2] if not one.startswith("-")]
    return f"`{' '.join((typed_before, *row, *flags))}`"


def show(choices: Any) -> None:
    """Write choices to standard output as JSON, to the letter: they are read back with `--run`."""
    from mobileclip.serialization import to_json

    sys.stdout.write(f"{to_json(choices, indent=1)}\n")
