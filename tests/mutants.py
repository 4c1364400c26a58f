"""Mutation tests: change one token of the library in a copy of the repository, and run the tests of its subpackage.

Command:   make mutants ARGS="--seed 7 --count 60"    (by default the day's seed)
Result:    build/mutants.jsonl, a line per mutant; at the end those that lived: each is a missing test, or equal code
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from tests.environments import ROOT, copied

SECONDS = 600
"""After which the tests of a mutant count as hung, which is a failure."""

_PAIRS = ((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn))
_PAIRS += ((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div))
_SWAPPED = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])} | {ast.FloorDiv: ast.Mult}


@attrs.frozen
class Mutant:
    """A change: the source text of an expression of a file, by its place, and the text that replaces it."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield the changes of a file: swapped operators, negated conditions, other numbers and flags."""
    text = path.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(text)
    # An `assert` states what holds anyway, and a type is not run.
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.AnnAssign, ast.arg)) and node.annotation is not None:
            left_out.update(map(id, ast.walk(node.annotation)))
        elif isinstance(node, (ast.Assert, ast.Raise)):
            left_out.update(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and id(node) not in left_out and (changed := _changed(node)) is not None:
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            name = path.relative_to(ROOT).as_posix()
            yield Mutant(name, node.lineno, start, end, text[start:end].decode(), f"({ast.unparse(changed)})")


def _changed(node: ast.expr) -> ast.expr | None:
    changed: ast.expr | None = None
    match node:
        case ast.Compare(left, [operator], others) if type(operator) in _SWAPPED:
            changed = ast.Compare(left, [_SWAPPED[type(operator)]()], others)
        case ast.BinOp(left, operator, right) if type(operator) in _SWAPPED:
            changed = ast.BinOp(left, _SWAPPED[type(operator)](), right)
        case ast.BoolOp(operator, values):
            changed = ast.BoolOp(_SWAPPED[type(operator)](), values)
        case ast.UnaryOp(ast.Not(), operand):
            changed = operand
        case ast.Constant(bool(value)):
            changed = ast.Constant(not value)
        case ast.Constant(int(value)):
            changed = ast.Constant(value + 1)
    return changed


def _subpackage(path: Path) -> str:
    """Return the subpackage of a file."""
    folder = path.parent.relative_to(ROOT).parts
    return folder[1] if len(folder) > 1 else "outside subpackages"


def drawn(seed: int, count: int, only: str) -> list[Mutant]:
    """Return a sample, of equal size for every subpackage as far as it has so many."""
    chance = random.Random(seed)
    mutants: dict[str, list[Mutant]] = {}
    for path in sorted((ROOT / "mobileclip").rglob("*.py")):
        if path.relative_to(ROOT).as_posix().startswith(f"mobileclip/{only}"):
            mutants.setdefault(_subpackage(path), []).extend(mutants_of(path))
    for found in mutants.values():
        chance.shuffle(found)
    turns = [(place, number) for place, found in mutants.items() for number in range(len(found))]
    turns.sort(key=lambda turn: (turn[1], chance.random()))
    return [mutants[place][number] for place, number in turns[:count]]


def tests_of(mutant: Mutant) -> list[str]:
    """Return what to run: tests named like the module, then those of the subpackage; all if there is neither."""
    parts = Path(mutant.file).with_suffix("").parts[1:]
    name = parts[-1] if parts[-1] != "__init__" else parts[0]
    found = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(f"tests/**/test_{name}*.py"))]
    folder = ROOT / "tests" / parts[0]
    return [*found, *([folder.relative_to(ROOT).as_posix()] if folder.is_dir() else [])] or ["tests"]


def tried(mutant: Mutant, copy: Path) -> str:
    """Run the tests of a mutant in a copy of the repository, and return `caught` or `lived`."""
    file = copy / mutant.file
    text = file.read_bytes()
    try:
        file.write_bytes(text[: mutant.start] + mutant.after.encode() + text[mutant.end :])
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests_of(mutant)]
        environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        options = {"env": environment, "timeout": SECONDS, "capture_output": True}
        ended = subprocess.run(command, cwd=copy, check=False, **options)
    except subprocess.TimeoutExpired:
        return "caught"
    finally:
        file.write_bytes(text)
    # 1: a test failed; 2: a module could not be imported. 5: every test of the subpackage is deselected.
    return "caught" if ended.returncode in (1, 2) else "lived"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seed", type=int, default=int(time.time() // 86_400), help="of the sample")
    add("--count", type=int, default=60, help="mutants (default 60)")
    add("--only", default="", help="part of the library, such as losses/tiled")
    add("--processes", type=int, default=os.cpu_count() or 1, help="default: all cores")
    choices = parser.parse_args()
    output = ROOT / "build" / "mutants.jsonl"
    output.parent.mkdir(exist_ok=True)
    outcomes: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(choices.processes) as pool:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(choices.processes):
            copies.put(copied(Path(folder) / str(number)))

        def run(mutant: Mutant) -> tuple[Mutant, str]:
            copy = copies.get()
            try:
                return mutant, tried(mutant, copy)
            finally:
                copies.put(copy)

        with output.open("w", encoding="utf-8") as lines:
            for mutant, outcome in pool.map(run, drawn(choices.seed, choices.count, choices.only)):
                outcomes.setdefault(_subpackage(ROOT / mutant.file), Counter())[outcome] += 1
                lines.write(json.dumps(attrs.asdict(mutant) | {"outcome": outcome}) + "\n")
                lines.flush()
                print(f"{outcome} {mutant.file}:{mutant.line} {mutant.before} -> {mutant.after}", flush=True)
    for place, counted in outcomes.items():
        print(f"{place}: {counted['caught']} of {counted.total()} caught")
    whole = sum(outcomes.values(), Counter[str]())
    print(f"seed {choices.seed}: {whole['caught']} of {whole.total()} caught; {output.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
