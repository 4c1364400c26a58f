"""Pages that stand elsewhere in the repository, and links between all of them that lead right on the forge and here."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Where a file of the repository stands in the site; every file in docs/ keeps its name.
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
    "examples/web/README.md": "examples/web.md",
}
_HOME = {page: path for path, page in MOVED.items()}
_LINK = re.compile(r"(?P<text>\[[^\]\n]*\])\((?P<target>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"^ *(```|~~~)")


def path_of(page: str) -> str:
    """Return where a page's text is in the repository.

    Args:
        page: its path in the site, such as `index.md`.
    """
    return _HOME.get(page, f"docs/{page}")


def relinked(text: str, page: str) -> str:
    """Return a page whose links to files of the repository lead to pages of the site.

    A file that is no page is named without a link.

    Args:
        text: Markdown.
        page: its path in the site.
    """
    folder = posixpath.dirname(path_of(page))
    fenced = False
    lines = []
    for line in text.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else _LINK.sub(lambda found: _link(found, folder, page), line))
    return "\n".join(lines)


def _link(found: re.Match[str], folder: str, page: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, found["target"]))
    target = MOVED.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if target is None:
        return found["text"][1:-1] if (ROOT / path).exists() else found[0]
    relative = posixpath.relpath(target, posixpath.dirname(page))
    return f"{found['text']}({relative}{found['anchor'] or ''})"
