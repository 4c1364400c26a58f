"""What is assumed where nothing is said: the defaults of every public class and function, as a reader sees them.

`python -m tests.defaults` writes them anew.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path

import attrs

import mobileclip

FILE = Path(__file__).parent / "golden" / "defaults.json"
ROOMS = ("blocks", "encoders", "inference", "losses", "reparam")
_SHOWN = bool | int | float | str | bytes | tuple


def defaults(room: str) -> dict[str, dict[str, str]]:
    """Return, by place and name, a room's defaults that are values: a number, a text, a choice, a spec or several."""
    package = importlib.import_module(f"{mobileclip.__name__}.{room}")
    below = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    found = {}
    for module in map(importlib.import_module, (package.__name__, *(module.name for module in below))):
        own = [thing for thing in vars(module).values() if getattr(thing, "__module__", None) == module.__name__]
        for thing in own:
            if inspect.isclass(thing):
                methods = [member for member in vars(thing).values() if inspect.isfunction(member)]
                own += [member for member in methods if not member.__name__.startswith("__")]
            if not inspect.isfunction(thing) and (not inspect.isclass(thing) or issubclass(thing, dict)):
                continue
            parameters = inspect.signature(thing).parameters.values()
            shown = {
                parameter.name: repr(parameter.default) for parameter in parameters if _is_value(parameter.default)
            }
            if shown:
                found[f"{module.__name__.partition('.')[2]}.{thing.__qualname__}"] = shown
    return found


def _is_value(default: object) -> bool:
    return (isinstance(default, _SHOWN) or attrs.has(type(default))) and not re.search(r" at 0x|/", repr(default))


if __name__ == "__main__":
    everywhere = {name: values for room in ROOMS for name, values in sorted(defaults(room).items())}
    FILE.write_text(json.dumps(everywhere, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
