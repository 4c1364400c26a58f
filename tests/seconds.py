"""How long test files take: tests/seconds.json, which `--record-seconds` renews for the files that a run has run.

Several processes begin with the longest file, so that none of them has it left at the end.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

UNKNOWN = 4.0
"""What a test file is taken to need until it has been recorded."""


def recorded(root: Path) -> dict[str, float]:
    """Return the seconds of test files, as far as they were recorded."""
    path = root / "tests" / "seconds.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


class Recorder:
    """A pytest plug-in that sums up the seconds of each test file, and writes them down at the end.

    Args:
        root: of the repository.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add what a test, its set-up or its end took."""
        self.seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Write them down beside those of other files; files that are gone are left out."""
        known = recorded(self.root) | {file: round(seconds, 1) for file, seconds in self.seconds.items()}
        kept = {file: known[file] for file in sorted(known) if (self.root / file).is_file()}
        (self.root / "tests" / "seconds.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def longest_first(items: list[pytest.Item], seconds: dict[str, float]) -> None:
    """Put the tests of the files that take longest first; those of one file stay as they are."""
    items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], UNKNOWN))
