"""`mobileclip completion`: tyro's script by which a shell completes commands and flags."""

from __future__ import annotations

from contextlib import suppress
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, subcommand

from mobileclip.cli.commands import Commands
from mobileclip.cli.flags import READING
from mobileclip.terminal.flags import reader_of, specs_read


def completion(shell: Positional[Literal["bash", "zsh", "tcsh"]] = "bash", /) -> None:
    """Print a script by which a shell completes commands and flags; each recipe's own are in its help.

    source <(mobileclip completion)     # for this shell; as a line of ~/.bashrc for all

    Args:
        shell: that the script is for.
    """
    from mobileclip.cli.table import COMMANDS

    with specs_read(READING), suppress(SystemExit):
        tyro.cli(_chosen_among(COMMANDS), prog="mobileclip", args=["--tyro-print-completion", shell])


def _chosen_among(group: Commands) -> Any:
    """Return a group of commands as tyro reads it: a union of functions."""

    def member(name: str) -> Any:
        one = group.members[name]
        if not isinstance(one, Commands):
            return Annotated[Any, subcommand(name=name, constructor=reader_of(one.load(), READING))]

        def chosen(command: Any) -> None: ...

        chosen.__annotations__["command"] = tyro.conf.OmitSubcommandPrefixes[_chosen_among(one)]  # type: ignore[misc]
        return Annotated[Any, subcommand(name=name, constructor=chosen)]

    return reduce(or_, map(member, group.members))
