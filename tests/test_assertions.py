"""No test holds an assertion that cannot fail: one in a block that swallows it, or behind what leaves the block."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# What catches a failed assertion; a command's `SystemExit` may stand for one.
WIDE = frozenset({"AssertionError", "Exception", "BaseException", "SystemExit"})
SWALLOWING = WIDE - {"SystemExit"}
LEAVING = frozenset({"fail", "skip", "exit", "_exit"})


def names_of(node: ast.AST | None) -> set[str]:
    """Return the last parts of all names in an expression."""
    found = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} if node is not None else set()
    return found | (
        {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)} if node is not None else set()
    )


def called(node: ast.AST) -> str:
    """Return the last part of the name of what is called; empty where nothing is."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def statements_in(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield what runs when a block runs: not what a function in it does when it is called."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        yield node
        yield from statements_in(list(ast.iter_child_nodes(node)))  # type: ignore[arg-type]


def is_assertion(node: ast.AST) -> bool:
    """Return whether a node asserts: by itself, by `raise AssertionError`, or by a function that is called for it."""
    if isinstance(node, ast.Raise):
        return "AssertionError" in names_of(node.exc)
    return isinstance(node, ast.Assert) or called(node) == "fail" or called(node).startswith("assert")


def first_assertion(body: list[ast.stmt]) -> ast.AST | None:
    return next((node for node in statements_in(body) if is_assertion(node)), None)


def leaves(node: ast.stmt) -> bool:
    return isinstance(node, (ast.Raise, ast.Return)) or (isinstance(node, ast.Expr) and called(node.value) in LEAVING)


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield all blocks of statements in a tree: an expression holds none."""
    for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
        if isinstance(body, list):
            yield body
            for statement in body:
                yield from blocks(statement)
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield from blocks(part)


def problems(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and what is wrong there."""
    for body in blocks(tree):
        for index, node in enumerate(body):
            if isinstance(node, (ast.With, ast.AsyncWith)):
                yield from _of_with(node)
            elif isinstance(node, ast.Try):
                yield from _of_try(node)
            if leaves(node) and index + 1 < len(body):
                yield body[index + 1].lineno, "comes behind what leaves the block"


def _of_with(node: ast.With | ast.AsyncWith) -> Iterator[tuple[int, str]]:
    for manager in (item.context_expr for item in node.items):
        name = called(manager)
        caught = {one for argument in getattr(manager, "args", []) for one in names_of(argument)}
        asserted = first_assertion(node.body)
        if asserted is None or name not in ("raises", "suppress"):
            continue
        if caught & (WIDE if name == "raises" else SWALLOWING):
            yield asserted.lineno, f"is asserted inside of {name}({', '.join(sorted(caught))})"
        elif name == "raises" and isinstance(node.body[-1], ast.Assert):
            yield node.body[-1].lineno, "is asserted behind what raises"


def _of_try(node: ast.Try) -> Iterator[tuple[int, str]]:
    asserted = first_assertion(node.body)
    for handler in node.handlers if asserted is not None else ():
        is_wide = handler.type is None or bool(names_of(handler.type) & SWALLOWING)
        inside = list(statements_in(handler.body))
        is_told = any(
            isinstance(one, ast.Raise) or (isinstance(one, ast.Name) and one.id == handler.name) for one in inside
        )
        if is_wide and not is_told:
            yield asserted.lineno, "is asserted where the failure is caught and forgotten"


def test_every_assertion_can_fail():
    found = [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for path in FILES
        for line, what in problems(ast.parse(path.read_text("utf-8")))
    ]
    assert found == []


BAD = {
    "with pytest.raises(SystemExit), command():\n    stop()\n    assert False": "raises",
    "with pytest.raises((ValueError, Exception)):\n    if True:\n        assert False\n    stop()": "raises",
    "with pytest.raises(ValueError):\n    stop()\n    assert False": "behind",
    "with pytest.raises(SystemExit):\n    stop()\n    raise AssertionError": "raises",
    "with pytest.raises(BaseException):\n    assert_same(1, 2)": "raises",
    "with contextlib.suppress(AssertionError):\n    assert False": "suppress",
    "try:\n    assert False\nexcept Exception:\n    pass": "forgotten",
    "try:\n    assert False\nexcept:\n    stop()": "forgotten",
    "with pytest.raises(ValueError):\n    raise ValueError\n    stop()": "leaves",
    "def f():\n    return 1\n    assert False": "leaves",
}
GOOD = [
    "with pytest.raises(ValueError):\n    assert True\n    stop()",
    "with pytest.raises(SystemExit):\n    def f():\n        assert False\n    stop(f)",
    "with suppress(ProcessLookupError):\n    assert True",
    "try:\n    assert False\nexcept AssertionError as error:\n    errors.append(error)",
    "try:\n    assert False\nexcept Exception:\n    raise",
    "try:\n    assert False\nexcept ValueError:\n    pass",
]


@pytest.mark.parametrize("text", BAD)
def test_what_cannot_fail_is_found(text):
    assert any(BAD[text] in what for _, what in problems(ast.parse(text)))


@pytest.mark.parametrize("text", GOOD)
def test_what_can_fail_is_not(text):
    assert list(problems(ast.parse(text))) == []
