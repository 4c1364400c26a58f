"""Which tests notice a change: those of the changed file, the likeliest first, then others by the way of imports."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from tests.seconds import UNKNOWN

if TYPE_CHECKING:
    import grimp

# Rooms and files without a folder of tests, or with more tests in others.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "strict": ("test_serialization.py", "trials"),
    "cli": ("test_extras.py", "evaluation/test_own_data.py", "export/test_cli.py"),
    "__init__": ("test_import.py", "test_extras.py"),
    "__main__": ("test_extras.py",),
    "charts": ("test_figures.py", "training/test_plots.py", "recipes/test_finetune.py"),
    "inputs": ("test_input_sizes.py", "test_own_tokenizer.py", "data/images", "test_serialization.py"),
    "progress": ("terminal/test_printing.py", "evaluation/test_pace.py"),
    "registry": ("test_foreign_towers.py",),
}
# The tests of what lies beside the library: of a folder, or of a file at the root.
BESIDE: dict[str, tuple[str, ...]] = {
    "benchmarks": ("benchmarks",),
    "docs": ("test_pages.py", "test_site.py"),
    "examples": ("examples",),
    "recipes": ("recipes",),
    "requirements": ("test_environments.py",),
    "Makefile": ("test_pages.py",),
    "mkdocs.yml": ("test_site.py",),
    "pyproject.toml": ("test_environments.py", "test_extras.py"),
    "README.md": ("test_pages.py", "test_environments.py", "test_extras.py"),
    "CONTRIBUTING.md": ("test_pages.py", "test_site.py"),
}
# They look at the whole tree, in a few seconds.
GUARDS = ("tests/test_assertions.py", "tests/test_encodings.py")
_DOTTED = re.compile(r"\b(?:mobileclip|benchmarks|examples|tests)(?:\.\w+)+")
_SAME_ROOM = 3  # as far as imports, where there are none
_PACKAGES = ("mobileclip", "benchmarks", "tests")


def ranked(root: Path, changed: Iterable[str], seconds: Mapping[str, float]) -> list[str]:
    """Return every test file that changes reach, the likeliest to notice one first.

    Changed tests come first, then those of each changed file that name it, by turns, then those that look at the whole
    tree, then the others of the room and those that import the file, and at last the rest: always the nearer in the
    graph of imports first, and of those as near the quicker.

    Args:
        root: of the repository.
        changed: files, some of which may be gone.
        seconds: how long test files take, as far as that is known.
    """
    changed = sorted(changed)
    tests = [file for file in changed if _is_test(file) and (root / file).is_file()]
    own = {file: own_tests(root, file, seconds=seconds) for file in changed}
    turns = zip_longest(*([test for test in own[file] if _names(root / test, Path(file).stem)] for file in changed))
    naming = [test for turn in turns for test in turn if test is not None]
    guards = GUARDS if any(file.endswith(".py") for file in changed) else ()
    room = set(chain.from_iterable(own.values()))
    far = dict.fromkeys(room, _SAME_ROOM) | distances(root, changed)
    near = room | {test for test, distance in far.items() if distance == 1}
    others = sorted(far, key=lambda test: (test not in near, far[test], seconds.get(test, UNKNOWN), test))
    return list(dict.fromkeys([*tests, *naming, *guards, *others]))


def distances(root: Path, changed: Iterable[str]) -> dict[str, int]:
    """Return the test files that import changed modules, directly or not, with the number of imports on the way.

    What is no module counts as a part of the helpers of tests that name it.
    """
    graph = _graph(root)
    data = [Path(file).name for file in changed if not file.endswith(".py")]
    helpers = [path for path in (root / "tests").rglob("*.py") if any(name in _text(path) for name in data)]
    files = [*changed, *(path.relative_to(root).as_posix() for path in helpers)]
    names = {".".join(Path(file).with_suffix("").parts).removesuffix(".__init__") for file in files}
    far = dict.fromkeys(names & graph.modules, 0)
    for module in (waiting := list(far)):
        for importer in graph.find_modules_that_directly_import(module) - far.keys():
            far[importer] = far[module] + 1
            waiting.append(importer)
    tests = {f"{module.replace('.', '/')}.py": distance for module, distance in far.items()}
    return {test: distance for test, distance in tests.items() if _is_test(test) and distance}


@cache
def _graph(root: Path) -> grimp.ImportGraph:
    """Return who imports whom, by stubs too."""
    import grimp

    graph = grimp.build_graph(*_PACKAGES, cache_dir=None)
    for importer, module in list(lazy_imports(root, graph)):
        graph.add_import(importer=importer, imported=module)
    return graph


def lazy_imports(root: Path, graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    """Yield who imports a name of a folder that imports it when it is used, and the module that has it.

    The graph knows the folder alone: the module of each name stands in the folder's stub.
    """
    for stub in sorted((root / "mobileclip").rglob("__init__.pyi")):
        folder = _module_of(stub.parent, root)
        places = {name: f"{folder}.{module}" for module, name in _imported(stub, "")}
        for importer in graph.find_modules_that_directly_import(folder):
            for _, name in _imported(_file_of(root, importer), folder):
                if name in places:
                    yield importer, places[name]


def _imported(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """Yield modules and names that a file imports from them: those of one module, or relative ones."""
    for node in _imports(path):
        if node.module and (node.level == 1 if not module else node.module == module):
            yield from ((node.module, alias.name) for alias in node.names)


@cache
def _imports(path: Path) -> tuple[ast.ImportFrom, ...]:
    return tuple(node for node in ast.walk(ast.parse(_text(path))) if isinstance(node, ast.ImportFrom))


def _module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).parts)


def _file_of(root: Path, module: str) -> Path:
    package = root.joinpath(*module.split("."), "__init__.py")  # a folder alone may be what git left of a former one
    return package if package.exists() else package.parent.with_suffix(".py")


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
    own = _room_tests(root, file) if file.startswith("mobileclip/") else _tests_beside(root, file)

    def rank(test: str) -> tuple[bool, float]:
        words = _words(root / test)
        mentions = sum(words[word] for word in (module, *function.split(".")))
        return Path(test).stem != f"test_{module}", -mentions / (1 + known.get(test, 0))

    return sorted(dict.fromkeys(own), key=rank)


def places_of(room: str, module: str = "") -> list[str]:
    """Return the files and folders of the tests of a room, those that are not there among them."""
    of_module = (f"test_{module}.py",) if module else ()
    places = (room, f"test_{room}.py", "test_defaults.py", *of_module, *ELSEWHERE.get(room, ()))
    return [f"tests/{place}" for place in places]


def _room_tests(root: Path, file: str) -> list[str]:
    room, *inside = Path(file).relative_to("mobileclip").with_suffix("").parts
    own = [test for place in places_of(room, Path(file).stem) for test in _below(root, place)]
    dotted = ".".join(("mobileclip", room, *inside))
    naming = _naming(root).get(dotted, ()) if inside else ()
    return [*own, *naming, *_tests_by_names(root, dotted)]


def _tests_by_names(root: Path, dotted: str) -> list[str]:
    """Return the tests that take a module's names from its folder, whose stub lists them."""
    folder, _, module = dotted.rpartition(".")
    stub = root.joinpath(*folder.split("."), "__init__.pyi")
    names = {name for source, name in _imported(stub, "") if source == module} if stub.is_file() else set()
    return [test for test in _naming(root).get(folder, ()) if names & _words(root / test).keys()] if names else []


def _tests_beside(root: Path, file: str) -> list[str]:
    """Return the tests of what is no part of the library: those of its place, and all that import or name it."""
    path = Path(file)
    places = [f"tests/{name}" for name in BESIDE.get(path.parts[0], ())]
    if _is_test(file) or path.name == "conftest.py":
        places = [file if _is_test(file) else path.parent.as_posix()]
    dotted, names = ".".join(path.with_suffix("").parts), path.suffix != ".py"
    naming = [
        test
        for test in _test_files(root)
        if dotted in _modules(root / test) or (names and path.name in _text(root / test))
    ]
    return [*(test for place in places for test in _below(root, place)), *naming]


@cache
def _naming(root: Path) -> dict[str, list[str]]:
    """Return the tests that name each module."""
    found: dict[str, list[str]] = {}
    for test in _test_files(root):
        for module in _modules(root / test):
            found.setdefault(module, []).append(test)
    return found


def _names(test: Path, module: str) -> bool:
    return test.stem == f"test_{module}" or module in _words(test)


def _is_test(file: str) -> bool:
    return file.startswith("tests/") and Path(file).match("test_*.py")


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
