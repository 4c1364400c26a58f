"""The package's files, read and not imported: which calls and functions there are, and what names mean."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs

PACKAGE = Path(__file__).parents[2] / "mobileclip"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@attrs.frozen(eq=False)
class Call:
    """A call, with all that encloses it."""

    module: Module
    scope: tuple[ast.AST, ...]
    node: ast.Call

    @property
    def function(self) -> Function | None:
        return next((node for node in reversed(self.scope) if isinstance(node, Function)), None)


class Module:
    """A file, and what its names mean."""

    def __init__(self, path: Path) -> None:
        inside = path.relative_to(PACKAGE)
        self.room = inside.parts[0].removesuffix(".py")
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.texts: dict[str, ast.expr] = {}
        self.functions: dict[str, Function] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.imported: set[str] = set()
        self.calls: list[Call] = []
        self.raised: set[int] = set()
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.texts[node.targets[0].id] = node.value
        for node, scope in _walked(self.tree, ()):
            if isinstance(node, ast.Call):
                self.calls.append(Call(self, scope, node))
            elif isinstance(node, ast.Raise):
                self.raised.add(id(node.exc))
            elif isinstance(node, ast.ImportFrom):
                self.imported |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, Function):
                self.functions.setdefault(node.name, node)
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node


class Package:
    """All files of the package, read and not imported."""

    def __init__(self) -> None:
        self.modules = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
        self.public: dict[str, tuple[Module, Function]] = {}
        self.texts: dict[str, tuple[Module, ast.expr]] = {}
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.classes: dict[str, ast.ClassDef] = {}
        for module in self.modules:
            for node in module.tree.body:
                if isinstance(node, Function):
                    self.public.setdefault(node.name, (module, node))
            for name, text in module.texts.items():
                self.texts.setdefault(name, (module, text))
            for call in module.calls:
                self.calls[last(call.node.func)].append(call)
            self.classes |= module.classes

    def function(self, name: str, module: Module) -> tuple[Module, Function] | None:
        """Return a function that a module defines or imports, and where it is defined."""
        if name in module.functions:
            return module, module.functions[name]
        return self.public.get(name) if name in module.imported else None

    def text(self, name: str, module: Module) -> tuple[Module, ast.expr] | None:
        """Return what a module's constant, or one that it imports, is set to."""
        if name in module.texts:
            return module, module.texts[name]
        return self.texts.get(name) if name in module.imported else None

    def callers(self, function: Function, module: Module) -> list[Call]:
        """Return the calls of a function in its room: what other rooms hand in are values."""
        is_shared = self.public.get(function.name, (None, None))[1] is function
        return [
            caller
            for caller in self.calls[function.name]
            if caller.module is module
            or (is_shared and function.name in caller.module.imported and caller.module.room == module.room)
        ]


def _walked(node: ast.AST, scope: tuple[ast.AST, ...]) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    """Yield all that a module holds, each with the functions and classes around it."""
    waiting = [(node, scope)]
    while waiting:
        node, scope = waiting.pop()
        yield node, scope
        inner = (*scope, node) if isinstance(node, Function | ast.ClassDef) else scope
        waiting += [(child, inner) for child in ast.iter_child_nodes(node)]


def last(node: ast.AST) -> str:
    """Return the last part of a dotted name; empty for what is none."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def parameters(function: Function) -> list[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [one.arg for one in named]


def given(function: Function, node: ast.Call) -> dict[str, ast.expr]:
    """Return what a call hands in, by the parameter's name; defaults too."""
    names = [one.arg for one in [*function.args.posonlyargs, *function.args.args]]
    defaults = dict(zip(reversed(names), reversed(function.args.defaults), strict=False))
    defaults |= {
        one.arg: value for one, value in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True) if value
    }
    own = names[1:] if names[:1] in (["self"], ["cls"]) else names
    placed = dict(zip(own, node.args, strict=False))
    return {**defaults, **placed, **{one.arg: one.value for one in node.keywords if one.arg}}


@cache
def assigned(function: Function) -> dict[str, list[ast.expr | None]]:
    """Return to what a function binds its names; None for what is not read here."""
    found = defaultdict(list)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id].append(node.value)
        elif isinstance(node, ast.NamedExpr | ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found[node.target.id].append(node.value)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found[node.name].append(None)
    return found
