"""Printing of lines, tables and logs, safe for untrusted text.

The library prints and logs only through this module, which escapes control characters, removes passwords and queries
from URLs, and disables rich's markup.
"""

from __future__ import annotations

import json
import logging
import re
import select
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

from mobileclip.storage import printable, without_secrets
from mobileclip.terminal.common import common_flags
from mobileclip.terminal.streams import output_stream

if TYPE_CHECKING:
    from rich.console import Console

# Longer than any line of the library; texts from data are truncated before they enter a line.
_LINE = 10_000


def say(text: object = "", *, error: bool = False) -> None:
    """Print a text of one or more lines, with control characters escaped.

    Args:
        text: value to print as `str(text)`; a character that the stream cannot encode becomes an escape sequence.
        error: whether to print on standard error instead of standard output.
    """
    stream = output_stream(error=error)
    stream.write(_encodable(f"{shown(text)}\n", stream))
    stream.flush()


def has_reader() -> bool:
    """Return whether standard output still has a reader; `head`, for example, may have exited."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return not any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # a stream need not be a file
        return True


def say_json(value: object, *, indent: int | None = None) -> None:
    """Print a value as JSON on standard output, with escapes for all non-ASCII characters.

    Args:
        value: a JSON value.
        indent: number of spaces per level; None for a single line.
    """
    stream = output_stream()
    stream.write(f"{json.dumps(value, indent=indent)}\n")
    stream.flush()


def shown(text: object) -> str:
    """Return a text that is safe for a terminal: with escaped control characters and without secrets in URLs."""
    return "\n".join(printable(line, limit=_LINE) for line in without_secrets(text).split("\n"))


def console(*, shown: bool = True) -> Console | None:
    """Return a console on standard error for progress; None without `shown`, with `--quiet`, or for a closed stream."""
    if not shown or sys.stderr is None or common_flags().quiet:
        return None
    return _console_class()(stderr=True, markup=False, emoji=False, highlight=False)


def print_table(*parts: Any, min_width: int = 100) -> None:
    """Print rich tables and texts on standard output; into a pipe or file, tab-separated and without truncation.

    Args:
        parts: tables and texts, printed in this order.
        min_width: minimum width in characters, even on a narrower terminal.
    """
    output = output_console()
    if output.is_terminal:
        output.width = max(output.width, min_width)
        output.print(*parts, sep="\n")
    else:
        stream = output_stream()
        stream.write("".join(_encodable(f"{_tab_separated(part)}\n", stream) for part in parts))
        stream.flush()


def _tab_separated(part: Any) -> str:
    """Return a table as tab-separated lines, or a text unchanged."""
    from rich.table import Table

    if not isinstance(part, Table):
        return shown(part)
    columns = [[*([column.header] if part.show_header else []), *column.cells] for column in part.columns]
    rows = [
        [shown(re.sub(r"[\t\n]+", " ", str(cell)).strip(" ")) for cell in row] for row in zip(*columns, strict=True)
    ]
    return "\n".join([*([shown(part.title)] if part.title else []), *map("\t".join, rows)])


def output_console() -> Console:
    """Return a rich console on standard output."""
    return _console_class()(file=output_stream(), markup=False, emoji=False, highlight=False)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; the logger makes the arguments of messages safe for terminals."""
    logger = logging.getLogger(name)
    logger.addFilter(_safe)
    return logger


def _safe(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(
            one if isinstance(one, (int, float)) else printable(without_secrets(one)) for one in record.args
        )
    return True


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@cache
def _console_class() -> type[Console]:
    """Return a subclass of rich's `Console` that makes text safe for terminals; import rich on first use."""
    from rich.console import Console
    from rich.text import Text

    class SafeConsole(Console):
        def render_str(self, text: str, *arguments: Any, **choices: Any) -> Text:
            return super().render_str(shown(text), *arguments, **choices)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return SafeConsole
