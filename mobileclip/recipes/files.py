"""Recipe files: locations, names, and functions that run and copy recipes.

In a checkout, recipe files are in `recipes/`, next to the package; in an installed package, recipe files are in
`mobileclip/recipes/files`.
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

import attrs

from mobileclip.recipes.short import brief_help, kind_of, wants_short_help
from mobileclip.registry import nearest, nearest_file
from mobileclip.storage import atomic_path, require_output
from mobileclip.terminal import say
from mobileclip.terminal.help import command_lines, format_help

KINDS = {"train": ("train_", "distil_", "finetune_"), "reinforce": ("reinforce_",)}
"""Prefixes of recipe names by command; users may leave out the first prefix."""

_LISTING = "`mobileclip recipes ls`"


def recipe_files() -> dict[str, Path]:
    """Return the recipe files by name, such as `train_s2`, in alphabetical order.

    Raises:
        FileNotFoundError: if there are no recipe files.
    """
    room = Path(__file__).parent
    for folder in (room / "files", room.parents[1] / "recipes"):
        if files := {path.stem: path for path in sorted(folder.glob("*.py"))}:
            return files
    raise FileNotFoundError(f"{room / 'files'} has no recipes; reinstall the package")


def find_recipe(name: str, command: str = "") -> Path:
    """Return a recipe's file.

    Args:
        name: name of a published recipe, with or without `train_` or `reinforce_`; or the path of any `.py` file.
        command: a key of `KINDS`, or empty for any recipe.

    Raises:
        ValueError: if there is no such recipe; the message suggests similar names.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ValueError(
                f"there is no recipe file {name}{nearest_file(Path(name))}; {_LISTING} lists the published recipes"
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
    """Return the header of a recipe file without running the file."""
    return read_header(_docstring(file))


def _docstring(file: Path) -> str | None:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


def run_file(file: Path, arguments: Sequence[str], *, program: str) -> None:
    """Run a recipe file like `python FILE`, with the file's folder first in `sys.path`.

    Args:
        file: path of the recipe file.
        arguments: command line of the recipe.
        program: name of the program in `--help`.

    Raises:
        SystemExit: with the exit status of the recipe.
    """
    if wants_short_help(arguments) and (kind := kind_of(file)):
        # This path does not import torch.
        header = read_header(_docstring(file), program)
        say(f"{header.brief()}\n\n{brief_help(kind[0], program, header.rows, kind[1])}")
        return
    before = sys.argv, sys.path, sys.modules["__main__"]
    loader = SourceFileLoader("__main__", str(file.resolve()))
    module = ModuleType("__main__", "")
    module.__file__ = loader.path  # newly started processes read the recipe from here
    sys.argv, sys.path = [program, *arguments], [str(file.resolve().parent), *sys.path]
    sys.modules["__main__"] = module
    try:
        loader.exec_module(module)
    finally:
        sys.argv, sys.path, sys.modules["__main__"] = before


def copy_recipe(name: str, output: Path, *, overwrite: bool = False) -> Path:
    """Copy a recipe file for editing; return the copy, which runs in any folder.

    Args:
        name: name of a recipe, such as `train_s2`.
        output: path of the copy, or an existing folder for it.
        overwrite: whether to replace an existing file.

    Raises:
        ValueError: if the recipe is unknown, or the output file exists.
    """
    file = find_recipe(name)
    target = output / file.name if output.is_dir() else output
    require_output(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        shutil.copyfile(file, temporary)
    return target


_ENTRY = re.compile(r"^([A-Z][a-z ]+):\s+", re.MULTILINE)
_ROWS, _ROW = "Rows:\n", re.compile(r"^ {4}(\w+) +(.+(?:\n {5,}.+)*)", re.MULTILINE)
_COMMANDS = ("Command", "Try it")


@attrs.frozen(kw_only=True)
class Header:
    """The header of a recipe: title, prose and entries such as `Command` and `Hardware`.

    Args:
        title: first line of the header.
        prose: paragraphs, each as one line.
        entries: texts by name, in order; commands keep line breaks, other entries have one line.
        rows: titles of the recipe's runs by name, if the recipe has several runs.
    """

    title: str
    prose: tuple[str, ...]
    entries: dict[str, str]
    rows: dict[str, str]

    def description(self) -> str:
        """Return the start of `--help-all`: the full header at the terminal's width, with one line per command."""
        width = max(map(len, self.entries), default=0) + len(":  ")
        entries = (format_help(text, heading=f"{name}:".ljust(width)) for name, text in self.entries.items())
        return "\n\n".join((*map(format_help, (self.title, *self.prose)), "\n".join(entries))).strip()

    def brief(self) -> str:
        """Return the start of `--help`: the title, and the commands that run and try the recipe."""
        commands = {name: text for name, text in self.entries.items() if name in _COMMANDS}
        return attrs.evolve(self, prose=(), entries=commands).description()


def read_header(docstring: str | None, program: str = "") -> Header:
    """Parse the header in a module's docstring.

    Args:
        docstring: a title followed by prose, a block of entries with indented continuation lines, and `Rows:` with one
            line per run, all separated by empty lines; None for an empty header.
        program: command such as `mobileclip train s2`, which replaces `python recipes/train_s2.py` in the header; other
            values change nothing.
    """
    text = docstring or ""
    if program.startswith("mobileclip "):
        text = re.sub(r"\bpython recipes/\w+\.py", program, text)
        text = re.sub(r"\brecipes/\w+\.py", f"-m mobileclip.cli{program.removeprefix('mobileclip')}", text)
    title, *blocks = text.strip().split("\n\n")
    entries: dict[str, str] = {}
    prose: list[str] = []
    rows: dict[str, str] = {}
    for block in blocks:
        if block.startswith(_ROWS):
            rows |= {name: " ".join(title.split()) for name, title in _ROW.findall(block)}
        elif _ENTRY.match(block):
            _, *parts = _ENTRY.split(block)
            for name, text in zip(parts[::2], parts[1::2], strict=True):
                entries[name] = "\n".join(command_lines(text.replace("\\\n", " ")))
        else:
            prose.append(" ".join(block.split()))
    return Header(title=" ".join(title.split()), prose=tuple(prose), entries=entries, rows=rows)
