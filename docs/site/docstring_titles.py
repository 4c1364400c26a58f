"""The sections that docstrings here have beside those that Python's documentation tools know."""

from __future__ import annotations

import re

_SECTION = re.compile(r"^(Shape|Folding|Source|Differs):(?: +(.*))?$")
_ANY_SECTION = re.compile(r"^[A-Z][a-z]+:( |$)")


def with_titles(text: str) -> str:
    """Return a docstring in which each section of our own is a paragraph that begins with its title.

    A section is `Title: text`, or `Title:` above an indented block; it ends at an empty line or at the next section.

    Args:
        text: a docstring without its indentation.
    """
    lines, result, index = text.split("\n"), [], 0
    while index < len(lines):
        found = _SECTION.match(lines[index])
        index += 1
        if found is None:
            result.append(lines[index - 1])
            continue
        end = index
        while end < len(lines) and lines[end] and not _ANY_SECTION.match(lines[end]):
            end += 1
        body = "\n".join([found[2] or "", *map(str.strip, lines[index:end])]).strip()
        result.extend(["", f'<span class="doc-section-title">{found[1]}:</span> {body}', ""])
        index = end
    return "\n".join(result).strip()
