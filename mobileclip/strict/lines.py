"""The lines of a text, as every program but Python's own `splitlines` counts them."""

from __future__ import annotations

import re

_END = re.compile(r"\r\n|\r|\n")


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text, without their ends: `\n`, `\r\n` or `\r`.

    U+2028, U+0085, form feeds and the like are characters of a line: JSON, names of files and captions have them.

    Examples:
        >>> split_lines("one\u2028line\ntwo\n")
        ['one\u2028line', 'two']
    """
    found = _END.split(text)
    return found if found[-1] else found[:-1]
