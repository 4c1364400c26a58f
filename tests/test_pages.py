"""What pages tell people to type is there: imports in their Python, modules and files in their commands."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from mobileclip.cli.flags import COMMON, KEYED, flags_of
from mobileclip.registry import IMPORT
from tests.architecture import imports_between, reduced
from tests.flags import commands
from tests.pages import pages

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/README.md")])
    if path.name not in ("CHANGELOG.md", "changes.md") and "node_modules" not in path.parts
}
PARTS = ("mobileclip", "benchmarks", "examples", "tests")
# Their flags are those of the recipe that is named.
RECIPES = ("train", "reinforce", "finetune")


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


def test_imports_are_found():
    assert len(PYTHON) > 8
    assert imports("import attrs\nfrom mobileclip.blocks import a, b") == {
        ("mobileclip.blocks", "a"),
        ("mobileclip.blocks", "b"),
    }


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_scripts_of_commands_are_there(page):
    commands = "\n".join(blocks(PAGES[page], "")) + "\n".join(re.findall(r"`([^`\n]+)`", PAGES[page]))
    for module in re.findall(r"python -m ([\w.]+)", commands):
        if module.partition(".")[0] in PARTS:
            place = ROOT.joinpath(*module.split("."))
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), (
                f"{page}: python -m {module}"
            )
    for script in re.findall(r"(?<![\w/])((?:recipes|examples)/[\w/]+\.py)\b", commands):
        assert (ROOT / script).is_file(), f"{page}: {script}"


@cache
def flags_by_command() -> dict[str, set[str]]:
    """Return the flags of every command, and its keys as `--set decode`; recipes have others beside these."""
    found = {}
    for name, command in commands():
        flags = flags_of(command.load())
        own = {one for flag in flags for one in flag.names} | {f"{flag.keyed} {flag.key}" for flag in flags}
        found[name] = own | {*KEYED, *COMMON, IMPORT, "--help", "--help-all"}
    return found


def unknown_flags(text: str) -> list[str]:
    """Return the flags and keys in commands of a page that its commands do not have, each behind the command."""
    lines = "\n".join(blocks(text, "")).replace("\\\n", " ").split("\n") + re.findall(r"`([^`\n]+)`", text)
    wrong = []
    for given in (part for line in lines for part in re.split(r"&&|\|| #", line)):
        called = re.match(r"\s*(?:\$ |python -m )?mobileclip ((?:[a-z-]+ ?){1,2})", given)
        words = called[1].split() if called else []
        name = next((name for name in (" ".join(words), *words[:1]) if name in flags_by_command()), None)
        if name and name not in RECIPES:
            typed = re.findall(r"(?<!\S)--?[a-z][a-z-]*", given)
            typed += [" ".join(key) for key in re.findall(r"(--set|--rows|--engine) ([a-z-]+)=", given)]
            wrong += [f"{name} {one}" for one in typed if one not in flags_by_command()[name]]
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_flags_of_commands_are_there(page):
    assert unknown_flags(PAGES[page]) == []


def test_unknown_flags_are_found():
    command = "mobileclip data join A B -o x \\\n    --set no-key=3 --set go-on  # --note"
    page = f"`mobileclip serve --port 0 -k 3`\n```\n{command}\n```\n"
    assert unknown_flags(page) == ["data join --set no-key", "serve -k"]


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_repository_that_a_page_names_are_there(page):
    for path in re.findall(r"`((?:mobileclip|tests|docs|requirements)/[\w./-]+)`", PAGES[page]):
        assert (ROOT / path).exists(), f"{page}: {path}"


def test_what_the_program_writes_stands_in_the_pages():
    """`python -m tests.pages` renews them."""
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what python -m tests.pages writes"


def test_the_picture_has_the_imports_that_follow_from_no_others():
    assert reduced({("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "e")}) == {
        ("a", "b"),
        ("b", "c"),
        ("c", "d"),
        ("a", "e"),
    }
    assert ("encoders", "blocks") in imports_between(["encoders", "blocks", "losses"])
    assert not {("blocks", "encoders"), ("encoders", "losses")} & imports_between(["encoders", "blocks", "losses"])
