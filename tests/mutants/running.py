"""The tests of a subpackage against a changed program: in a copy of the tree, in a process within bounds."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import attrs
import pytest

from tests.mutants.sites import Mutant

NUM_BYTES = 6 * 2**30
"""Address space that a process may take beyond what it starts with."""

# Python knows by its time whether a file was compiled before: no two mutants may have the same.
_MOMENTS = count(1)


@attrs.frozen(kw_only=True)
class Verdict:
    """What the tests said.

    Args:
        passed: whether all of them passed.
        failed: the first that did not, or what else happened.
        confirmed: whether that test failed again, and passes in the unchanged program.
        seconds: how long they took.
        file_seconds: how long each test file took.
    """

    passed: bool
    failed: str
    seconds: float
    file_seconds: dict[str, float]
    confirmed: bool = True

    @property
    def outcome(self) -> str:
        """What became of the mutant: lived, caught, or neither for certain."""
        if self.passed:
            return "lived"
        return "caught" if self.confirmed else "unconfirmed"


def copied(root: Path, folder: Path) -> Path:
    """Copy what git knows of a working tree, or would know, to where it can be changed."""
    listed = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    return folder


class Trial:
    """Tests that run in a copy of the tree.

    Args:
        tree: the copy; no other trial may run there.
        tests: files in their order.
        mutant: what to put in place; None for the program as it is.
        seconds: after which they have failed.
        left_out: tests that do not run.
    """

    def __init__(
        self, tree: Path, tests: list[str], mutant: Mutant | None, seconds: float, left_out: Sequence[str] = ()
    ) -> None:
        self.tree = tree
        self.tests = tests
        self.mutant = mutant
        self.seconds = seconds
        self._original = tree / ".original"
        self._answer = tree / ".verdict.json"
        self._answer.unlink(missing_ok=True)
        if mutant is not None:
            shutil.copy2(tree / mutant.file, self._original)
            (tree / mutant.file).write_text(mutant.source, encoding="utf-8")
            moment = next(_MOMENTS)
            os.utime(tree / mutant.file, (moment, moment))
        self._started = time.monotonic()
        self._deadline = self._started + seconds
        chosen = [*tests, *(f"--deselect={test}" for test in left_out)]
        self.process: BaseProcess = get_context("fork").Process(target=_test, args=(tree, chosen, self._answer))
        self.process.start()

    @property
    def seconds_left(self) -> float:
        return max(self._deadline - time.monotonic(), 0)

    def finish(self) -> Verdict:
        """Wait for the end or the last moment, put the original back, and return what came out."""
        self.process.join(self.seconds_left)
        late = self.process.is_alive()
        self.stop()
        seconds = time.monotonic() - self._started
        if late:
            return Verdict(passed=False, failed="took too long", seconds=seconds, file_seconds={})
        if self.process.exitcode == 1:
            log = self.tree / ".log"
            raise RuntimeError(f"the tests could not be run: {log.read_text()[-2000:] if log.is_file() else self.tree}")
        if not self._answer.is_file():
            failed = f"the process ended with {self.process.exitcode}"
            return Verdict(passed=False, failed=failed, seconds=seconds, file_seconds={})
        return Verdict(**json.loads(self._answer.read_text(encoding="utf-8")), seconds=seconds)

    def stop(self) -> None:
        """End the tests and all that they have started, and put the original back."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        if self.mutant is not None:
            self._original.replace(self.tree / self.mutant.file)


def confirmed(trial: Trial, verdict: Verdict, sound: dict[str, bool]) -> Verdict:
    """Run the test that failed again, with the change and without it, and return the verdict that says what came out.

    Where the process died, took too long or could not begin, all of its tests run without the change.

    Args:
        trial: that ended.
        verdict: of it.
        sound: which tests pass without a change, as far as that is known; the one that failed is added.
    """
    if verdict.passed:
        return verdict
    started = time.monotonic()
    if not (trial.tree / verdict.failed.partition("::")[0]).is_file():
        without = Trial(trial.tree, trial.tests, None, trial.seconds).finish()
        seconds = verdict.seconds + time.monotonic() - started
        return attrs.evolve(verdict, confirmed=without.passed or without.failed != verdict.failed, seconds=seconds)
    fails_again = not Trial(trial.tree, [verdict.failed], trial.mutant, trial.seconds).finish().passed
    if verdict.failed not in sound:
        sound[verdict.failed] = Trial(trial.tree, [verdict.failed], None, trial.seconds).finish().passed
    seconds = verdict.seconds + time.monotonic() - started
    return attrs.evolve(verdict, confirmed=fails_again and sound[verdict.failed], seconds=seconds)


class _Report:
    """A pytest plug-in that keeps the first failure and the seconds of each file."""

    def __init__(self) -> None:
        self.failed = ""
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.partition("::")[0]] += report.duration
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def _test(tree: Path, tests: list[str], answer: Path) -> None:
    gc.freeze()  # or else each look for garbage would copy all that was imported before the fork
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    started_with = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)[1]  # stays, since a browser needs more
    resource.setrlimit(resource.RLIMIT_AS, (started_with + NUM_BYTES, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = os.open(tree / ".log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for number in (1, 2):
        os.dup2(log, number)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "mobileclip")]:
        del sys.modules[name]
    os.chdir(tree)
    sys.path[0] = os.environ["PYTHONPATH"] = str(tree)
    report = _Report()
    # pytest minds that what we have imported before its time was not rewritten.
    options = ["-x", "-q", "--no-header", "--hypothesis-seed=0", "-p", "no:cacheprovider", f"--rootdir={tree}"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-W", "ignore:rawpy is being used in a process"]
    try:
        ended = pytest.ExitCode(pytest.main([*options, *tests], plugins=[report])).name
    except Exception as error:  # noqa: BLE001 - a warning at the end, or whatever else plug-ins raise
        ended = type(error).__name__
    passed = ended in ("OK", "NO_TESTS_COLLECTED")
    verdict = {
        "passed": passed,
        "failed": "" if passed else report.failed or ended,
        "file_seconds": report.seconds,
    }
    answer.write_text(json.dumps(verdict), encoding="utf-8")
    os._exit(0)
