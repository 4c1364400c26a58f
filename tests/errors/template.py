"""The wording of an error: literal text, and holes where values come in. Written as f-strings are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import attrs


@attrs.frozen
class Hole:
    """Where a value comes in: the expression as it stands in the code."""

    text: str


Part = str | Hole


@attrs.frozen
class Template:
    """Literal text and holes, in turn."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Template:
        """Join what is literal and what are holes, each side by side."""
        joined: list[Part] = []
        for part in parts:
            if isinstance(part, str) and joined and isinstance(joined[-1], str):
                joined[-1] += part
            elif part != "":
                joined.append(part)
        return cls(tuple(joined))

    @classmethod
    def parsed(cls, text: str) -> Template:
        """Return what `str` has written."""
        parts: list[Part] = []
        at = 0
        while at < len(text):
            if text[at] in "{}" and text[at : at + 2] == 2 * text[at]:
                parts.append(text[at])
                at += 2
            elif text[at] == "{":
                end = _end_of_hole(text, at)
                parts.append(Hole(text[at + 1 : end - 1]))
                at = end
            else:
                parts.append(text[at])
                at += 1
        return cls.of(parts)

    def __str__(self) -> str:
        return "".join(
            part.replace("{", "{{").replace("}", "}}") if isinstance(part, str) else f"{{{part.text}}}"
            for part in self.parts
        )

    @cached_property
    def literals(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if isinstance(part, str))

    @cached_property
    def letters(self) -> int:
        """Number of letters of the wording: how much it says."""
        return sum(letter.isalpha() for literal in self.literals for letter in literal)

    @property
    def skeleton(self) -> str:
        """The wording alone: what values are called in the code does not count."""
        return str(Template(tuple(part if isinstance(part, str) else Hole("") for part in self.parts)))


def _end_of_hole(text: str, start: int) -> int:
    depth, quote = 0, ""
    for at in range(start, len(text)):
        letter = text[at]
        if quote:
            quote = "" if letter == quote and text[at - 1] != "\\" else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += {"{": 1, "}": -1}.get(letter, 0)
            if depth == 0:
                return at + 1
    raise ValueError(f"a hole of {text!r} has no end")
