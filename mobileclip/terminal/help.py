"""Formats the text of `--help` to the width of the terminal.

tyro does not wrap the descriptions of commands to the terminal width.
"""

from __future__ import annotations

import inspect
import shutil
import textwrap

PROGRAMS = ("python ", "torchrun ", "mobileclip ", "make ")
"""Prefixes of help text lines that are commands."""

_WIDEST = 120


def paragraphs(text: str) -> str:
    """Return paragraphs wrapped to the width of the terminal, at most 120 characters.

    Args:
        text: paragraphs separated by empty lines.
    """
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(format_help(one, heading="  " if one.startswith(PROGRAMS) else "") for one in parts)


def format_help(text: str, *, heading: str = "") -> str:
    """Return a paragraph wrapped to the terminal's width without breaking words; keep each command on one line.

    Args:
        text: a paragraph of prose; or commands only, if the first line is a command.
        heading: prefix of the first line; the other lines have an indent of equal width.
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
    """Return one line per command of a text; a line that does not begin with a program name continues a command."""
    found: list[str] = []
    for line in text.strip().splitlines():
        words = " ".join(line.split())
        if found and not words.startswith(PROGRAMS):
            found[-1] += f" {words}"
        else:
            found.append(words)
    return found
