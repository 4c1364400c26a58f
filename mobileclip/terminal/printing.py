"""What a person sees: lines, tables and logs on which text that came with data can do nothing but be read.

Everything that the library prints or logs goes through here. Control characters are shown as escapes, URLs lose
their passwords and queries, and nothing is taken for rich's markup.
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

# More than any line of the library; a text from data is cut where it enters a line.
_LINE = 10_000


def say(text: object = "", *, error: bool = False) -> None:
    """Print a text of one line or several.

    Args:
        text: its `str`; a character that the stream cannot encode becomes an escape.
        error: on standard error instead of standard output.
    """
    stream = output_stream(error=error)
    stream.write(_encodable(f"{shown(text)}\n", stream))
    stream.flush()


def has_reader() -> bool:
    """Return whether somebody reads standard output, as far as can be told: `head` may have seen enough."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return not any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # a stream need not be a file
        return True


def say_json(value: object, *, indent: int | None = None) -> None:
    """Print a value for a program to read: whole, with every character beyond ASCII as JSON's escape.

    Args:
        value: of JSON.
        indent: spaces for each level; one line without it.
    """
    stream = output_stream()
    stream.write(f"{json.dumps(value, indent=indent)}\n")
    stream.flush()


def shown(text: object) -> str:
    """Return a text of one line or several as it may stand on a terminal."""
    return "\n".join(printable(line, limit=_LINE) for line in without_secrets(text).split("\n"))


def console(*, shown: bool = True) -> Console | None:
    """Return standard error as a console to show progress on, or none where it is closed or is to be quiet."""
    if not shown or sys.stderr is None or common_flags().quiet:
        return None
    return _console_class()(stderr=True, markup=False, emoji=False, highlight=False)


def print_table(*parts: Any, min_width: int = 100) -> None:
    """Print tables of rich, and texts between them, on standard output; into a pipe or a file, whole and apart by tabs.

    Args:
        parts: one after another.
        min_width: columns that a narrower terminal is taken to have: a table that is cut says nothing.
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
    """Return a table as a line of titles and a line for each row, or a text as it is."""
    from rich.table import Table

    if not isinstance(part, Table):
        return shown(part)
    columns = [[*([column.header] if part.show_header else []), *column.cells] for column in part.columns]
    rows = [
        [shown(re.sub(r"[\t\n]+", " ", str(cell)).strip(" ")) for cell in row] for row in zip(*columns, strict=True)
    ]
    return "\n".join([*([shown(part.title)] if part.title else []), *map("\t".join, rows)])


def output_console() -> Console:
    """Return standard output as a console."""
    return _console_class()(file=output_stream(), markup=False, emoji=False, highlight=False)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; what it is given to fill in is made safe to show."""
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
    """Return rich's console, which is imported where it is needed, with text made safe to show."""
    from rich.console import Console
    from rich.text import Text

    class SafeConsole(Console):
        def render_str(self, text: str, *arguments: Any, **choices: Any) -> Text:
            return super().render_str(shown(text), *arguments, **choices)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return SafeConsole
