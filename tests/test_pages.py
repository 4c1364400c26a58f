"""What pages tell people to type is there: imports in their Python, modules and files in their commands."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.pages import pages

ROOT = Path(__file__).parents[1]
PLACES = ("*.md", "docs/**/*.md", "examples/**/README.md", "studies/*/README.md")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(path for place in PLACES for path in ROOT.glob(place))
    if path.name not in ("CHANGELOG.md", "changes.md") and "node_modules" not in path.parts
}
PARTS = ("mobileclip", "benchmarks", "examples", "studies", "tests")


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, the empty one for commands."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for named, code in fences if named == language]


def imports(code: str) -> set[tuple[str, str]]:
    """Return what code imports from the library, as modules and names; no name where a module is imported."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
    return {(module, name) for module, name in found if module.partition(".")[0] == "mobileclip"}


PYTHON = [page for page, text in PAGES.items() if any(imports(code) for code in blocks(text, "python"))]


@pytest.mark.parametrize("page", PYTHON)
def test_what_a_page_imports_is_there(page):
    for module, name in sorted(set().union(*map(imports, blocks(PAGES[page], "python")))):
        found = importlib.import_module(module)
        assert not name or hasattr(found, name) or importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("page", PAGES)
def test_modules_scripts_and_files_that_a_page_names_are_there(page):
    commands = "\n".join(blocks(PAGES[page], "")) + "\n".join(re.findall(r"`([^`\n]+)`", PAGES[page]))
    for module in re.findall(r"python -m ([\w.]+)", commands):
        if module.partition(".")[0] in PARTS:
            place = ROOT.joinpath(*module.split("."))
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module
    for script in re.findall(r"(?<![\w/])((?:recipes|examples)/[\w/]+\.py)\b", commands):
        assert (ROOT / script).is_file(), script
    for path in re.findall(r"`((?:mobileclip|tests|docs|requirements)/[\w./-]+)`", PAGES[page]):
        assert (ROOT / path).exists(), path


def test_what_the_program_writes_stands_in_the_pages():
    """`python -m tests.pages` renews them."""
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what python -m tests.pages writes"
