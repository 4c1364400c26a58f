"""Commands by name, some of which are groups of others; each has a `--help` of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from tyro.extras import SubcommandApp

from mobileclip.terminal.help import describe, paragraphs, parse, readable


@attrs.frozen
class Commands:
    """A group of commands.

    Args:
        description: what they are for; the first paragraph says it in a list of groups.
        members: by name, functions, whose arguments are flags and whose docstrings are the help, and other groups.
    """

    description: str
    members: Mapping[str, Callable[..., Any] | Commands]

    def run(self, program: str, arguments: Sequence[str]) -> None:
        """Run the command that is named first, or say which there are.

        Args:
            program: what was typed before.
            arguments: what was typed behind it.

        Raises:
            SystemExit: after `--help`, or if there is no such command or flag.
        """
        name = arguments[0].replace("_", "-") if arguments else ""
        chosen = self.members.get(name)
        if isinstance(chosen, Commands):
            chosen.run(f"{program} {name}", arguments[1:])
        elif chosen is not None:
            description = paragraphs(_explained(chosen))
            parse(readable(chosen), arguments[1:], description=description, prog=f"{program} {name}")
        else:
            describe(paragraphs(self.description), arguments)
            self.listed().cli(prog=program, args=arguments, description="")

    def listed(self) -> SubcommandApp:
        """Return them with a line each."""
        app = SubcommandApp()
        for name, one in self.members.items():
            if isinstance(one, Commands):
                app.command(one.listed(), name=name, help=_summary(one.description))
            else:
                app.command(name=name, help=_summary(_explained(one)))(one)
        return app


def _explained(command: Callable[..., Any]) -> str:
    """Return what a docstring says before it comes to the arguments."""
    return inspect.cleandoc(command.__doc__ or "").partition("\n\nArgs:")[0]


def _summary(text: str) -> str:
    return " ".join(text.strip().partition("\n\n")[0].split())
