"""What the changed files reach, in about a minute: the likeliest tests to notice, with lint and types beside them.

A file is changed that differs from where its branch left another (`--base`), committed or not, or that git does not
know. Tests run in the order of `tests.ranking` until the seconds that were recorded of them fill the time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.ranking import ranked
from tests.seconds import UNKNOWN, recorded

ROOT = Path(__file__).parents[1]
BASES = ("main", "origin/main", "HEAD")
_BESIDE = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy",),
    "floors": ("lint-imports",),
}
_ALONE = 12.0
"""Seconds of tests for which a second process is not worth its start."""


def main() -> int:
    """Run the command; the exit status says whether all is well."""
    choices = _choices()
    base = choices.base or next(name for name in BASES if _git("rev-parse", "--verify", "--quiet", name))
    changed = changed_files(ROOT, base)
    seconds = recorded(ROOT)
    tests = ranked(ROOT, changed, seconds)
    chosen = within(tests, seconds, choices.seconds * choices.processes)
    print(_said(base, changed, tests, chosen, seconds), flush=True)
    if choices.list:
        print(*chosen, sep="\n")
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        beside = {name: _started(command, Path(folder, name)) for name, command in _BESIDE.items()}
        try:
            passed = (
                not chosen or subprocess.run(_pytest(chosen, seconds, choices), cwd=ROOT, check=False).returncode == 0
            )
            failed = [name for name, process in beside.items() if process.wait() != 0]
        finally:
            for process in beside.values():
                process.kill()
        for name in failed:
            print(f"\n{' '.join(_BESIDE[name])}:\n{Path(folder, name).read_text(encoding='utf-8')}", end="")
    failed += [] if passed else ["tests"]
    print(f"{'failed: ' + ', '.join(failed) if failed else 'all well'}, {time.monotonic() - started:.0f} s")
    return min(len(failed), 1)


def changed_files(root: Path, base: str) -> list[str]:
    """Return the files that differ from where HEAD left a branch, and those that git does not know.

    Args:
        root: of the repository.
        base: a branch or a commit.

    Raises:
        SystemExit: if there is no such commit.
    """
    left = _git("merge-base", "HEAD", base, root=root)
    if not left:
        sys.exit(f"There is no commit {base!r} that this branch shares; name another: make check BASE=HEAD")
    differing = _git("diff", "--name-only", "--no-renames", "-z", left[0].strip(), root=root)
    unknown = _git("ls-files", "--others", "--exclude-standard", "-z", root=root)
    return sorted({*differing, *unknown})


def within(tests: Sequence[str], seconds: Mapping[str, float], most: float) -> list[str]:
    """Return the first tests that fit into a time; the first of all is always among them.

    Args:
        tests: the likeliest first.
        seconds: how long they take, as far as that is known.
        most: seconds that there are.
    """
    chosen, left = list(tests[:1]), most - sum(seconds.get(test, UNKNOWN) for test in tests[:1])
    for test in tests[1:]:
        if (needed := seconds.get(test, UNKNOWN)) <= left:
            chosen.append(test)
            left -= needed
    return chosen


def _choices() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make check ARGS=...", description=__doc__.partition("\n")[0])
    parser.add_argument("--base", help="the branch or commit that changes are counted from (default main)")
    parser.add_argument("--seconds", type=float, default=30.0, help="recorded seconds of tests a process (default 30)")
    parser.add_argument("--processes", type=int, default=2, help="that tests are shared out to (default 2)")
    parser.add_argument("--list", action="store_true", help="say which tests would run, and run none")
    parser.add_argument("others", nargs="*", metavar="-- ARGUMENT", help="for pytest, behind --")
    return parser.parse_args()


def _said(
    base: str, changed: Sequence[str], tests: Sequence[str], chosen: Sequence[str], seconds: Mapping[str, float]
) -> str:
    total = sum(seconds.get(test, UNKNOWN) for test in chosen)
    text = f"{len(changed)} files changed since {base}, which reach {len(tests)} test files"
    left_out = [test for test in tests if test not in chosen]
    if left_out:
        text += f"\n{len(left_out)} of these are left out, first {left_out[0]}; ARGS='--seconds 300' runs more"
    return f"{text}\n{len(chosen)} run, {total:.0f} s of one process:"


def _pytest(chosen: Sequence[str], seconds: Mapping[str, float], choices: argparse.Namespace) -> list[str]:
    several = len(chosen) > 1 and sum(seconds.get(test, UNKNOWN) for test in chosen) > _ALONE
    shared = ["--numprocesses", str(choices.processes), "--dist", "loadfile", "--no-loadscope-reorder"]
    shared += ["--max-worker-restart", "0"]  # where one is replaced, xdist may wait for ever
    return [sys.executable, "-m", "pytest", "-q", *(shared if several else []), *choices.others, *chosen]


def _passed(command: Sequence[str]) -> bool:
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def _started(command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    program, *arguments = command
    beside = Path(sys.executable).with_name(program)
    with output.open("wb") as stream:
        return subprocess.Popen([beside, *arguments], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)


def _git(*arguments: str, root: Path = ROOT) -> list[str]:
    """Return what git says, split where it says so; nothing where it fails."""
    done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=False)
    return [text for text in done.stdout.split("\0") if text] if done.returncode == 0 else []


if __name__ == "__main__":
    sys.exit(main())
