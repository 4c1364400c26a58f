"""What is assumed where nothing is said: defaults, bounds of fields, constants, and specs behind names.

`python -m tests.defaults` writes them anew.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import attrs

import mobileclip

FILE = Path(__file__).parent / "golden" / "defaults.json"
ROOMS = (
    "blocks",
    "cli",
    "collections",
    "data",
    "datasets",
    "encoders",
    "engines",
    "evaluation",
    "export",
    "hardware",
    "inference",
    "interop",
    "losses",
    "recipes",
    "reinforce",
    "reparam",
    "storage",
    "strict",
    "tensor_files",
    "terminal",
    "training",
)
# As attrs writes validators of numbers, lengths and choices.
_BOUND = re.compile(r"(x [<>]=? [^<>]+)>|<(\w+ validator [^<>]+)>")
_SHOWN = bool | int | float | str | bytes | tuple


def defaults() -> dict[str, dict[str, list[str]]]:
    """Return, by public name, defaults and constants that are values, fields' bounds, and named specs.

    A name is `mobileclip.blocks:Attention`, of the highest room that exports it; constants are below their room,
    `mobileclip.blocks`. What no room exports is `mobileclip.blocks.*:Thing`, whichever file of the room it is in; where
    several have one name, their values are in one list.
    """
    modules = [module for room in ROOMS for module in _modules(room)]
    exported = _exported([mobileclip, *modules])
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for module in modules:
        inside = f"{'.'.join(module.__name__.split('.')[:2])}.*"
        for name, value in _constants(module).items():
            place = exported.get((name, id(getattr(module, name))), f"{inside}:{name}")
            found[place.rpartition(":")[0]][name].append(value)
        own = {id(one): one for one in vars(module).values() if getattr(one, "__module__", None) == module.__name__}
        for thing in own.values():
            if inspect.isclass(thing) or inspect.isfunction(thing):
                place = exported.get((thing.__name__, id(thing)), f"{inside}:{thing.__qualname__}")
                for below, part in _parts(thing):
                    for name, value in _shown(part).items():
                        found[f"{place}{below}"][name].append(value)
    return {
        place: {name: sorted(found[place][name]) for name in _in_order(place, found[place])} for place in sorted(found)
    }


def _in_order(place: str, names: Iterable[str]) -> Iterable[str]:
    """Return parameters as they are written, and a room's constants sorted: they come from many files."""
    return names if ":" in place else sorted(names)


def _exported(modules: Iterable[ModuleType]) -> dict[tuple[str, int], str]:
    """Return the shortest public place of everything that modules export, by its name and identity."""
    found: dict[tuple[str, int], str] = {}
    rooms = {module.__name__: module for module in modules}
    for room in sorted(rooms, key=lambda name: (name.count("."), name)):
        for name in getattr(rooms[room], "__all__", ()):
            value = getattr(rooms[room], name)
            found.setdefault((name, id(value)), f"{room}:{name}")
            if inspect.ismodule(value):
                for inner, one in vars(value).items():
                    if getattr(one, "__module__", None) == value.__name__ and not inner.startswith("_"):
                        found.setdefault((inner, id(one)), f"{room}:{name}.{inner}")
    return found


def _parts(thing: type | Callable[..., object]) -> Iterator[tuple[str, type | Callable[..., object]]]:
    """Yield what has defaults of its own, and how it is called within: a class and its methods, a function."""
    yield "", thing
    if inspect.isclass(thing):
        for member in vars(thing).values():
            if inspect.isfunction(member) and not member.__name__.startswith("__"):
                yield member.__qualname__.removeprefix(thing.__qualname__), member


def _modules(room: str) -> Iterator[ModuleType]:
    package = importlib.import_module(f"{mobileclip.__name__}.{room}")
    below = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    yield from map(importlib.import_module, (package.__name__, *(module.name for module in below)))


def _shown(thing: type | Callable[..., object]) -> dict[str, str]:
    if inspect.isclass(thing) and issubclass(thing, dict | Exception):  # have no signature
        return {}
    signature = inspect.signature(thing)
    defaults = ((parameter.name, parameter.default) for parameter in signature.parameters.values())
    shown = {name: repr(default) for name, default in defaults if _is_value(default)}
    for field in attrs.fields(thing) if inspect.isclass(thing) and attrs.has(thing) else ():
        if bounds := ["".join(found) for found in _BOUND.findall(repr(field.validator))]:
            shown[f"{field.name} is"] = " and ".join(bounds)
    if not signature.parameters and str(signature.return_annotation).endswith("Spec"):
        shown["returns"] = repr(thing())
    return shown


def _constants(module: ModuleType) -> dict[str, str]:
    assigned = (
        node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.Assign | ast.AnnAssign)
    )
    targets = (
        target for node in assigned for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    public = {name: getattr(module, name) for name in names if name.isupper() and not name.startswith("_")}
    values = {name: value for name, value in public.items() if isinstance(value, _SHOWN) or attrs.has(type(value))}
    return {name: repr(value) for name, value in values.items() if " at 0x" not in repr(value)}


def _is_value(default: object) -> bool:
    return (isinstance(default, _SHOWN) or attrs.has(type(default))) and not re.search(r" at 0x|/", repr(default))


if __name__ == "__main__":
    alone = {
        place: {name: given[0] if len(given) == 1 else given for name, given in those.items()}
        for place, those in defaults().items()
    }
    FILE.write_text(json.dumps(alone, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
