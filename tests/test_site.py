"""The documentation's site: every public name has its place, and links lead right on the forge and in the site."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import posixpath
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from api_pages import api_pages, homes
from count_models import FILE, model_values
from model_pages import average, model_names, model_pages, title_of
from notebook_pages import notebook_pages
from repository_pages import MOVED, path_of, relinked

import mobileclip
from mobileclip.blocks import models
from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.evaluation import published_with
from mobileclip.evaluation.results import published_model
from mobileclip.serialization import to_json
from tests.test_doctests import SUBPACKAGES, SUBPACKAGES_OF_SPECS, names

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
    found = pkgutil.walk_packages(mobileclip.__path__, "mobileclip.")
    modules = [one.name for one in found if "__main__" not in one.name]
    subpackages = [name for name in ("mobileclip", *modules) if hasattr(importlib.import_module(name), "__all__")]
    # What a folder's stub lists is for the rest of the house, unless its own list says more.
    return [name for name in subpackages if "\n__all__ = " in source(name) or "attach_stub" not in source(name)]


def test_every_public_name_is_described_once_and_listed_in_its_subpackages():
    pages = api_pages()
    described = [name for page in pages.values() for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    assert len(described) == len(set(described))
    for subpackage in {*with_all(), *SUBPACKAGES, *SUBPACKAGES_OF_SPECS}:
        page = pages[f"api/{subpackage}.md"]
        module = importlib.import_module(subpackage)
        for name in names(module):
            # A module without `__all__` also has the names that it imports.
            if hasattr(module, "__all__") or getattr(getattr(module, name), "__module__", None) == subpackage:
                assert f"| [`{name}`]" in page, f"{subpackage}.{name} is not on its page"
    for home in homes().values():
        subpackage, _, name = home.rpartition(".")
        assert home in described or inspect.ismodule(getattr(importlib.import_module(subpackage), name)), home


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_right_on_the_forge_and_in_the_site(page):
    source = ROOT / path_of(page)
    text = re.sub(r"```.*?```", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        assert (source.parent / target).exists(), f"{source.name} links to {target}, which is not there"
    for target in LINK.findall(relinked(text, page)):
        inside = posixpath.normpath((Path(page).parent / target).as_posix())
        assert inside in pages_by_path() or (ROOT / "docs" / inside).exists(), f"{page} links to {target}: no page"


@pytest.mark.parametrize(
    ("text", "page", "expected"),
    [
        ("[a](docs/data.md#join) [b](examples/README.md)", "index.md", "[a](data.md#join) [b](examples.md)"),
        ("[docs/training.md](docs/training.md)", "index.md", "[Training](training.md)"),
        ("[sizes](docs/site/models.json)", "index.md", "[sizes](models/index.md)"),
        ("[search](docs/tutorials/search.ipynb)", "index.md", "[search](tutorials/search.md)"),
        ("[web](web/README.md) [d](../docs/export.md)", "examples.md", "[web](examples/web.md) [d](export.md)"),
        ("[up](../README.md)", "examples/web.md", "[up](../examples.md)"),
        ("[code](../examples/python/contract.py)", "export.md", "code"),
        ("[lost](no_such.md) [out](https://a.b/c.md)", "export.md", "[lost](no_such.md) [out](https://a.b/c.md)"),
        ("```\n[x](../README.md)\n```", "export.md", "```\n[x](../README.md)\n```"),
    ],
)
def test_a_link_from_a_moved_page_leads_to_the_page_that_it_meant(text, page, expected):
    assert relinked(text, page) == expected


def test_every_model_known_by_name_has_a_page():
    pages = model_pages()
    assert set(model_names()) == set(models)
    for name in models:
        assert f"# {title_of(name)}\n" in pages[f"models/{name}.md"]
        assert f"[{title_of(name)}]({name}.md)" in pages["models/index.md"]
        assert ("`--interpolation bicubic`" in pages[f"models/{name}.md"]) == (
            models[name].image.input.interpolation == "bilinear" and published_with(name, "bicubic") == name
        )
    names = ("mobileclip_s0", "mobileclip_blt", "mobileclip2_l14")
    assert [title_of(name) for name in names] == ["MobileCLIP-S0", "MobileCLIP-B (LT)", "MobileCLIP2-L-14"]


def test_what_is_kept_of_a_model_is_what_the_library_says():
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    for name, spec in models.items():
        assert kept[name]["weights"] == PRETRAINED[name]
        folded = sum(tower["parameters"]["folded"] for tower in kept[name]["towers"].values())
        assert folded == pytest.approx(published_model(name).num_parameters, rel=2e-3)
        said = json.loads(to_json(spec))
        for tower, key in product(("image", "text"), ("kind", "embedding_dim", "input")):
            assert kept[name]["towers"][tower][key] == said[tower][key]


def test_multiply_accumulates_are_those_of_the_catalogue():
    assert model_values("mobileclip_s0") == json.loads(FILE.read_text(encoding="utf-8"))["mobileclip_s0"]


def test_published_averages_are_those_that_the_papers_state():
    """Source: MobileCLIP, table 8, to a digit behind the point."""
    names = ("mobileclip_s0", "mobileclip_s1", "mobileclip_s2", "mobileclip_b", "mobileclip_blt")
    assert [round(average(name), 1) for name in names] == [58.1, 61.3, 63.7, 65.2, 65.8]
