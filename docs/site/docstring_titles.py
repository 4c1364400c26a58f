"""Docstring sections of this library that documentation tools do not know."""

from __future__ import annotations

import re

_SECTION = re.compile(r"^(Shape|Folding|Source|Differs):(?: +(.*))?$")
_ANY_SECTION = re.compile(r"^[A-Z][a-z]+:( |$)")


def with_titles(text: str) -> str:
    """Turn this library's own sections of a docstring into paragraphs that begin with the section's title.

    A section is `Title: text`, or `Title:` above an indented block, up to an empty line or the next section.

    Args:
        text: a docstring without indentation.
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
