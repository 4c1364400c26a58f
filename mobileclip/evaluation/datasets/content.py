"""A fingerprint of a data set's content, which changes when the data changes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mobileclip import storage
from mobileclip.evaluation.datasets.benchmark import Benchmark


def fingerprint(benchmark: Benchmark) -> str:
    """Return a hash that changes when the content of a data set's shards does, or which of their samples can be used.

    Raises:
        OSError: if a shard cannot be read, or a store cannot be reached.
    """
    content = storage.content_hashes(benchmark.files)
    about = [benchmark.name, benchmark.kind, len(benchmark.class_names), benchmark.allow_missing]
    return hash_of([*about, content, benchmark.units])


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def folder_content(path: str) -> str | None:
    """Return a hash that changes with the files of a folder; None for a web server, which lists nothing.

    What lies directly in it, such as a table of questions, is told by its content too; folders of pictures below, of
    which there may be a hundred thousand, by names, sizes and times.

    Args:
        path: of the folder, or its URL.

    Raises:
        OSError: if a store cannot be reached.
    """
    try:
        found = {name: mark for name, mark in storage.find_files(path).items() if not name.startswith(".")}
    except ValueError:  # a web server lists nothing
        return None
    beside = sorted(name for name in found if "/" not in name)
    hashes = storage.content_hashes(storage.join(path, name) for name in beside)
    return hash_of([sorted(found.items()), hashes])
