"""Sources: image-text data in the forms that it comes in, cut into units of work, each of which becomes one shard."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mobileclip import storage
from mobileclip.data.sources.base import Source, Unit, sources
from mobileclip.data.sources.class_folder import ClassFolderSource
from mobileclip.data.sources.folder import FolderSource
from mobileclip.data.sources.jsonl import JsonLinesSource
from mobileclip.data.sources.shards import ShardSource

__all__ = [
    "ClassFolderSource",
    "FolderSource",
    "JsonLinesSource",
    "ShardSource",
    "Source",
    "Unit",
    "as_source",
    "sources",
]

_LINES = (".jsonl", ".ndjson")
_OTHERS = (".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".zip")


def as_source(
    data: Source | str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, samples_per_shard: int = 1000
) -> Source:
    """Return the source that a path stands for.

    Args:
        data: shards (a path, a brace pattern, several of them), a `.jsonl` file, a directory with shards, or one with
            images; a source is returned as it is.
        samples_per_shard: of a source that is not cut into shards yet.

    Raises:
        ValueError: if there is nothing, or the file is of another kind.
    """
    if isinstance(data, Source):
        return data
    if not isinstance(data, (str, os.PathLike)):
        return ShardSource(shards=data)
    text = os.fspath(data)
    if not text:
        raise ValueError("no data was given; expected shards, a .jsonl file or a directory of images")
    if text.lower().endswith(_LINES):
        return JsonLinesSource(path=text, samples_per_shard=samples_per_shard)
    if text.lower().endswith(_OTHERS):
        raise ValueError(f"{text} is neither a tar shard nor a .jsonl file; write it as one JSON object a line")
    if _is_directory(text):
        shards = storage.list_files(text, ".tar")
        return ShardSource(shards=shards) if shards else FolderSource(path=text, samples_per_shard=samples_per_shard)
    return ShardSource(shards=text)


def _is_directory(text: str) -> bool:
    if not storage.is_remote(text):
        return storage.is_directory(text)
    # Every question to a store takes time, and the name of a shard answers this one.
    is_pattern = "{" in text or "::" in text or ".tar" in storage.file_name(text)
    return not is_pattern and storage.is_directory(text)
