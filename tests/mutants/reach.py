"""Which tests reach a line, and how long each takes: recorded by one run of all tests under coverage."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from xml.etree import ElementTree as ET

import attrs
from coverage import CoverageData

from tests.mutants.running import copied

DEFAULTS = "tests/test_defaults.py"
"""Looks at defaults, constants and bounds of whatever subpackage, as they are after imports."""

_LIKELIEST = 2
_QUICK = 4.0  # seconds
_MOST = 40.0  # seconds of tests for one mutant: what they do not notice by then has lived

_CONFIGURATION = """[run]
source = mobileclip
parallel = true
patch = subprocess
concurrency = multiprocessing,thread
disable_warnings = no-data-collected,module-not-measured,couldnt-parse,already-imported
"""


@attrs.frozen(kw_only=True)
class Reach:
    """What one run of the tests reached.

    Args:
        digests: of the files as they were, below the repository's root.
        lines: of a file, by number, the tests that reached it.
        seconds: of each test.
    """

    digests: dict[str, str]
    lines: dict[str, dict[int, frozenset[str]]]
    seconds: dict[str, float]

    def tests(self, root: Path, file: str, number: int, among: Sequence[str]) -> list[list[str]]:
        """Return the tests that reach a line, in groups that run one after another; none if the file is another now.

        What runs while modules are imported, a default or a constant, is reached by what reaches the definition's other
        lines, or the file's, and by the test of defaults.

        Args:
            root: of the repository.
            file: below it.
            number: of the line, from 1.
            among: test files that count, the likeliest first.
        """
        source = (root / file).read_bytes()
        if self.digests.get(file) != _digest(source):
            return []
        reached, places = self.lines.get(file, {}), {test: place for place, test in enumerate(among)}
        itself = range(number, number + 1)
        for numbers in (itself, *_definitions(source.decode(), number)):
            found = {test for line in numbers for test in reached.get(line, ()) if _file(test) in places}
            if found:
                of_defaults = {DEFAULTS} & places.keys() if numbers != itself else set()
                return in_groups(found | of_defaults, self.seconds, places)
        return []

    def save(self, path: Path) -> None:
        """Write what `read_reach` reads."""
        tests = sorted(self.seconds)
        places = {test: place for place, test in enumerate(tests)}
        lines = {
            file: {line: sorted(places[test] for test in reached) for line, reached in found.items()}
            for file, found in self.lines.items()
        }
        kept = {"tests": tests, "seconds": [self.seconds[test] for test in tests], "digests": self.digests}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept | {"lines": lines}), encoding="utf-8")


def in_groups(found: Collection[str], seconds: Mapping[str, float], places: Mapping[str, int]) -> list[list[str]]:
    """Return tests in the groups that run one after another, by their seconds and the places of their files.

    First come quick ones of the likeliest files, then quick ones of all, then others, up to a bound of seconds.
    """
    waiting = sorted(found, key=lambda test: (seconds.get(test, 0.0), test))
    likeliest = sorted({_file(test) for test in found}, key=places.__getitem__)[:_LIKELIEST]
    groups = []
    for files, most in ((set(likeliest), _QUICK), (set(places), 2 * _QUICK), (set(places), _MOST)):
        of_files = [test for test in waiting if _file(test) in files]
        spent = accumulate(seconds.get(test, 0.0) for test in of_files)
        groups.append([test for test, so_far in zip(of_files, spent, strict=True) if so_far < most])
        waiting = [test for test in waiting if test not in groups[-1]]
    # Tests of one file stand together, or else its fixtures would be made several times.
    return [sorted(group, key=lambda test: places[_file(test)]) for group in groups if group]


def read_reach(path: Path) -> Reach | None:
    """Return what was saved, None if nothing was."""
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    tests = kept["tests"]
    lines = {
        file: {int(line): frozenset(tests[place] for place in places) for line, places in found.items()}
        for file, found in kept["lines"].items()
    }
    return Reach(digests=kept["digests"], lines=lines, seconds=dict(zip(tests, kept["seconds"], strict=True)))


def record(root: Path, processes: int, places: Sequence[str] = ("tests",)) -> Reach:
    """Run tests in a copy of the tree and return what they reached.

    Under coverage some take too long or too much and fail, or end their process: they count with what they reached.

    Args:
        root: of the repository.
        processes: that run tests, a folder of them at a time.
        places: files and folders of tests.
    """
    with tempfile.TemporaryDirectory(prefix="reach-") as folder:
        tree = copied(root, Path(folder, "tree"))
        by_folder: dict[Path, list[Path]] = defaultdict(list)
        for path in sorted({path for place in places for path in test_files(tree, place)}):
            by_folder[path.parent].append(path)
        outputs = [Path(folder, str(number)) for number in range(len(by_folder))]
        with ThreadPoolExecutor(processes) as threads:
            for place, said in zip(
                by_folder, threads.map(partial(_run, tree), by_folder.values(), outputs), strict=True
            ):
                print(f"{place.relative_to(tree)}: {said}", flush=True)
        return _gathered(tree, outputs)


def test_files(root: Path, place: str) -> list[Path]:
    """Return the test files below a place, or the place itself if it is one; none if it is not there."""
    path = root / place
    return [path] if path.is_file() else sorted(path.rglob("test_*.py"))


def _run(tree: Path, tests: list[Path], output: Path) -> str:
    """Run test files, put what coverage and pytest tell into a new folder, and return the last line that was said."""
    output.mkdir()
    settings = output / "coveragerc"
    settings.write_text(f"{_CONFIGURATION}data_file = {output / 'coverage'}\n", encoding="utf-8")
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={output / 'junit.xml'}"]
    options += ["-o", "junit_family=xunit1", f"--cov-config={settings}", "--cov=mobileclip", "--cov-context=test"]
    command = [sys.executable, "-m", "pytest", *options, "--cov-report=", *map(str, tests)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    ended = subprocess.run(command, cwd=tree, env=environment, check=False, capture_output=True, text=True)
    return (ended.stdout.strip().splitlines() or [f"ended with {ended.returncode}"])[-1]


def _gathered(tree: Path, outputs: Sequence[Path]) -> Reach:
    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    seconds: dict[str, float] = defaultdict(float)
    for output in outputs:
        data = CoverageData(str(output / "coverage"))
        data.read()
        for name in data.measured_files():
            found = lines[Path(name).resolve().relative_to(tree.resolve()).as_posix()]
            for line, contexts in data.contexts_by_lineno(name).items():
                found[line] |= {context.rpartition("|")[0] for context in contexts if context}
        for case in ET.parse(output / "junit.xml").iter("testcase") if (output / "junit.xml").is_file() else ():
            inner = case.attrib["classname"].split(".")[case.attrib["file"].count("/") + 1 :]
            seconds["::".join((case.attrib["file"], *inner, case.attrib["name"]))] += float(case.attrib["time"])
    reached = {test for found in lines.values() for tests in found.values() for test in tests}
    return Reach(
        digests={file: _digest((tree / file).read_bytes()) for file in lines},
        lines={
            file: {line: frozenset(tests) for line, tests in found.items() if tests} for file, found in lines.items()
        },
        seconds={test: round(seconds.get(test, 0.0), 3) for test in reached},
    )


def _definitions(source: str, number: int) -> list[range]:
    """Return the lines of the definitions around a line, the inner ones first, and those of the file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds):
            first = min((node.lineno, *(decorator.lineno for decorator in node.decorator_list)))
            if first <= number <= (node.end_lineno or first):
                found.append(range(first, (node.end_lineno or first) + 1))
    return [*sorted(found, key=len), range(1, source.count("\n") + 2)]


def _file(test: str) -> str:
    return test.partition("::")[0]


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()
