"""Scans one shard for its images, or for the names of its samples."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import IO

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.buckets import Records
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.data.samples.sample import SampleLimits
from mobileclip.data.shards.tar import (
    START_BYTES,
    ForwardReader,
    TarMember,
    by_key,
    forward_reader,
    is_compressed,
    member_key,
    read_content,
    tar_members,
)
from mobileclip.datasets.joining.comparison import stated_of
from mobileclip.datasets.joining.records import KINDS, PLACES, AboutShard, name_hash, read_about, write_records
from mobileclip.machine import raise_machine_fault

# What its size is kept in.
_MOST_BYTES = 2**32 - 1

_Row = tuple[int, ...]


@attrs.frozen(kw_only=True)
class ScanUnit:
    """A shard of which the index is to know where its images are, or what its samples are called.

    Args:
        name: of the unit.
        shard: path or URL.
        fingerprint: of it.
        kind: of records, `places` of images or `names` of samples.
        folder: of the index.
        by: what samples and images are called by: `key`, `url`, or a field of their JSON.
        limits: of what is read; members beyond them are passed over.
        hashed: whether to read and hash the images too, and not the headers alone.
    """

    name: str
    shard: str
    fingerprint: str
    kind: str
    folder: Path
    by: str
    limits: SampleLimits
    hashed: bool = False

    def read(self) -> AboutShard:
        """Read the shard, to a break if there is one, and return what is known of it.

        Images whose bytes are broken, or that are not there, are known to be so. A shard that is there but could not be
        read is tried again, by every run; so is a reinforced one that breaks off, as reading it says what is wrong.

        Raises:
            ValueError: if it is there and could not be read; what was read is kept.
            StorageError: if that may be otherwise at another time; the same.
        """
        rows: list[_Row | None] = []
        error: Exception | None = None
        try:
            with storage.open_read(self.shard) as stream:
                rows.extend(self._places(stream) if self.kind == PLACES else self._names(stream))
        except Exception as caught:  # noqa: BLE001 - the last barrier of a shard: whatever its bytes make libraries raise
            raise_machine_fault(caught)
            error = caught
        unread = error if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) else None
        found = [row for row in rows if row is not None]
        about = self._write(
            found,
            fingerprint=self.fingerprint if error is None or (unread is None and self.kind == PLACES) else "",
            num_without=len(rows) - len(found),
            problem=None if error is None else _problem(error),
        )
        if unread is not None:
            raise (storage.StorageError if storage.is_transient(unread) else ValueError)(about.problem) from unread
        return about

    def known(self) -> AboutShard | None:
        """Return an earlier run's record of the shard, if it is still valid and has the hashes that are needed."""
        about = read_about(self.folder, self.kind, self.by, self.shard)
        is_same = about is not None and about.fingerprint == self.fingerprint and (about.hashed or not self.hashed)
        return about if is_same else None

    def left(self, reason: str) -> AboutShard:
        """Return the record of a shard that could not be read to its end: what came before the break.

        Args:
            reason: why the last try failed.
        """
        about = read_about(self.folder, self.kind, self.by, self.shard)
        if about is not None and about.problem == reason:
            return about
        # The process that read it was lost.
        return self._write([], fingerprint="", problem=reason)

    def _write(self, rows: list[_Row], *, fingerprint: str, problem: str | None, num_without: int = 0) -> AboutShard:
        about = AboutShard(
            shard=self.shard,
            by=self.by,
            fingerprint=fingerprint,
            hashed=self.hashed,
            num_without=num_without,
            problem=problem,
        )
        return write_records(self.folder, self.kind, about, np.array(rows, KINDS[self.kind]))

    def _places(self, stream: IO[bytes]) -> Iterator[_Row | None]:
        """Yield where the images are; None for a sample without the field that it would be called by."""
        if is_compressed(stream.read(START_BYTES)):
            raise tarfile.ReadError("it is compressed, and images are read by their place; decompress it first")
        for key, members, contents in self._samples(stream):
            extension = next((one for one in IMAGE_EXTENSIONS if one in members), None)
            if extension is not None:
                own = field_of(contents.get("json"), self.by, self.limits)
                name = storable(key) if self.by == "key" else own
                yield None if name is None else _place(name, extension, members, contents.get(extension, b""))

    def _names(self, stream: IO[bytes]) -> Iterator[_Row]:
        """Yield what samples are called, of which the headers tell; one with an image of its own asks for none."""
        for key, members, contents in self._samples(forward_reader(stream, self.limits)):
            own = contents.get("json"), contents.get("url.txt", b"")
            is_asking = not any(one in members for one in IMAGE_EXTENSIONS)
            name = sample_name(key, *own, by=self.by, limits=self.limits) if is_asking else ""
            yield name_hash(name) if name else (0, 0)

    def _samples(
        self, stream: IO[bytes] | ForwardReader
    ) -> Iterator[tuple[str, dict[str, TarMember], dict[str, bytes]]]:
        """Yield each key, the members under it, and of those that are needed the content, or the hash of an image."""
        limits = self.limits
        for key, own in by_key(tar_members(stream), attrgetter("name")):
            members, contents = {}, {}
            for extension, member in own:
                is_text = extension in ("json", "url.txt")
                if member.size > (limits.text_bytes if is_text else min(limits.member_bytes, _MOST_BYTES)):
                    continue
                members[extension] = member
                if self.hashed and extension in IMAGE_EXTENSIONS:
                    contents[extension] = hashlib.sha256(_content(stream, member)).digest()
                elif (extension == "json" and self.by != "key") or (extension == "url.txt" and self.by == "url"):
                    contents[extension] = _content(stream, member)
            yield key, members, contents


