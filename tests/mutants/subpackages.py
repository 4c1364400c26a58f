"""Which subpackages there are, and how the tests of a change are run: the likeliest to notice it alone at first."""

from __future__ import annotations

from pathlib import Path

LOOSE = "loose"
"""The files that lie in no subpackage."""

_LIKELIEST = (1, 3)
"""How many of a file's tests run by themselves at first: most changes do not live longer."""


def subpackages(root: Path) -> tuple[str, ...]:
    """Return the subpackages of the library, the files that lie in none among them."""
    folders = sorted(path.name for path in (root / "mobileclip").iterdir() if any(path.rglob("*.py")))
    return (*folders, LOOSE)


def files(root: Path, subpackage: str) -> list[str]:
    """Return the files of a subpackage, below the repository's root."""
    library = root / "mobileclip"
    found = library.glob("*.py") if subpackage == LOOSE else (library / subpackage).rglob("*.py")
    return [path.relative_to(root).as_posix() for path in sorted(found)]


def subpackage_of(file: str) -> str:
    """Return the subpackage of a file of the library."""
    _, subpackage, *inside = Path(file).parts
    return subpackage if inside else LOOSE


def in_turns(tests: list[str]) -> list[list[str]]:
    """Return tests in the groups that run one after another, until one fails."""
    ends = (*(end for end in _LIKELIEST if end < len(tests)), len(tests))
    return [tests[start:end] for start, end in zip((0, *ends), ends, strict=False)]
