"""Which tests are a file's: the likeliest to notice a change of it first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# Rooms and files without a folder of tests, or with more tests in others.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "strict": ("test_serialization.py", "trials"),
    "recipes": ("test_walk.py",),
    "cli": ("test_extras.py", "evaluation/test_own_data.py", "export/test_cli.py"),
    "__init__": ("test_import.py", "test_extras.py"),
    "__main__": ("test_extras.py",),
    "inputs": ("test_input_sizes.py", "test_own_tokenizer.py", "data/images", "test_serialization.py"),
    "progress": ("terminal/test_printing.py", "evaluation/test_pace.py"),
    "registry": ("test_foreign_towers.py",),
}


def own_tests(root: Path, file: str, function: str = "", seconds: Mapping[str, float] | None = None) -> list[str]:
    """Return the test files of a file's room, and others that import it, the likeliest to notice a change first.

    That is the one of the same name, then those that name the function and the module oftenest for their time.

    Args:
        root: of the repository.
        file: that is changed.
        function: that is changed, with its class.
        seconds: how long test files take, as far as that is known.
    """
    module = Path(file).stem
    room, *inside = Path(file).relative_to("mobileclip").with_suffix("").parts
    tests = root / "tests"
    known = seconds or {}
    named = (f"test_{room}.py", "test_defaults.py", f"test_{module}.py", *ELSEWHERE.get(room, ()))
    own = [path for place in (tests / room, *(tests / name for name in named)) for path in _below(place)]
    dotted = ".".join(("mobileclip", room, *inside))
    importing = [path for path in _below(tests) if inside and dotted in _modules(path)]
    words = [re.compile(rf"\b{re.escape(word)}\b") for word in (module, *function.split(".")) if word]

    def rank(path: Path) -> tuple[bool, float]:
        mentions = sum(len(word.findall(_text(path))) for word in words)
        return path.stem != f"test_{module}", -mentions / (1 + known.get(path.relative_to(root).as_posix(), 0))

    return [path.relative_to(root).as_posix() for path in sorted(dict.fromkeys([*own, *importing]), key=rank)]


def _below(place: Path) -> list[Path]:
    return sorted(place.rglob("test_*.py")) if place.is_dir() else [place] if place.is_file() else []


@cache
def _modules(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"\bmobileclip(?:\.\w+)+", _text(path)))


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
