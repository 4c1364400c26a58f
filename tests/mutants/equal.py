"""The mutants that are the same program as ours, each with the reason why no test can tell them apart."""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).with_name("equal.json")
FIELDS = ("file", "function", "line", "becomes")


def equal_programs() -> dict[tuple[str, ...], str]:
    """Return what names each of them, and why it is equal."""
    entries = json.loads(FILE.read_text(encoding="utf-8"))
    return {tuple(entry[field] for field in FIELDS): entry["reason"] for entry in entries}


def outdated(root: Path) -> list[tuple[str, ...]]:
    """Return the entries whose line is no longer in their file."""
    found = []
    for key in equal_programs():
        path = root / key[0]
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if key[2] not in " ".join(line.strip() for line in lines):
            found.append(key)
    return found
