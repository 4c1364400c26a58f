"""The recipes' files: where they lie, what they are called, and how one is run or copied.

In a checkout they lie in `recipes/` beside the package; an installed package holds them in `mobileclip/recipes/files`.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from mobileclip.recipes.entry_point import helped
from mobileclip.recipes.flags import FLAGS, asks_briefly, canonical
from mobileclip.recipes.header import Header, read_header
from mobileclip.registry import nearest, nearest_file
from mobileclip.storage import atomic_path, require_output
from mobileclip.terminal import say

KINDS = {"train": ("train_", "distil_", "finetune_"), "reinforce": ("reinforce_",)}
"""Commands to what the names of their recipes' files begin with; the first of these need not be typed."""

_LISTING = "`mobileclip recipes ls`"


def recipe_files() -> dict[str, Path]:
    """Return the recipes' files by name, such as `train_s2`, sorted.

    Raises:
        FileNotFoundError: if there are none, neither in the package nor beside it.
    """
    room = Path(__file__).parent
    for folder in (room / "files", room.parents[1] / "recipes"):
        if files := {path.stem: path for path in sorted(folder.glob("*.py"))}:
            return files
    raise FileNotFoundError(f"there is no recipe in {room / 'files'}; install the package anew")


def find_recipe(name: str, command: str = "") -> Path:
    """Return a recipe's file.

    Args:
        name: of a published recipe, with or without `train_` or `reinforce_`; or the path of any `.py` file.
        command: one of `KINDS`, or none of them.

    Raises:
        ValueError: if there is none; the message names the nearest ones.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ValueError(
                f"there is no recipe {name}{nearest_file(Path(name))}; those that are published: {_LISTING}"
            )
        return Path(name)
    files = recipe_files()
    prefixes = KINDS.get(command, ("",))
    short = prefixes[:1] if command in KINDS else tuple(one[0] for one in KINDS.values())
    for known in (name, *(f"{prefix}{name}" for prefix in short)):
        if known in files and known.startswith(prefixes):
            return files[known]
    names = [known.removeprefix(prefixes[0]) for known in files if known.startswith(prefixes)]
    raise ValueError(
        f"unknown recipe {name!r}; {nearest(name, names, otherwise='no name is like it.')} All: {_LISTING}"
    )


def header_of(file: Path) -> Header:
    """Return the header of a recipe's file, which is not run."""
    return read_header(_docstring(file))


def _docstring(file: Path) -> str | None:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


def _kind_of(file: Path) -> str | None:
    """Return which kind of recipe a file is, a key of `FLAGS`; None of one with rows, or of something else."""
    text = file.read_text(encoding="utf-8")
    imported = re.search(r"^from mobileclip\.recipes\.(\w+) import [^\n]*\brun_recipe\b", text, re.MULTILINE)
    return imported[1] if imported and imported[1] in FLAGS and not re.search(r"^ROWS\b", text, re.MULTILINE) else None


def run_file(file: Path, arguments: Sequence[str], *, program: str) -> None:
    """Run a recipe's file as Python runs a program: its folder comes first among those that modules are found in.

    Args:
        file: the recipe.
        arguments: its command line.
        program: what `--help` calls it.

    Raises:
        SystemExit: as the recipe does.
    """
    if asks_briefly(arguments) and (kind := _kind_of(file)) and asks_briefly(canonical(kind, arguments)):
        # Nothing is imported that computes.
        say(helped(kind, _docstring(file), program))
        raise SystemExit(0)
    before = sys.argv, sys.path, sys.modules["__main__"]
    loader = SourceFileLoader("__main__", str(file.resolve()))
    module = ModuleType("__main__", "")
    module.__file__ = loader.path  # processes that are started anew read the recipe from here
    sys.argv, sys.path = [program, *arguments], [str(file.resolve().parent), *sys.path]
    sys.modules["__main__"] = module
    try:
        loader.exec_module(module)
    finally:
        sys.argv, sys.path, sys.modules["__main__"] = before


def copy_recipe(name: str, output: Path, *, overwrite: bool = False) -> Path:
    """Copy a recipe's file to change it, and return the copy, which runs wherever it lies.

    Args:
        name: of a recipe.
        output: the copy's path, or a folder for it.
        overwrite: whether a file that is there is replaced.

    Raises:
        ValueError: if the recipe is unknown, or the file is there.
    """
    file = find_recipe(name)
    target = output / file.name if output.is_dir() else output
    require_output(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        shutil.copyfile(file, temporary)
    return target
