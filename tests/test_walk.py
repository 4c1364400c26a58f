"""The map of the package, docs/map.md, and the ways to a line in docs/finding.md are those of the tree."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mobileclip"
MAP_PAGE = (ROOT / "docs/map.md").read_text(encoding="utf-8")
FINDING = (ROOT / "docs/finding.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """Return the rows of all tables of a page."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row, below in zip(cells, [*cells[1:], [""]], strict=True) if "---" not in row[0] + below[0]]


@attrs.frozen
class Step:
    """A file that is opened on the way to a line, the definition in it, and the call there."""

    path: str
    definition: str
    call: str

    @classmethod
    def of(cls, cell: str) -> Step:
        path, *definition, call = re.findall(r"`(.+?)`", cell)
        assert call.endswith("()"), cell
        return cls(path, "".join(definition), call.removesuffix("()"))


WALKS = {question: [Step.of(cell) for cell in cells if cell] for question, *cells in rows(FINDING)}
MAP = [(floor, where.strip("`")) for floor, where, _ in rows(MAP_PAGE)]
SCOPES = (ast.ClassDef, ast.FunctionDef)


def calls(tree: ast.Module, definition: str) -> list[str] | None:
    """Return what a definition calls, as it is written; without a definition, what the module itself does.

    Args:
        tree: of the file.
        definition: a function, a class, or a method as `Class.method`.
    """
    body: list[ast.stmt] = tree.body
    for part in filter(None, definition.split(".")):
        found = [one for one in body if isinstance(one, SCOPES) and one.name == part]
        if not found:
            return None
        body = found[-1].body
    if not definition:
        body = [one for one in body if not isinstance(one, SCOPES)]
    nodes = [node for one in body for node in ast.walk(one)]
    return [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]


def has_call(found: list[str], call: str) -> bool:
    """Return whether a call is among those found; `F.kl_div` is one of `kl_div`."""
    return any(one == call or one.endswith(f".{call}") for one in found)


def test_there_are_forty_ways_of_at_most_three_files():
    assert len(rows(FINDING)) == len(WALKS) >= 40
    assert all(1 <= len(steps) <= 3 for steps in WALKS.values())


@pytest.mark.parametrize("question", WALKS)
def test_every_definition_of_a_way_makes_the_call_that_is_said(question):
    for step in WALKS[question]:
        found = calls(ast.parse((ROOT / step.path).read_text(encoding="utf-8")), step.definition)
        assert found is not None, f"{step.path} has no {step.definition}"
        assert has_call(found, step.call), f"{step.path}: {step.definition} does not call {step.call}"


@pytest.mark.parametrize("question", [question for question, steps in WALKS.items() if len(steps) > 1])
def test_every_call_of_a_way_is_of_what_the_next_file_defines(question):
    """It has the name of the function, the method or the class that the next file is opened for."""
    for step, following in zip(WALKS[question], WALKS[question][1:], strict=False):
        assert step.call.rpartition(".")[2] in following.definition.split("."), (
            f"{step.path} does not lead to {following.path}"
        )


def test_a_call_is_found_in_its_definition_alone():
    tree = ast.parse("start()\n\nclass A:\n    def f(self):\n        F.g(1)\n\ndef h():\n    'k()'\n")
    assert calls(tree, "") == ["start"]
    assert calls(tree, "A.f") == calls(tree, "A") == ["F.g"]
    assert calls(tree, "h") == []
    assert calls(tree, "A.g") is calls(tree, "k") is None
    assert has_call(["F.g"], "g")
    assert not has_call(["F.log"], "g")


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
