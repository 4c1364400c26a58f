"""The documentation's site: every public name has its place, and links lead right on the forge and in the site."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import posixpath
import re
from functools import cache
from pathlib import Path

import pytest
from api_rooms import api_pages, homes, public_rooms
from count_models import FILE, model_values
from docstring_titles import with_titles
from model_pages import average, measured_lines, measured_tables, model_names, model_pages, title_of
from notebook_pages import FOLDER, notebook_pages
from repository_pages import MOVED, path_of, relinked
from search_order import ANSWERS, first_page, require_answers, search_settings

import mobileclip
from mobileclip.blocks import models
from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.evaluation import published_with
from mobileclip.evaluation.report import published_model
from mobileclip.serialization import to_json
from tests.test_doctests import ROOMS, ROOMS_OF_SPECS, names

ROOT = Path(__file__).parents[1]
PAGES = [*(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("*.md")), *MOVED.values()]
LINK = re.compile(r"\]\(([^)\s:#]+)(?:#[^)\s]*)?\)")


@cache
def pages_by_path():
    return {*PAGES, *model_pages(), *notebook_pages()}


def source(module):
    path = ROOT.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def with_all():
    modules = [
        one.name for one in pkgutil.walk_packages(mobileclip.__path__, "mobileclip.") if "__main__" not in one.name
    ]
    rooms = [name for name in ("mobileclip", *modules) if hasattr(importlib.import_module(name), "__all__")]
    # What a folder's stub lists is for the rest of the house, unless its own list says more.
    return [name for name in rooms if "\n__all__ = " in source(name) or "attach_stub" not in source(name)]


def test_every_public_name_is_described_once_and_listed_in_its_rooms():
    pages = api_pages()
    described = [name for page in pages.values() for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    assert len(described) == len(set(described))
    for room in {*with_all(), *ROOMS, *ROOMS_OF_SPECS}:
        page = pages[f"api/{room}.md"]
        module = importlib.import_module(room)
        for name in names(module):
            # A module without `__all__` also has the names that it imports.
            if hasattr(module, "__all__") or getattr(getattr(module, name), "__module__", None) == room:
                assert f"| [`{name}`]" in page, f"{room}.{name} is not on its page"
    for home in homes().values():
        room, _, name = home.rpartition(".")
        assert home in described or inspect.ismodule(getattr(importlib.import_module(room), name)), home


def test_what_is_read_from_the_source_is_what_python_imports():
    for room in public_rooms():
        module = importlib.import_module(room.module)
        assert room.summary == module.__doc__.partition("\n")[0]
        for one in room.names:
            value = getattr(module, one.name)
            defined, _, name = one.source.rpartition(".")
            assert getattr(importlib.import_module(defined), name) is value
            if one.kind in ("class", "function"):
                assert one.summary == inspect.getdoc(value).partition("\n")[0]


def test_every_page_is_in_the_navigation_once():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r"\S+\.md\b", navigation)) == sorted(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_right_on_the_forge_and_in_the_site(page):
    source = ROOT / path_of(page)
    text = re.sub(r"```.*?```", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        assert (source.parent / target).exists(), f"{source.name} links to {target}, which is not there"
    for target in LINK.findall(relinked(text, page)):
        inside = posixpath.normpath((Path(page).parent / target).as_posix())
        assert inside in pages_by_path() or (ROOT / "docs" / inside).exists(), (
            f"{page} links to {target}, which is no page"
        )


def test_a_link_from_a_moved_page_leads_to_the_page_that_it_meant():
    text = "[a](docs/data.md#joining) [b](examples/README.md)"
    assert relinked(text, "index.md") == "[a](data.md#joining) [b](examples.md)"
    assert relinked("[docs/training.md](docs/training.md)", "index.md") == "[Training](training.md)"
    assert relinked("[sizes](docs/site/models.json)", "index.md") == "[sizes](models/index.md)"
    assert relinked("[search](docs/tutorials/search.ipynb)", "index.md") == "[search](tutorials/search.md)"
    assert (
        relinked("[web](web/README.md) [d](../docs/devices.md)", "examples.md")
        == "[web](examples/web.md) [d](devices.md)"
    )
    assert relinked("[up](../README.md)", "examples/web.md") == "[up](../examples.md)"
    assert relinked("[code](../examples/python/contract.py)", "devices.md") == "code"
    assert (
        relinked("[lost](no_such.md) [out](https://a.b/c.md)", "devices.md")
        == "[lost](no_such.md) [out](https://a.b/c.md)"
    )
    assert relinked("```\n[x](../README.md)\n```", "devices.md") == "```\n[x](../README.md)\n```"


def test_every_notebook_is_a_page_of_its_text_and_its_code():
    pages = notebook_pages()
    assert {*pages} == {f"tutorials/{path.stem}.md" for path in FOLDER.glob("*.ipynb")}
    for page, text in pages.items():
        assert re.match(r"# \w", text)
        assert text.count("```python\n") * 2 == text.count("```") >= 4
        for target in LINK.findall(text):
            assert (FOLDER.parent / "tutorials" / target).is_file(), f"{page}: {target}"


def test_search_counts_reference_less():
    assert search_settings("export.md")["boost"] > search_settings("api/mobileclip.export.md")["boost"]


def test_a_search_shows_the_page_that_its_heading_names_first():
    entries = [
        {"location": f"{page}#part", "title": f"How to {word}", "text": "<p>short</p>"}
        for word, page in ANSWERS.items()
    ]
    mentioned = {"location": "security.html", "title": "Security", "text": f"<p>{' '.join(ANSWERS)}</p>" * 5}
    assert first_page([mentioned, *entries], "install") == "install.html"
    require_answers([mentioned, *entries])
    named = {"location": "api/onnx.html", "title": "onnx", "text": "", "boost": 0.1}
    require_answers([*entries, named])
    with pytest.raises(ValueError, match=r"'onnx' finds api/onnx\.html first, expected export\.html"):
        require_answers([*entries, {**named, "boost": 1}])


def test_sections_of_our_own_become_paragraphs_with_titles():
    text = """Do it.

