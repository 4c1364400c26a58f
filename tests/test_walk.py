"""The map of the package and the ways through it in CONTRIBUTING.md are those of the tree."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mobileclip"
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading."""
    below = PAGE.partition(f"\n### {heading}\n")[2].split("\n")
    start = next(index for index, line in enumerate(below) if line.startswith("|---"))
    lines = below[start + 1 : below.index("", start)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


WALKS = {
    question: [re.findall(r"`(.+?)`", cell) for cell in cells if cell] for question, *cells in rows("Finding a line")
}
MAP = [(floor, where.strip("`")) for floor, where, _ in rows("The map")]


def defines(path: Path, name: str) -> bool:
    """Return whether a file defines a function, a class, or a method as `Class.method`."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [one for one in body if isinstance(one, ast.ClassDef | ast.FunctionDef) and one.name == part]
        if not found:
            return False
        body = found[-1].body
    return True


def test_there_are_ten_ways_of_at_most_three_files():
    assert len(WALKS) >= 10
    assert all(1 <= len(steps) <= 3 for steps in WALKS.values())


@pytest.mark.parametrize("question", WALKS)
def test_every_file_of_a_way_defines_what_is_said(question):
    for path, name in WALKS[question]:
        assert defines(PACKAGE / path, name), f"{path} has no {name}"


@pytest.mark.parametrize("question", [question for question, steps in WALKS.items() if len(steps) > 1])
def test_every_file_of_a_way_leads_to_the_next(question):
    """A file names the function that the next one is opened for: the method, the function, or the class."""
    for (path, _), (following, name) in zip(WALKS[question], WALKS[question][1:], strict=False):
        text = (PACKAGE / path).read_text(encoding="utf-8")
        module = following.removesuffix(".py").replace("/", ".")
        last = name.rpartition(".")[2]
        assert re.search(rf"\b{last}\b", text) or f"mobileclip.{module} " in text, (
            f"{path} does not lead to {following}"
        )


def test_every_package_folder_is_on_the_map_and_every_place_on_it_exists():
    folders = {f"{path.parent.relative_to(PACKAGE).as_posix()}/" for path in PACKAGE.rglob("__init__.py")} - {"./"}
    places = [where for _, where in MAP]
    assert len(places) == len(set(places))
    assert {where for where in places if where.endswith("/")} == folders
    assert [where for where in places if not (PACKAGE / where).exists()] == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_a_room_says_what_is_in_it_and_what_belongs_there(path):
    """A sentence for each."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert len(re.findall(r"[.?](?:\s|$)", said.partition("\n\nSource:")[0])) >= 2


def test_a_file_beside_the_rooms_is_on_the_map():
    files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert {where for _, where in MAP if "/" not in where} == files


def layers_of(room: str) -> list[str]:
    """Return the layers within a room that the linter holds, the highest first; of the package where it is empty."""
    for contract in PROJECT.split("[[tool.importlinter.contracts]]")[1:]:
        (layers,) = re.findall(r"\nlayers = \[(.*?)\n\]", contract, re.DOTALL)
        container = re.search(r'\ncontainers = \["mobileclip\.([\w.]+)"\]', contract)
        if (container[1] if container else "") == room:
            return re.findall(r'"(.+?)"', layers)
    raise AssertionError(f"no contract for {room}")


@pytest.mark.parametrize(
    ("room", "prefix"), [("", ""), ("data", "8."), ("datasets", "9."), ("evaluation", "12."), ("collections", "12.")]
)
def test_floors_are_those_that_the_linter_holds(room, prefix):
    layers = layers_of(room)
    held = {
        f"{prefix}{len(layers) - index}": {name.removeprefix("mobileclip.") for name in re.findall(r"[\w.]+", layer)}
        for index, layer in enumerate(layers)
    }
    drawn = defaultdict(set)
    for floor, where in MAP:
        is_inside = not room or where.startswith(f"{room}/")
        if is_inside and floor and floor.startswith(prefix) and floor.count(".") == prefix.count("."):
            drawn[floor].add(where.removeprefix(f"{room}/").removesuffix("/").removesuffix(".py"))
    assert dict(drawn) == held
