"""`--help`: what a command does, as wide as the terminal, and then its flags.

tyro reads the command line and prints the flags. It prints a description in lines of any length, and the text of an
argument in the lines that it has in the code, so both are laid out here.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from mobileclip.terminal.flags import told_of_specs
from mobileclip.terminal.printing import say

T = TypeVar("T")

PROGRAMS = ("python ", "torchrun ", "mobileclip ", "make ")
"""What a line begins with that is a command."""

_WIDEST = 120
_ASK = frozenset(("-h", "--help"))


def parse(
    target: Callable[..., T],
    arguments: Sequence[str] | None = None,
    *,
    description: str,
    specs: Mapping[str, Any] | None = None,
    **choices: Any,
) -> T:
    """Read a command line, and call what it is for.

    Args:
        target: a class or a function, every argument of which is a flag.
        arguments: the command line, without the program; None for the process's own.
        description: what `--help` begins with, laid out.
        specs: for `told_of_specs`.
        choices: for `tyro.cli`.

    Raises:
        SystemExit: with 0 after `--help`, 2 if the command line is wrong.
    """
    given = sys.argv[1:] if arguments is None else arguments
    choices.setdefault("prog", _program())
    describe(description, given)
    with told_of_specs(**specs or {}):
        parsed: T = tyro.cli(target, args=given, description="", **choices)
    return parsed


def _program() -> str:
    """Return what was typed to start this process, which for `python -m` is not the path that Python made of it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return sys.argv[0] if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


def describe(description: str, arguments: Sequence[str]) -> None:
    """Print a description, if it is asked for."""
    if not _ASK.isdisjoint(arguments):
        say(f"{description}\n")


def paragraphs(text: str) -> str:
    """Return a text as wide as the terminal.

    Args:
        text: its paragraphs are apart by empty lines.
    """
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(laid_out(one, heading="  " if one.startswith(PROGRAMS) else "") for one in parts)


def laid_out(text: str, *, heading: str = "") -> str:
    """Return a paragraph as wide as the terminal, no word of which is broken; commands stay lines that can be copied.

    Args:
        text: one that begins with a command has nothing but commands.
        heading: what it begins with; further lines begin below its end.
    """
    indent = " " * len(heading)
    if text.startswith(PROGRAMS):
        return heading + f"\n{indent}".join(command_lines(text))
    return textwrap.fill(
        " ".join(text.split()),
        min(shutil.get_terminal_size().columns, _WIDEST),
        initial_indent=heading,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def command_lines(text: str) -> list[str]:
    """Return a line for every command in a text, or its one line; what does not begin with a program goes on."""
    found: list[str] = []
    for line in text.strip().splitlines():
        words = " ".join(line.split())
        if found and not words.startswith(PROGRAMS):
            found[-1] += f" {words}"
        else:
            found.append(words)
    return found
