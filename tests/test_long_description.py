"""The README as a package registry shows it, where a relative link leads nowhere; and what a release asks for."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from long_description import long_description, urls
from markdown_it import MarkdownIt

from mobileclip import extras

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "https://forge.example/owner/name"
INSTALL = "pip install '.[hub,collections]' "


def said(*, repository="", registered=False, monkeypatch):
    """Return what the library says of itself, as if it had an address or were registered."""
    monkeypatch.setattr(extras, "IS_REGISTERED", registered)
    return vars(extras) | {"REPOSITORY": repository, "IS_REGISTERED": registered}


def targets(text):
    """Where links and pictures of a page lead."""
    found, page = [], HTMLParser()
    page.handle_starttag = lambda _, attrs: found.extend(value for name, value in attrs if name in {"href", "src"})
    page.feed(MarkdownIt("commonmark").enable("table").render(text))
    return found


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("repository", ["", ADDRESS])
def test_no_link_of_the_rendered_page_is_relative(repository, registered, monkeypatch):
    text = long_description(said=said(repository=repository, registered=registered, monkeypatch=monkeypatch))
    found = targets(text)
    assert len(found) > (10 if repository else 1)
    assert [target for target in found if not target.startswith("https://")] == []


def test_links_lead_to_the_files_of_the_version(monkeypatch):
    known = said(repository=ADDRESS, monkeypatch=monkeypatch)
    version = known["VERSION"]
    files = [target.removeprefix(f"{ADDRESS}/blob/v{version}/") for target in targets(long_description(said=known))]
    inside = [one.partition("#")[0] for one in files if not one.startswith("https://")]
    assert {"docs/using.md", "CHANGELOG.md"} <= set(inside)
    assert [one for one in inside if not (ROOT / one).is_file()] == []
    text = "![drawn](docs/latency.png) and [a folder](docs), ```` `code` ````\n```\n[kept](as/it/is)\n```"
    assert long_description(text, known) == (
        f"![drawn]({ADDRESS}/raw/v{version}/docs/latency.png) and [a folder]({ADDRESS}/tree/v{version}/docs), "
        "```` `code` ````\n```\n[kept](as/it/is)\n```"
    )


def test_the_metadata_have_what_the_build_makes():
    core = ProjectMetadata(str(ROOT), PluginManager()).core
    assert core.readme == long_description()
    assert core.readme_content_type == "text/markdown"
    assert core.urls == urls()
    assert core.dynamic == []
