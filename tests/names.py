"""Names that people type: commands with their flags, and what is registered.

`python -m tests.names` writes them anew.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import mobileclip
from mobileclip.cli import COMMANDS, Commands, main
from mobileclip.cli.flags import COMMON, KEYED, flags_of
from mobileclip.cli.renamed import OLD_COMMANDS, OLD_FLAGS
from mobileclip.recipes import FLAGS, RENAMED
from mobileclip.registry import Registry

FILE = Path(__file__).parent / "golden" / "names.json"
# One recipe of each kind: others of a kind have the same flags.
RECIPES = {
    "train s2": "training",
    "train imagenet_mci mci0": "classifying",
    "reinforce datacompdr12m": "reinforcing",
    "finetune": "finetuning",
    "train distil_text": "distilling",
    "train coca context_77": "captioning",
}
_WIDE = {"COLUMNS": "1000"}


def names() -> dict[str, dict[str, Any]]:
    """Return flags by command, what it says that they take, and names by what they stand for."""
    own = sorted(_commands(COMMANDS.members))
    return {
        "commands": {f"mobileclip {name}": flags(name) for name in sorted({*own, *RECIPES, *OLD_COMMANDS})},
        "help": {f"mobileclip {name}": takes(name) for name in own},
        "registries": dict(sorted(registered().items())),
    }


def flags(command: str) -> list[str]:
    """Return the flags that a command takes, as they are typed, those that no help has among them."""
    if command.partition(" ")[0] not in ("train", "reinforce", "finetune"):
        return _read(command)
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    _say_help(command, said)
    said.seek(0)
    cells = [cell[1:] for line in said for cell in line.split("│")[1:] if cell.startswith(" -")]
    kind = RECIPES.get(command, "")
    cells += ["--quiet --no-quiet", *RENAMED.get(kind, ()), *(flag.names for flag in FLAGS.get(kind, ()))]
    return sorted({flag for cell in cells for flag in re.findall(r"(?<!\w)--?[a-z][\w.-]*", cell.split("  ")[0])})


def _read(command: str) -> list[str]:
    new = OLD_COMMANDS.get(command, command)
    place = reduce(lambda group, name: group.members[name], new.split(), COMMANDS)
    read = flags_of(place.load())
    found = {"-h", "--help", "--help-all", *OLD_FLAGS.get(new, ()), *KEYED.keys() & {flag.keyed for flag in read}}
    for flag in read:
        if not flag.is_positional:
            found |= {*flag.names, *([f"--no-{flag.key}"] if flag.is_switch else [])}
    return sorted(found | {f"--{no}{name[2:]}" for name in COMMON for no in ("", "no-")})


def takes(command: str) -> dict[str, str | None]:
    """Return what `--help` says that each flag and argument takes, with its default, or None where it tells of none."""
    found: dict[str, str] = {}
    name, plain = "", io.StringIO()  # without frames, which need UTF-8
    _say_help(command, plain)
    for line in plain.getvalue().partition("usage: ")[2].splitlines():
        if re.match("  (?! )", line) and line.strip():  # they stand two letters in
            name, _, said = line.strip().partition("  ")
            found[name] = said
        elif name:
            found[name] += f" {line}"
    told = {name: re.search(r" \(default: (.*)\)", " ".join(said.split())) for name, said in found.items()}
    return {name: default and default[1] for name, default in told.items()}


def _say_help(command: str, said: TextIO) -> None:
    with mock.patch.dict(os.environ, _WIDE), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*command.split(), "--help-all" if command in RECIPES else "--help"])


def registered() -> dict[str, list[str]]:
    """Return the names in every registry that importing the rooms fills, by what they stand for."""
    for room in pkgutil.walk_packages(mobileclip.__path__, f"{mobileclip.__name__}."):
        if not room.name.endswith("__main__"):
            importlib.import_module(room.name)
    ours = [module for name, module in list(sys.modules.items()) if name.startswith(f"{mobileclip.__name__}.")]
    found = {id(one): one for module in ours for one in vars(module).values() if isinstance(one, Registry)}
    return {one.kind: sorted(name for name, value in one.items() if _is_ours(value)) for one in found.values()}


def _is_ours(value: object) -> bool:
    """Return whether a value is of the library, and not of a test or a plug-in."""
    value = getattr(value, "func", value)  # a class with some choices made
    kind = value if hasattr(value, "__qualname__") else type(value)
    return kind.__module__.startswith(f"{mobileclip.__name__}.")


def _commands(members: Mapping[str, object]) -> Iterator[str]:
    for name, one in members.items():
        if isinstance(one, Commands):
            yield from (f"{name} {inner}" for inner in _commands(one.members))
        elif name not in ("train", "reinforce"):
            yield name


if __name__ == "__main__":
    FILE.write_text(json.dumps(names(), indent=1) + "\n", encoding="utf-8")
