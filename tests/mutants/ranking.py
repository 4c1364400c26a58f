"""Which tests notice a change of a file of the library, the likeliest first."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

# Rooms and files without a folder of tests, or with more tests in others.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "strict": ("test_serialization.py", "test_hostile_files.py"),
    "cli": ("test_extras.py", "evaluation/test_own_data.py", "export/test_cli.py"),
    "__init__": ("test_import.py", "test_extras.py"),
    "__main__": ("test_extras.py",),
    "charts": ("test_figures.py", "training/test_plots.py", "recipes/test_finetune.py"),
    "inputs": ("test_input_sizes.py", "test_own_tokenizer.py", "data/images", "test_serialization.py"),
    "progress": ("terminal/test_printing.py", "evaluation/test_pace.py"),
    "registry": ("test_foreign_towers.py",),
}
_DOTTED = re.compile(r"\b(?:mobileclip|benchmarks|examples|tests)(?:\.\w+)+")


def _imported(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """Yield modules and names that a file imports from them: those of one module, or relative ones."""
    for node in _imports(path):
        if node.module and (node.level == 1 if not module else node.module == module):
            yield from ((node.module, alias.name) for alias in node.names)


@cache
def _imports(path: Path) -> tuple[ast.ImportFrom, ...]:
    return tuple(node for node in ast.walk(ast.parse(_text(path))) if isinstance(node, ast.ImportFrom))


def own_tests(root: Path, file: str, function: str = "", seconds: Mapping[str, float] | None = None) -> list[str]:
    """Return the test files of a file's place, and others that import it, the likeliest to notice a change first.

    That is the one of the same name, then those that name the function and the module oftenest for their time.

    Args:
        root: of the repository.
        file: that is changed.
        function: that is changed, with its class.
        seconds: how long test files take, as far as that is known.
    """
    module, known = Path(file).stem, seconds or {}

    def rank(test: str) -> tuple[bool, float]:
        words = _words(root / test)
        mentions = sum(words[word] for word in (module, *function.split(".")))
        return Path(test).stem != f"test_{module}", -mentions / (1 + known.get(test, 0))

    return sorted(dict.fromkeys(_room_tests(root, file)), key=rank)


def places_of(subpackage: str, module: str = "") -> list[str]:
    """Return the files and folders of the tests of a subpackage, those that are not there among them."""
    of_module = (f"test_{module}.py",) if module else ()
    places = (subpackage, f"test_{subpackage}.py", "test_defaults.py", *of_module, *ELSEWHERE.get(subpackage, ()))
    return [f"tests/{place}" for place in places]


def _room_tests(root: Path, file: str) -> list[str]:
    subpackage, *inside = Path(file).relative_to("mobileclip").with_suffix("").parts
    own = [test for place in places_of(subpackage, Path(file).stem) for test in _below(root, place)]
    dotted = ".".join(("mobileclip", subpackage, *inside))
    naming = _naming(root).get(dotted, ()) if inside else ()
    return [*own, *naming, *_tests_by_names(root, dotted)]


def _tests_by_names(root: Path, dotted: str) -> list[str]:
    """Return the tests that take a module's names from its folder, whose stub lists them."""
    folder, _, module = dotted.rpartition(".")
    stub = root.joinpath(*folder.split("."), "__init__.pyi")
    names = {name for source, name in _imported(stub, "") if source == module} if stub.is_file() else set()
    return [test for test in _naming(root).get(folder, ()) if names & _words(root / test).keys()] if names else []


@cache
def _naming(root: Path) -> dict[str, list[str]]:
    """Return the tests that name each module."""
    found: dict[str, list[str]] = {}
    for test in _test_files(root):
        for module in _modules(root / test):
            found.setdefault(module, []).append(test)
    return found


def _below(root: Path, place: str) -> list[str]:
    return [test for test in _test_files(root) if test == place or test.startswith(f"{place}/")]


@cache
def _test_files(root: Path) -> tuple[str, ...]:
    return tuple(path.relative_to(root).as_posix() for path in sorted((root / "tests").rglob("test_*.py")))


@cache
def _modules(path: Path) -> frozenset[str]:
    return frozenset(_DOTTED.findall(_text(path)))


@cache
def _words(path: Path) -> Counter[str]:
    return Counter(re.findall(r"\w+", _text(path)))


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
