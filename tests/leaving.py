"""`python -m tests.leaving [BASE]`: public names and tests that BASE has and this tree has not.

A loss is named in the title of a commit since then, or the status is 1. CONTRIBUTING.md says how.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from tests.public_names import PACKAGE, RECORDED, public_names

ROOT = Path(__file__).parents[1]
MAIN = "origin/main"
READ = re.compile(rf"((mobileclip|tests|recipes)/.*\.pyi?|pyproject\.toml|{re.escape(RECORDED)})$")
_ON_PURPOSE = re.compile(r"(Remove|Rename|Move|Merge) ")
# What stands between a name and what is within it.
_WITHIN = (".", "::", "/", " ")
_NO_COMMIT = re.compile("0*")


class NoBaseError(Exception):
    """There is nothing to compare with."""


def main(arguments: list[str] | None = None, root: Path = ROOT) -> None:
    """Compare, print what is lost, and end with status 1 if no title names it."""
    parser = argparse.ArgumentParser(prog="python -m tests.leaving", description=__doc__)
    said = f"a commit; without one, where this branch left {MAIN}, or the last tag"
    parser.add_argument("base", nargs="?", default="", metavar="BASE", help=said)
    try:
        base = base_of(parser.parse_args(arguments).base, root)
    except NoBaseError as error:
        print(f"names and tests are compared with nothing: {error}")
        return
    titles = _git(root, "log", "--format=%s", f"{base}..HEAD").decode().splitlines()
    gone = losses(files_of(base, root), files_here(root))
    unnamed = [one for one in gone if not is_named(one, titles)]
    print(f"{len(gone)} names and tests of {base[:12]} are gone, {len(unnamed)} of which no commit's title names")
    if unnamed:
        print(*(f"  {one}" for one in unnamed), sep="\n")
        print("If a loss is meant, say so in a commit's title, such as: Remove `NAME`: why")
        sys.exit(1)


def base_of(asked: str, root: Path) -> str:
    """Return the commit that is compared with.

    Args:
        asked: a commit, or nothing.
        root: the tree.

    Raises:
        NoBaseError: if none is asked for, and none is known.
        SystemExit: if the commit is not there.
    """
    if Path(_of_git(root, "rev-parse", "--show-toplevel")) != root.resolve():
        raise NoBaseError("this is no clone of the repository")
    if _NO_COMMIT.fullmatch(asked):  # zeros: what a forge says of a branch that is new
        branched, tag = _of_git(root, "merge-base", MAIN, "HEAD"), _of_git(root, "describe", "--tags", "--abbrev=0")
        if not (branched or tag):
            raise NoBaseError(f"this clone has neither {MAIN} nor a tag")
        return branched or _of_git(root, "rev-parse", f"{tag}^{{commit}}")
    found = _of_git(root, "rev-parse", "--verify", f"{asked}^{{commit}}")
    if not found:
        sys.exit(f"there is no commit {asked} in this clone; fetch it, or name another one")
    return found


def files_of(commit: str, root: Path) -> dict[str, str]:
    """Return the texts of a commit that names and tests are in, by path."""
    entries = _git(root, "ls-tree", "-r", "-z", commit).decode().split("\0")
    blobs = {path: line.split()[2] for line, _, path in (one.partition("\t") for one in entries) if READ.match(path)}
    asked = "\n".join(blobs.values()).encode()
    rest = subprocess.run(["git", "cat-file", "--batch"], cwd=root, input=asked, capture_output=True, check=True).stdout
    texts = {}
    for path in blobs:
        head, _, rest = rest.partition(b"\n")
        size = int(head.split()[2])
        texts[path], rest = rest[:size].decode(), rest[size + 1 :]
    return texts


def files_here(root: Path) -> dict[str, str]:
    """Return the same texts of the working tree."""
    places = [root / "pyproject.toml", root / RECORDED]
    places += [
        path
        for room in (PACKAGE, "tests", "recipes")
        for path in (root / room).rglob("*.py*")
        if path.suffix in {".py", ".pyi"}
    ]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in places if path.exists()}


def losses(before: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return the names and tests that are in one tree and not in another, without what is within a lost one."""
    gone = public_names(before) - public_names(here)
    return [*sorted(one for one in gone if not gone.intersection(_around(one))), *lost_tests(before, here)]


def lost_tests(before: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return the tests that are gone, as `file::test` or `file::class::test`.

    Tests are counted by name: one that is in another file is not lost, one of two with the same name is.
    """
    there, now = named_tests(before), named_tests(here)
    gone = []
    for name, places in there.items():
        away = [place for place in places if place not in now[name]]
        gone += away[: max(0, len(places) - len(now[name]))]
    return sorted(gone)


def named_tests(files: Mapping[str, str]) -> defaultdict[str, list[str]]:
    """Return tests and classes of tests by name, those of contracts for plug-ins among them."""
    found = defaultdict(list)
    for path, text in files.items():
        if path.startswith((f"{PACKAGE}/testing/", "tests/")) and path.endswith(".py"):
            for place, name in _tests_of_file(text, path):
                found[name].append(place)
    return found


@cache  # two trees have most files in common
def _tests_of_file(text: str, path: str) -> list[tuple[str, str]]:
    return list(_tests_in(ast.parse(text, path), path))


def _tests_in(node: ast.AST, place: str) -> Iterable[tuple[str, str]]:
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            if part.name.startswith("test_"):
                yield f"{place}::{part.name}", part.name
        elif isinstance(part, ast.ClassDef):
            if part.name.startswith("Test"):
                yield f"{place}::{part.name}", part.name
            yield from _tests_in(part, f"{place}::{part.name}")
        elif isinstance(part, ast.stmt):
            yield from _tests_in(part, place)


def is_named(lost: str, titles: Iterable[str]) -> bool:
    """Return whether a title says that a name leaves.

    A name may be shortened from the left, such as `Attention.forward`; a class, a file or a room in full stands for all
    that is within.
    """
    words = {word for title in titles if _ON_PURPOSE.match(title) for word in re.findall(r"`(.+?)`", title)}
    whole = words - {PACKAGE, "tests"}
    return any(lost == word or lost.endswith(tuple(f"{mark}{word}" for mark in _WITHIN)) for word in words) or bool(
        whole.intersection(_around(lost))
    )


def _around(name: str) -> list[str]:
    """Return what a name is within, such as its class and its room."""
    return [name[: found.start()] for found in re.finditer("|".join(map(re.escape, _WITHIN)), name)]


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout


def _of_git(root: Path, *arguments: str) -> str:
    """Return what git answers, and nothing where there is no git, or no answer."""
    try:
        return _git(root, *arguments).decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    main()
