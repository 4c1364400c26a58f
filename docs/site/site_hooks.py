"""Hooks for mkdocs, which add generated pages and the navigation, and adapt links."""

from __future__ import annotations

from typing import Any

import griffe_classes  # noqa: F401  # mkdocstrings imports it by name later, when this folder is not on sys.path
from api_pages import api_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from model_pages import model_pages
from notebook_pages import notebook_pages
from repository_pages import MOVED, ROOT, path_of, relinked

# Weight of a page in the search, by the beginning of the path. Guides rank before reference pages.
BOOSTS = {
    **dict.fromkeys(("install", "using", "export", "search", "troubleshooting"), 3.0),
    **dict.fromkeys(("api/", "changelog", "contributing"), 0.1),
    **dict.fromkeys(("models/", "targets", "examples"), 0.3),
}
GENERATED = {"models/": model_pages, "api/": api_pages, "tutorials/": notebook_pages}


def on_config(config: MkDocsConfig) -> None:
    """Replace each generated folder in the navigation by the folder's pages."""
    config.nav = [one for entry in config.nav or () for one in _unfolded(entry)]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add generated pages, and pages from outside docs/."""
    for pages in GENERATED.values():
        for path, text in pages().items():
            files.append(File.generated(config, path, content=text))
    for path, page in MOVED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Point links to the site's pages, and set the page's weight in the search."""
    uri = page.file.src_uri
    page.meta["search"] = {"boost": next((boost for start, boost in BOOSTS.items() if uri.startswith(start)), 1.0)}
    return relinked(markdown, uri) if (ROOT / path_of(uri)).is_file() else markdown


def _unfolded(entry: Any) -> list[Any]:
    """Return a navigation entry, with a generated folder replaced by the folder's pages, overview first."""
    if isinstance(entry, str):
        return [_entry(path) for path in GENERATED[entry]()] if entry in GENERATED else [entry]
    ((title, inside),) = entry.items()
    if isinstance(inside, str):
        return [{title: _unfolded(inside)}] if inside in GENERATED else [entry]
    return [{title: [one for each in inside for one in _unfolded(each)]}]


def _entry(path: str) -> str | dict[str, str]:
    """Return a page's navigation entry; the title of a module omits the prefix `mobileclip.`."""
    inside = path.removeprefix("api/mobileclip.").removesuffix(".md")
    return {inside: path} if inside != path.removesuffix(".md") and path != "api/mobileclip.md" else path
