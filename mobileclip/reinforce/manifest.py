"""The manifest of a reinforcement: one line for every finished shard, so that none is done twice and none is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data import ViewAgreement
from mobileclip.data.shards.sidecars import MANIFEST
from mobileclip.datasets.sources.base import UNREACHABLE
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict

TAIL = "manifest.tail.jsonl"
"""File beside the manifest in an object store, which cannot append: its newest lines, until they are written there."""

# Ten million lines.
_MAX_BYTES = 2**31
# No shard has so many.
_MAX_SAMPLES = 2**36
# The manifest names files below its own folder.
_PART = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f]+"
_FILE_NAME = rf"{_PART}(?:/{_PART})*"
# Runs that try to reach an image.
_MOST_ATTEMPTS = 3


@attrs.frozen(kw_only=True, field_transformer=strict)
class ShardEntry:
    """One finished shard.

    Args:
        shard: its path below the output, with `/` between folders; a shard without samples has no file.
        fingerprint: of the input that it was made of; another one means that it must be made again.
        num_samples: samples in it.
        num_bytes: its size.
        skipped: samples left out, by reason.
        agreement: how far the teachers recognise its views; None where it was not measured.
        attempts: runs that have tried to reach the images of all its rows.
    """

    shard: str = attrs.field(validator=validators.matches_re(_FILE_NAME))
    fingerprint: str
    num_samples: int = attrs.field(validator=[validators.ge(0), validators.lt(_MAX_SAMPLES)])
    num_bytes: int = attrs.field(validator=validators.ge(0))
    skipped: Mapping[str, int] = attrs.field(factory=dict)
    agreement: ViewAgreement | None = None
    attempts: int = attrs.field(default=1, validator=validators.gt(0))

    @property
    def is_pending(self) -> bool:
        """Whether the images of some rows could not be reached, and are tried again by the next run."""
        return UNREACHABLE in self.skipped and self.attempts < _MOST_ATTEMPTS


class Manifest:
    """The finished shards of an output directory, a mapping that is as durable as the files.

    Lines are appended and synchronised, later ones count; what a killed process left of a line is dropped, and cut off
    when the next one is appended: reading writes nothing. In an object store the newest lines are in a small file of
    their own, which is written at once, so that none is lost and the long file is seldom written.

    Args:
        directory: of the shards, local or a URL.
        most_in_tail: at least 1; an object store writes the small file again for every entry, and the whole manifest
            when the small one has so many.

    Raises:
        ValueError: if a line other than the last is damaged.
    """

    def __init__(self, directory: str | os.PathLike[str], *, most_in_tail: int = 256) -> None:
        self._most_in_tail = most_in_tail
        self.path = storage.join(os.fspath(directory), MANIFEST)
        self._tail_path = storage.join(os.fspath(directory), TAIL)
        self._remote = storage.is_remote(self.path)
        self._entries, self._num_whole_bytes = _read(self.path)
        self._tail = _read(self._tail_path)[0] if self._remote else {}
        self._entries |= self._tail

    def __getitem__(self, shard: str) -> ShardEntry:
        return self._entries[shard]

    def __contains__(self, shard: str) -> bool:
        return shard in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> tuple[ShardEntry, ...]:
        """Return all entries."""
        return tuple(self._entries.values())

    def add(self, entry: ShardEntry) -> None:
        """Enter a finished shard; an entry of the same name is replaced."""
        self._entries[entry.shard] = entry
        if self._remote:
            self._tail[entry.shard] = entry
            if len(self._tail) < self._most_in_tail:
                _write(self._tail_path, self._tail)
            else:
                self.close()
            return
        if self._num_whole_bytes is not None:
            os.truncate(self.path, self._num_whole_bytes)
            self._num_whole_bytes = None
        with Path(self.path).open("ab") as stream:
            stream.write(_line(entry))
            stream.flush()
            os.fsync(stream.fileno())

    def close(self) -> None:
        """Write to an object store's long file what its small one holds."""
        if self._tail:
            _write(self.path, self._entries)
            storage.remove(self._tail_path)
            self._tail.clear()


def _read(path: str) -> tuple[dict[str, ShardEntry], int | None]:
    """Return what stands in a file, and how many of its bytes are whole lines where the last one is not."""
    text = storage.read_if_there(path, limit=_MAX_BYTES) or b""
    *lines, torn = text.split(b"\n")
    entries = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = from_json(line.decode(), ShardEntry)
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} is damaged ({error}); delete the line, and its shard is made again"
            ) from None
        entries[entry.shard] = entry
    return entries, len(text) - len(torn) if torn else None


def _write(path: str, entries: Mapping[str, ShardEntry]) -> None:
    with storage.atomic_write(path) as stream:
        stream.writelines(map(_line, entries.values()))


def _line(entry: ShardEntry) -> bytes:
    # Of most shards there is one attempt, which need not be said a million times.
    return to_json(entry).replace(', "attempts": 1}', "}").encode() + b"\n"
