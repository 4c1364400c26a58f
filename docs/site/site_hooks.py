"""What mkdocs asks while it builds the site: pages that are not written by hand, their place, and where links lead."""

from __future__ import annotations

from typing import Any

import griffe_classes  # noqa: F401  # mkdocstrings looks for it by its name, when this folder is no longer searched
from api_pages import api_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from model_pages import model_pages
from notebook_pages import notebook_pages
from repository_pages import MOVED, ROOT, path_of, relinked

# How much a page counts in the search, by how its path begins: guides before reference.
BOOSTS = {
    **dict.fromkeys(("install", "using", "export", "search", "troubleshooting"), 3.0),
    **dict.fromkeys(("api/", "changelog", "contributing"), 0.1),
    **dict.fromkeys(("models/", "targets", "examples"), 0.3),
}
GENERATED = {"models/": model_pages, "api/": api_pages, "tutorials/": notebook_pages}


def on_config(config: MkDocsConfig) -> None:
    """Put the pages of each generated folder where the navigation names the folder."""
    config.nav = [one for entry in config.nav or () for one in _unfolded(entry)]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what is generated, and what stands elsewhere in the repository."""
    for pages in GENERATED.values():
        for path, text in pages().items():
            files.append(File.generated(config, path, content=text))
    for path, page in MOVED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Lead links to the site's pages, and say what counts in the search."""
    uri = page.file.src_uri
    page.meta["search"] = {"boost": next((boost for start, boost in BOOSTS.items() if uri.startswith(start)), 1.0)}
    return relinked(markdown, uri) if (ROOT / path_of(uri)).is_file() else markdown


def _unfolded(entry: Any) -> list[Any]:
    """Return an entry of the navigation with a generated folder's pages in place of its name, the overview first."""
    if isinstance(entry, str):
        return [_entry(path) for path in GENERATED[entry]()] if entry in GENERATED else [entry]
    ((title, inside),) = entry.items()
    if isinstance(inside, str):
        return [{title: _unfolded(inside)}] if inside in GENERATED else [entry]
    return [{title: [one for each in inside for one in _unfolded(each)]}]


def _entry(path: str) -> str | dict[str, str]:
    """Return a page's entry: a subpackage is called by its name within the library."""
    inside = path.removeprefix("api/mobileclip.").removesuffix(".md")
    return {inside: path} if inside != path.removesuffix(".md") and path != "api/mobileclip.md" else path
