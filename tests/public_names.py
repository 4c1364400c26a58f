"""Public names of a tree, read from its sources: nothing is imported, so that any commit's can be read.

They are what the rooms' `__all__` list, the parameters of functions, the members of classes with what they inherit,
recipes, extras and console scripts, and what `tests/golden/names.json` records: commands, flags, registered names.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

PACKAGE = "mobileclip"
RECORDED = "tests/golden/names.json"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES = ("body", "orelse", "handlers", "finalbody")


def public_names(files: Mapping[str, str]) -> set[str]:
    """Return all public names of a tree; those within another begin with it.

    Args:
        files: texts by path.
    """
    package = Package({path: text for path, text in files.items() if path.startswith(f"{PACKAGE}/")})
    project = tomllib.loads(files.get("pyproject.toml", "")).get("project", {})
    recorded = {kind: names for kind, names in json.loads(files.get(RECORDED, "{}")).items() if kind != "help"}
    return {
        *package.names(),
        *(path for path in files if path.startswith("recipes/")),
        *(f"extra {name}" for name in project.get("optional-dependencies", ())),
        *(f"script {name}" for name in project.get("scripts", ())),
        *(kind for names in recorded.values() for kind in names),
        *(f"{kind} {name}" for names in recorded.values() for kind, given in names.items() for name in given),
    }


class Package:
    """The modules of a package.

    Args:
        files: texts by path.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = files

    @cached_property
    def modules(self) -> dict[str, dict[str, ast.stmt]]:
        """What each module defines or imports, by name; a folder's stub, which comes after it, adds what it lists."""
        modules: dict[str, dict[str, ast.stmt]] = {}
        for path, text in sorted(self.files.items()):
            modules.setdefault(_module_of(path), {}).update(_definitions(text, path))
        return modules

    def names(self) -> Iterator[str]:
        """Yield what modules export by `__all__`, and what is within."""
        for module, defined in self.modules.items():
            if "__all__" in defined and not any(part.startswith("_") for part in module.split(".")):
                yield module
                yield from self._below(module, module)

    def _below(self, module: str, place: str) -> Iterator[str]:
        defined = self.modules[module]
        listed = _listed(defined, module) if "__all__" in defined else filter(_is_public, defined)
        for name in listed:
            yield f"{place}.{name}"
            found = self._find(module, name)
            if isinstance(found, str):
                yield from self._below(found, f"{place}.{name}")
            elif found is not None:
                yield from (f"{place}.{name}.{member}" for member in self._members(*found))

    def _find(self, module: str, name: str) -> str | tuple[str, ast.stmt] | None:
        """Return the module called so, or where a name is defined; None if that is elsewhere."""
        node = self.modules.get(module, {}).get(name)
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                is_room = f"{module.replace('.', '/')}/__init__.py" in self.files
                parts = module.split(".")[: None if node.level == 1 and is_room else is_room - node.level]
                source = ".".join([*parts, *filter(None, [source])])
            original = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
            return None if (source, original) == (module, name) else self._find(source, original)
        if node is None:
            return f"{module}.{name}" if f"{module}.{name}" in self.modules else None
        return module, node

    def _members(self, module: str, node: ast.stmt) -> Iterator[str]:
        """Yield the members of a class, those of its bases among them, and the parameters of what can be called."""
        if isinstance(node, _FUNCTIONS):
            yield from _parameters(node)
        if not isinstance(node, ast.ClassDef):
            return
        for name, member in _defined(node.body):
            if name == "__init__" and isinstance(member, _FUNCTIONS):
                yield from _parameters(member)
                yield from _attributes(member)
            elif _is_public(name):
                yield name
                if isinstance(member, _FUNCTIONS):
                    yield from (f"{name}.{parameter}" for parameter in _parameters(member))
        for base in node.bases:
            plain = base.value if isinstance(base, ast.Subscript) else base
            found = self._find(module, plain.id) if isinstance(plain, ast.Name) else None
            if isinstance(found, tuple) and found[1] is not node:
                yield from self._members(*found)


def _module_of(path: str) -> str:
    return path.removesuffix(".pyi").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache  # two trees have most files in common
def _definitions(text: str, path: str) -> dict[str, ast.stmt]:
    return dict(_defined(ast.parse(text, path).body))


def _defined(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield what statements define or import, by name; those under `if`, `try` and `with` too."""
    for node in body:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
                # `__all__` of several that a call gives is for the rest of the house.
                yield from ((name, node) for name in names if name != "__all__" or names == ["__all__"])
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, node) for alias in node.names)
        else:
            for branch in _BRANCHES:
                yield from _defined(getattr(node, branch, ()))


def _listed(defined: Mapping[str, ast.stmt], module: str) -> list[str]:
    """Return what a module's `__all__` lists: names, or those of its stub but some."""
    node = defined["__all__"]
    inside = list(ast.walk(node))
    if any(isinstance(part, ast.Name) and part.id == "_names" for part in inside):
        left_out = {part.value for part in inside if isinstance(part, ast.Constant)}
        stub = {name for name, given in defined.items() if isinstance(given, ast.ImportFrom) and given.level}
        return sorted(stub - left_out)
    try:
        return list(ast.literal_eval(node.value))
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"__all__ of {module} is no plain list of names; write it as one") from None


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yield the parameters that can be given by name."""
    given = (*function.args.args, *function.args.kwonlyargs)
    yield from (one.arg for one in given if one.arg not in ("self", "cls") and _is_public(one.arg))


def _attributes(function: ast.AST) -> Iterator[str]:
    """Yield the public attributes that a method gives `self`."""
    for node in ast.walk(function):
        is_set = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if is_set and isinstance(node.value, ast.Name) and node.value.id == "self" and _is_public(node.attr):
            yield node.attr


def _is_public(name: str) -> bool:
    return not name.startswith("_")
