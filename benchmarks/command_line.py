"""How every benchmark begins and ends: its choices are flags, its result is a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.table import Table

Spec = TypeVar("Spec")


def main(spec: type[Spec], run: Callable[[Spec], Any], description: str | None) -> None:
    """Read the choices from the command line, and run.

    Args:
        spec: every field is a flag.
        run: measures and prints.
        description: the module's docstring, which `--help` begins with.
    """
    from mobileclip.recipes.command_line import described, reported
    from mobileclip.terminal.help import parse

    choices = parse(spec, description=described(description))
    with reported("benchmark", None, kept="results that are in files are kept, the others are gone"):
        run(choices)


def empty_table(columns: Sequence[str], *, texts: Sequence[str] = (), title: str | None = None) -> Table:
    """Return a table without rows, its columns aligned to the right.

    Args:
        columns: what they are called.
        texts: those of them that are aligned to the left.
        title: of the table.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in texts else "right", no_wrap=True)
    return table
