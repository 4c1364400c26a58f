"""Formats the text of `--help` to the width of the terminal.

tyro does not wrap descriptions, so this module wraps them.
"""

from __future__ import annotations

import inspect
import shutil
import textwrap

PROGRAMS = ("python ", "torchrun ", "mobileclip ", "make ")
"""Prefixes of lines with commands."""

_WIDEST = 120


def paragraphs(text: str) -> str:
    """Return a text wrapped to the width of the terminal.

    Args:
        text: paragraphs separated by empty lines.
    """
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(format_help(one, heading="  " if one.startswith(PROGRAMS) else "") for one in parts)


def format_help(text: str, *, heading: str = "") -> str:
    """Return a paragraph wrapped to the terminal without breaking words; commands keep their lines for copying.

    Args:
        text: prose, or only commands if the first line is a command.
        heading: prefix of the first line; the other lines are indented by the same width.
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
    """Return one line per command of a text; lines that do not begin with a program name are continuations."""
    found: list[str] = []
    for line in text.strip().splitlines():
        words = " ".join(line.split())
        if found and not words.startswith(PROGRAMS):
            found[-1] += f" {words}"
        else:
            found.append(words)
    return found