Shape:
    `(a, b)`
    to `(b,)`.

Args:
    x: a thing.

Folding: to one
    layer.
Source: section 3."""
    title = '<span class="doc-section-title">{}:</span> '
    paragraphs = [part.strip() for part in re.split(r"\n{2,}", with_titles(text))]
    assert paragraphs == [
        "Do it.",
        f"{title.format('Shape')}`(a, b)`\nto `(b,)`.",
        "Args:\n    x: a thing.",
        f"{title.format('Folding')}to one\nlayer.",
        f"{title.format('Source')}section 3.",
    ]


def test_every_model_known_by_name_has_a_page():
    pages = model_pages()
    assert set(model_names()) == set(models)
    for name in models:
        assert f"# {title_of(name)}\n" in pages[f"models/{name}.md"]
        assert f"[{title_of(name)}]({name}.md)" in pages["models/index.md"]
        assert ("`--interpolation bicubic`" in pages[f"models/{name}.md"]) == (
            models[name].image.input.interpolation == "bilinear" and published_with(name, "bicubic") == name
        )
    assert [title_of(name) for name in ("mobileclip_s0", "mobileclip_blt", "mobileclip2_l14")] == [
        "MobileCLIP-S0",
        "MobileCLIP-B (LT)",
        "MobileCLIP2-L-14",
    ]


def test_what_is_kept_of_a_model_is_what_the_library_says():
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    for name, spec in models.items():
        assert kept[name]["weights"] == PRETRAINED[name]
        published = published_model(name).num_parameters
        assert sum(tower["parameters"]["folded"] for tower in kept[name]["towers"].values()) == pytest.approx(
            published, rel=2e-3
        )
        said_of = json.loads(to_json(spec))
        for tower, said in ((tower, said_of[tower]) for tower in ("image", "text")):
            assert {key: kept[name]["towers"][tower][key] for key in ("kind", "embedding_dim", "input")} == {
                key: said[key] for key in ("kind", "embedding_dim", "input")
            }


def test_multiply_accumulates_are_those_of_the_catalogue():
    assert model_values("mobileclip_s0") == json.loads(FILE.read_text(encoding="utf-8"))["mobileclip_s0"]


def test_published_averages_are_those_that_the_papers_state():
    """Source: MobileCLIP, table 8, to a digit behind the point."""
    names = ("mobileclip_s0", "mobileclip_s1", "mobileclip_s2", "mobileclip_b", "mobileclip_blt")
    assert [round(average(name), 1) for name in names] == [58.1, 61.3, 63.7, 65.2, 65.8]


def test_measured_latencies_are_the_rows_of_their_page():
    written = measured_lines()
    tables = measured_tables("mobileclip2_s0").split("\n")
    rows = [line for line in tables if line.startswith("| MobileCLIP")]
    assert rows == [line for line in written if line.startswith("| MobileCLIP2-S0, ")]
    assert len(rows) == 2 * sum(line.startswith("| | the release, ms") for line in tables) == 2
    assert set(tables) <= set(written)
    assert measured_tables("mobileclip2_s4") == ""


def table_of(text: str, first: str) -> dict[str, dict[str, str]]:
    """Return the rows of the table whose first column is called so, by their first cells without links."""
    lines = text.split("\n")
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in _until_blank(lines[start:])]
    titles, _, *rows = rows
    return {re.sub(r"\[(.+?)\]\(.*?\)", r"\1", row[0]): dict(zip(titles, row, strict=True)) for row in rows}


def _until_blank(lines: list[str]) -> list[str]:
    return lines[: lines.index("")]


def test_the_table_of_models_says_what_the_site_says():
    said = table_of((ROOT / "docs" / "using.md").read_text(encoding="utf-8"), "model")
    known = table_of(model_pages()["models/index.md"], "model")
    assert set(said) == {title_of(name) for name in models}
    for name, spec in models.items():
        normalised = ", normalised" if any(spec.image.input.mean) else ""
        assert said[title_of(name)]["image"] == f"{spec.image.input.size}{normalised}"
    for title, row in said.items():
        columns = ("model", "parameters, millions", "MB in float16", "image", "ImageNet-1k", "mean of 38", "iPhone, ms")
        assert row == {column: known[title][column] for column in columns} | {"model": title}
