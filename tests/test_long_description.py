"""The README as a package registry shows it, where a relative link leads nowhere; and what a release asks for."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from long_description import PAPERS, distribution, long_description, require_release, urls
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


class Targets(HTMLParser):
    """Collects where links and pictures lead."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):  # noqa: ARG002
        self.found += [value for name, value in attrs if name in {"href", "src"}]


def targets(text):
    page = Targets()
    page.feed(MarkdownIt("commonmark").enable("table").render(text))
    return page.found


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("repository", ["", ADDRESS])
def test_no_link_of_the_rendered_page_is_relative(repository, registered, monkeypatch):
    text = long_description(said=said(repository=repository, registered=registered, monkeypatch=monkeypatch))
    found = targets(text)
    assert len(found) > (20 if repository else 1)
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


@pytest.mark.parametrize(
    "text",
    [
        '<img src="docs/latency.png">',
        "<a href=docs/using.md>use</a>",
        "[use]\n\n[use]: docs/using.md",
        "[use](#pages)",
        '[use](docs/using.md "how")',
        "[![drawn](docs/latency.png)](docs/latency.md)",
    ],
)
def test_a_relative_link_that_is_not_made_absolute_fails_the_build(text, monkeypatch):
    assert [target for target in targets(text) if not target.startswith("https://")]
    with pytest.raises(ValueError, match="relative link"):
        long_description(text, said(repository=ADDRESS, monkeypatch=monkeypatch))


def test_it_is_installed_by_its_name_once_that_is_registered(monkeypatch):
    assert README.count(INSTALL) == 1
    assert INSTALL in long_description(said=said(monkeypatch=monkeypatch))
    registered = long_description(said=said(registered=True, monkeypatch=monkeypatch))
    assert f"pip install '{extras.DISTRIBUTION}[hub,collections]'  # Python 3.10 or newer\n" in registered
    assert "in a clone of this repository" not in registered


def test_the_metadata_have_what_the_build_makes():
    core = ProjectMetadata(str(ROOT), PluginManager()).core
    assert core.readme == long_description()
    assert core.readme_content_type == "text/markdown"
    assert core.urls == urls()
    assert core.dynamic == []


def test_urls_are_those_of_the_repository(monkeypatch):
    assert urls(said(monkeypatch=monkeypatch)) == PAPERS
    known = urls(said(repository=ADDRESS, monkeypatch=monkeypatch))
    assert known["Homepage"] == ADDRESS
    assert {*known} == {"Homepage", "Documentation", "Changelog", "Issues", *PAPERS}


def test_a_release_fails_without_an_address_or_a_name(monkeypatch):
    require_release(said(repository=ADDRESS, registered=True, monkeypatch=monkeypatch))
    for address in ("", "owner/name", f"{ADDRESS}/", "http://forge.example/owner/name", "https://forge.example"):
        with pytest.raises(ValueError, match="REPOSITORY"):
            require_release(said(repository=address, registered=True, monkeypatch=monkeypatch))
    with pytest.raises(ValueError, match="IS_REGISTERED"):
        require_release(said(repository=ADDRESS, monkeypatch=monkeypatch))


def test_the_citation_is_as_the_format_asks():
    """Citation File Format 1.2.0: what must be there, and what a person or an entity is called by."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["license"] == "MIT"
    assert {*cited} == {"cff-version", "message", "title", "type", "license", "authors", "references"}
    for work in (cited, *cited["references"]):
        assert {"type", "title", "authors"} <= {*work}
        assert work["authors"]
        assert all({*one} in ({"family-names", "given-names"}, {"name"}) for one in work["authors"])
    papers = {one["title"].partition(":")[0]: one["url"] for one in cited["references"]}
    assert PAPERS.items() <= papers.items()


def test_what_publishes_asks_for_it_before_it_builds():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for step in flow["jobs"]["build"]["steps"] if "run" in step]
    (asked,) = [index for index, one in enumerate(commands) if one.endswith("docs/site/long_description.py")]
    assert asked < commands.index("uv build")
    done = subprocess.run(
        [sys.executable, "docs/site/long_description.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    ready = bool(distribution()["REPOSITORY"]) and distribution()["IS_REGISTERED"]
    assert (done.returncode == 0) == ready, done.stderr
    assert ready or "mobileclip/extras.py" in done.stderr
