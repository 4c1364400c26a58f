"""The header that a recipe's file begins with: its title, prose, and entries such as `Command:` and `Hardware:`."""

from __future__ import annotations

import re

import attrs

from mobileclip.terminal.help import command_lines, laid_out

_ENTRY = re.compile(r"^([A-Z][a-z ]+):\s+", re.MULTILINE)
_COMMANDS = ("Command", "Try it")


@attrs.frozen(kw_only=True)
class Header:
    """The header of a recipe: title, prose and entries such as `Command` and `Hardware`.

    Args:
        title: its first line.
        prose: paragraphs, each in one line.
        entries: names to texts, in order; a command's lines are kept, those of other entries run together.
    """

    title: str
    prose: tuple[str, ...]
    entries: dict[str, str]

    def description(self) -> str:
        """Return what `--help-all` begins with: everything, as wide as the terminal, with every command in a line."""
        width = max(map(len, self.entries), default=0) + len(":  ")
        entries = (laid_out(text, heading=f"{name}:".ljust(width)) for name, text in self.entries.items())
        return "\n\n".join((*map(laid_out, (self.title, *self.prose)), "\n".join(entries))).strip()

    def brief(self) -> str:
        """Return what `--help` begins with: the title, and the commands that run it and try it."""
        commands = {name: text for name, text in self.entries.items() if name in _COMMANDS}
        return attrs.evolve(self, prose=(), entries=commands).description()


def read_header(docstring: str | None) -> Header:
    """Return the header that is written as a module's docstring.

    Args:
        docstring: a title; then, apart by empty lines, prose and a block of entries, whose further lines are indented;
            None is an empty one.
    """
    title, *blocks = (docstring or "").strip().split("\n\n")
    entries: dict[str, str] = {}
    prose: list[str] = []
    for block in blocks:
        if _ENTRY.match(block):
            _, *parts = _ENTRY.split(block)
            for name, text in zip(parts[::2], parts[1::2], strict=True):
                entries[name] = "\n".join(command_lines(text.replace("\\\n", " ")))
        else:
            prose.append(" ".join(block.split()))
    return Header(title=" ".join(title.split()), prose=tuple(prose), entries=entries)