def sample_name(key: str, metadata: bytes | None, url: bytes, *, by: str, limits: SampleLimits) -> str:
    """Return the name by which a sample's image is looked up; empty if it has no URL where URLs are compared.

    Args:
        key: of the sample.
        metadata: its JSON.
        url: content of its `url.txt`.
        by: `key`, `url`, or a field of the JSON; the key is taken where that is not stated.
        limits: of what is read.
    """
    if by == "url":
        return storable(url.decode(errors="backslashreplace").strip())
    own = None if by == "key" else field_of(metadata, by, limits)
    return storable(key) if own is None else own


def field_of(metadata: bytes | None, name: str, limits: SampleLimits) -> str | None:
    """Return a field of a sample's JSON as a name, None where it is not stated."""
    value = stated_of(metadata, limits).get(name)
    is_name = isinstance(value, (str, int)) and not isinstance(value, bool)
    return storable(str(value).strip()) or None if is_name else None


def storable(key: str) -> str:
    """Return a key in which what has no place in UTF-8 is spelled out; names in tar files may be any bytes."""
    return key if key.isascii() else key.encode(errors="backslashreplace").decode()


def image_name(shard: str, place: Records, by: str, limits: SampleLimits) -> str:
    """Return what an image is called, read from its shard; empty where that cannot be read any more.

    Args:
        shard: path or URL.
        place: one record.
        by: what it is called by.
        limits: of what is read.
    """
    try:
        with storage.open_read(shard) as stream:
            if by != "key":
                stream.seek(int(place["json_start"]))
                return field_of(stream.read(int(place["json_size"])), by, limits) or ""
            return member_key(stream, int(place["start"]))
    except OSError as error:
        raise_machine_fault(error)
        return ""


def _content(stream: IO[bytes] | ForwardReader, member: TarMember) -> bytes:
    stream.seek(member.offset)
    return read_content(stream, member)


def _place(name: str, extension: str, members: dict[str, TarMember], digest: bytes) -> _Row:
    """Return the record of a sample's image."""
    where = []
    for one in (extension, "txt", "json"):
        where += [members[one].offset, members[one].size] if one in members else [0, 0]
    return *name_hash(name), *where, IMAGE_EXTENSIONS.index(extension), int.from_bytes(digest[:8], "big")


def _problem(error: Exception) -> str:
    text = str(error) if isinstance(error, tarfile.TarError) else f"{type(error).__name__}: {error}"
    return storage.printable(storage.without_secrets(" ".join(text.split())))
