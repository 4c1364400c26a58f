"""Pages of the site from outside docs/, and links that work both in the repository and on the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Path on the site by path in the repository. Files in docs/ keep their names.
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "recipes/README.md": "recipes.md",
    "examples/README.md": "examples.md",
    "examples/web/README.md": "examples/web.md",
}
# Files that the site replaces by generated pages.
_SHOWN = {"docs/site/models.json": "models/index.md"}
_HOME = {page: path for path, page in MOVED.items()}
LINK = re.compile(r"(?P<text>\[[^\]\n]*\])\((?P<target>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^ *(```|~~~)")


def path_of(page: str) -> str:
    """Return the path in the repository of a page's text.

    Args:
        page: path on the site, such as `index.md`.
    """
    return _HOME.get(page, f"docs/{page}")


def relinked(text: str, page: str) -> str:
    """Return a page whose links to files of the repository point to pages of the site.

    If the file is not a page, the link's text replaces the link. If the link's text ends with `.md`, the page's title
    replaces the text.

    Args:
        text: Markdown.
        page: path on the site.
    """
    folder = posixpath.dirname(path_of(page))
    return outside_code(text, lambda line: LINK.sub(lambda found: _link(found, folder, page), line))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Return Markdown after applying `change` to every line outside fenced blocks."""
    fenced = False
    lines = []
    for line in text.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else change(line))
    return "\n".join(lines)


def _link(found: re.Match[str], folder: str, page: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, found["target"]))
    target = MOVED.get(path) or _SHOWN.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if target is not None and target.endswith(".ipynb"):
        target = str(Path(target).with_suffix(".md"))  # `notebook_pages`
    text = found["text"][1:-1]
    if target is None:
        return text if (ROOT / path).exists() else found[0]
    relative = posixpath.relpath(target, posixpath.dirname(page))
    name = _title_of(path) if text.endswith(".md") else text
    return f"[{name}]({relative}{found['anchor'] or ''})"


def _title_of(path: str) -> str:
    """Return the title of the page at a path in the repository."""
    found = _TITLE.search((ROOT / path).read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{path} has no title; begin the file with a line `# TITLE`")
    return found[1]
