"""What is assumed where nothing is said: defaults, bounds of fields, constants, registered names and specs behind them.

`python -m tests.defaults` writes them anew.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import attrs

import mobileclip
from mobileclip.registry import Registry

FILE = Path(__file__).parent / "golden" / "defaults.json"
ROOMS = (
    "blocks",
    "encoders",
    "inference",
    "losses",
    "reparam",
    "training",
    "storage",
    "data",
    "evaluation",
    "interop",
    "collections",
)
# As attrs writes validators of numbers, lengths and choices.
_BOUND = re.compile(r"(x [<>]=? [^<>]+)>|<(\w+ validator [^<>]+)>")
_SHOWN = bool | int | float | str | bytes | tuple


def defaults(room: str) -> dict[str, dict[str, str]]:
    """Return, by place and name, a room's defaults and constants that are values, fields' bounds, and named specs."""
    # A room registers in another's registry, so that all are imported.
    modules = {name: tuple(_modules(name)) for name in ROOMS}[room]
    found = {}
    for module in modules:
        if constants := _constants(module):
            found.setdefault(module.__name__.partition(".")[2], {}).update(constants)
        own = [thing for thing in vars(module).values() if getattr(thing, "__module__", None) == module.__name__]
        registries = {name: thing for name, thing in vars(module).items() if isinstance(thing, Registry)}
        for name, registry in registries.items():
            ours = sorted(key for key, value in registry.items() if _is_ours(value))
            found.setdefault(f"{module.__name__.partition('.')[2]}.{name}", {})[registry.kind] = ", ".join(ours)
        for thing in own:
            if inspect.isclass(thing):
                methods = [member for member in vars(thing).values() if inspect.isfunction(member)]
                own += [member for member in methods if not member.__name__.startswith("__")]
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and (shown := _shown(thing)):
                found[f"{module.__name__.partition('.')[2]}.{thing.__qualname__}"] = shown
    return found


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


def _is_ours(value: object) -> bool:
    kind = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    return kind.__module__.startswith(f"{mobileclip.__name__}.")


def _is_value(default: object) -> bool:
    return (isinstance(default, _SHOWN) or attrs.has(type(default))) and not re.search(r" at 0x|/", repr(default))


if __name__ == "__main__":
    everywhere = {name: values for room in ROOMS for name, values in sorted(defaults(room).items())}
    FILE.write_text(json.dumps(everywhere, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
