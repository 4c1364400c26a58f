"""What a folder holds, as far as it is the same whenever a command is run, and however often it was killed before."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from mobileclip.collections import INDEX, Collection
from mobileclip.collections.concepts import read_concepts
from mobileclip.collections.tags import read_tag_words

# When it was, how long it took, and by which process it was done.
_TIMES = {"seconds", "evaluated", "when", "time", "host", "process", "created", "started", "ended", "images_per_second"}
# What a run says about itself, and what ONNX Runtime and matplotlib keep for themselves.
_LEFT_OUT = re.compile(r"(^|/)run(/|$)|^home/cache/(Microsoft|matplotlib)(/|$)")
# Pages and plots with the time that something took.
_TIMED = re.compile(r"report\.html|latency-.*\.png")
_OF_INDEX = re.compile(rf"{INDEX}(-journal)?")


def contents(folder: Path) -> dict[str, str]:
    """Return every file and folder below a folder with what stands for its content."""
    found = {}
    indexes = {path.parent for path in folder.rglob(INDEX) if _is_index(path.parent)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if _LEFT_OUT.search(name):
            continue
        if path.is_dir():
            found[name] = "rows " + _rows(path) if path in indexes else "folder"
        elif path.parent in indexes and _OF_INDEX.fullmatch(path.name):
            continue  # how often it was written to says how often the job was ended
        elif _TIMED.fullmatch(path.name):
            found[name] = "a file" if path.stat().st_size else "empty"
        else:
            reading = _READERS.get(path.suffix, bytes)
            found[name] = hashlib.sha256(reading(path.read_bytes())).hexdigest()
    return found


def _is_index(folder: Path) -> bool:
    try:
        Collection.open(folder)
    except ValueError:
        return False
    return True


def _rows(folder: Path) -> str:
    snapshot = Collection.open(folder).snapshot
    table = [{**row, "id": 0} for row in snapshot.rows(range(len(snapshot)))]
    rows = sorted(repr((row, vector.tobytes())) for row, vector in zip(table, snapshot.vectors, strict=True))
    rows += [repr((one.to_dict(), one.vectors.tobytes())) for one in read_concepts(folder).values()]
    rows += [repr((words.words, words.levels.tobytes()))] if (words := read_tag_words(folder)) is not None else []
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if not any(word in key.split("_") for word in _TIMES)}
        return {key: _without_times(one) for key, one in kept.items()}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def _json(data: bytes) -> bytes:
    return json.dumps(_without_times(json.loads(data)), sort_keys=True).encode()


def _lines(data: bytes) -> bytes:
    return b"\n".join(_json(line) for line in data.split(b"\n") if line)


def _safetensors(data: bytes) -> bytes:
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.get("__metadata__", {})
    if "header" in metadata:  # of embeddings that are kept: it says when they were made, and has a digest of that
        metadata["header"] = _without_times(json.loads(metadata["header"]))
        metadata.pop("sha256", None)
    return json.dumps(header, sort_keys=True).encode() + data[start:]


def _torch(data: bytes) -> bytes:
    return save(torch.load(io.BytesIO(data)))  # torch.save gives every file a number of its own


_READERS = {".json": _json, ".jsonl": _lines, ".safetensors": _safetensors, ".pt": _torch}
