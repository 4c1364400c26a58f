"""Commands by name, some of which are groups of others; each has its own `--help`, and is imported when it runs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import attrs

from mobileclip.cli.flags import COMMON, READING
from mobileclip.registry import nearest
from mobileclip.terminal import say
from mobileclip.terminal.common import taken_common, use_common
from mobileclip.terminal.flags import ASKING, ASKING_ALL, parse
from mobileclip.terminal.help import paragraphs

_OF_ALL = (
    f"Every command takes {', and '.join(f'{name}: {about}' for name, about in COMMON.items())}. "
    "`--help-all` shows rare flags too."
)


@attrs.frozen
class Command:
    """A command that is imported when it runs.

    Args:
        place: its function, `module:name` in this package, whose arguments are flags and whose docstring is the help.
        example: what may be typed, from its own name on.
        summary: what it does, in a few words.
    """

    place: str
    example: str
    summary: str

    def load(self) -> Callable[..., Any]:
        """Return the function."""
        module, _, name = self.place.partition(":")
        function: Callable[..., Any] = getattr(import_module(f"{__package__}.{module}"), name)
        return function

    def run(self, program: str, arguments: Sequence[str]) -> None:
        """Read the flags, and call the function.

        Args:
            program: what was typed before.
            arguments: what was typed behind it.

        Raises:
            SystemExit: after `--help`, or if there is no such flag.
        """
        function = self.load()
        description = ""
        if not ASKING.isdisjoint(arguments) or ASKING_ALL in arguments:
            explained = inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:")[0]
            description = paragraphs(f"{explained}\n\n{_OF_ALL}")
        told, rest = taken_common(COMMON, arguments)
        with use_common(told):
            parse(function, rest, description=description, reading=READING, prog=program)


@attrs.frozen
class Commands:
    """A group of commands.

    Args:
        description: what they are for.
        groups: commands and further groups by name, under what they have in common.
        example: see `Command`; of the whole, none.
        summary: see `Command`.
    """

    description: str
    groups: Mapping[str, Mapping[str, Command | Commands]]
    example: str = ""
    summary: str = ""

    @property
    def members(self) -> dict[str, Command | Commands]:
        """The commands and groups by name."""
        return {name: one for group in self.groups.values() for name, one in group.items()}

    def run(self, program: str, arguments: Sequence[str]) -> None:
        """Run the command that is named first, or say which there are.

        Args:
            program: what was typed before.
            arguments: what was typed behind it.

        Raises:
            SystemExit: after `--help`, or if no command is named.
            ValueError: if there is no such command.
        """
        name = arguments[0].replace("_", "-") if arguments else ""
        if name in self.members:
            self.members[name].run(f"{program} {name}", arguments[1:])
        elif not name or not ASKING.isdisjoint(arguments):
            say(self.listed(program))
            sys.exit(0 if name else 2)
        else:
            near = nearest(arguments[0][:80], self.members, otherwise=f"{program} --help lists them")
            raise ValueError(f"there is no command {arguments[0][:80]!r}; {near}")

    def listed(self, program: str) -> str:
        """Return an example of every command with what it does, a line each."""
        width = max(len(one.example) for one in self.members.values())
        lines = [paragraphs(self.description)]
        for title, group in self.groups.items():
            lines += ["", title]
            lines += [f"  {one.example:{width}}  {one.summary}" for one in group.values()]
        return "\n".join([*lines, "", f"`{program} COMMAND --help` has all flags of a command."])
