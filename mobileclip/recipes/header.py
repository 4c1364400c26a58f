"""The header that a recipe's file begins with: its title, prose, and entries such as `Command:` and `Hardware:`."""

from __future__ import annotations

import re

import attrs

_ENTRY = re.compile(r"^([A-Z][a-z ]+):\s+", re.MULTILINE)
_PROGRAMS = ("python ", "torchrun ", "mobileclip ", "make ")


@attrs.frozen(kw_only=True)
class Header:
    """What a recipe says of itself.

    Args:
        title: its first line.
        prose: paragraphs, each in one line.
        entries: names to texts, in order; a command's lines are kept, those of other entries run together.
    """

    title: str
    prose: tuple[str, ...]
    entries: dict[str, str]

    def description(self) -> str:
        """Return what `--help` begins with: everything, a paragraph for every command and entry."""
        lines = [f"{name}: {line}" for name, text in self.entries.items() for line in text.splitlines()]
        return "\n\n".join((self.title, *self.prose, *lines))


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
            entries |= {name: _text(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}
        else:
            prose.append(" ".join(block.split()))
    return Header(title=" ".join(title.split()), prose=tuple(prose), entries=entries)


def _text(entry: str) -> str:
    """Return an entry with a line for every command in it, or in one line."""
    found: list[str] = []
    for line in map(str.strip, entry.replace("\\\n", " ").strip().splitlines()):
        if found and not line.startswith(_PROGRAMS):
            found[-1] += f" {line}"
        else:
            found.append(line)
    return "\n".join(" ".join(line.split()) for line in found)
