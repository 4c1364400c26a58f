"""What is where in one shard: its images, as an index needs them, or what its samples are called."""

from __future__ import annotations

import hashlib
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, ClassVar

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.buckets import Records
from mobileclip.data.images.formats import IMAGE_EXTENSIONS
from mobileclip.data.samples.json_object import parse_object
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.shards.tar import (
    ForwardReader,
    TarMember,
    forward_reader,
    member_key,
    read_content,
    split_name,
    tar_members,
)
from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.joining.records import (
    KINDS,
    NAMES,
    PLACES,
    AboutShard,
    name_hash,
    read_about,
    write_records,
)
from mobileclip.machine import raise_machine_fault

# What its size is kept in.
_MOST_BYTES = 2**32 - 1


@attrs.define
class _Sample:
    """The members under one key that a join needs."""

    key: str
    images: dict[str, TarMember] = attrs.field(factory=dict)
    sha256: dict[str, int] = attrs.field(factory=dict)
    text: TarMember | None = None
    json: TarMember | None = None
    url: bytes = b""
    metadata: bytes | None = None


@attrs.frozen(kw_only=True)
class ShardScan(ABC):
    """Reads what a join needs to know of a shard, in whatever process, and keeps it in the index.

    Args:
        folder: of the index.
        by: what samples and images are called by: `key`, `url`, or a field of their JSON.
        limits: of what is read; members beyond them are passed over.
    """

    kind: ClassVar[str]

    folder: Path
    by: str
    limits: SampleLimits

    @abstractmethod
    def __call__(self, shard: str, fingerprint: str) -> AboutShard:
        """Read a shard, to a break if there is one, and return what is known of it.

        Args:
            shard: path or address.
            fingerprint: of it.

        Raises:
            ValueError: if it is there and could not be read; what was read is kept.
            StorageError: if that may be otherwise at another time; the same.
        """

    def known(self, shard: str, fingerprint: str) -> AboutShard | None:
        """Return what an earlier run has found out about a shard, None where it has not.

        Args:
            shard: path or address.
            fingerprint: of it.
        """
        about = read_about(self.folder, self.kind, self.by, shard)
        return about if about is not None and about.fingerprint == fingerprint else None

    def left(self, shard: str, reason: str) -> AboutShard:
        """Return what is known of a shard that could not be read: what came before the break of the last try.

        Args:
            shard: path or address.
            reason: why the last try failed.
        """
        about = read_about(self.folder, self.kind, self.by, shard)
        if about is not None and about.problem == reason:
            return about
        # The process that read it was lost.
        about = AboutShard(shard=shard, by=self.by, fingerprint="", problem=reason)
        return write_records(self.folder, self.kind, about, np.empty(0, KINDS[self.kind]))

    def _keep(self, about: AboutShard, rows: Sequence[tuple[int, ...]], error: Exception | None) -> AboutShard:
        """Write what was read, and raise what the next run may not.

        One whose bytes are broken, or that is not there, is known to be so; one that is there but could not be read is
        tried again, by every run.
        """
        unread = error if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) else None
        about = attrs.evolve(
            about,
            fingerprint=about.fingerprint if unread is None else "",
            problem=None if error is None else _problem(error),
        )
        about = write_records(self.folder, self.kind, about, np.array(rows, KINDS[self.kind]))
        if unread is not None:
            raise (storage.StorageError if storage.is_transient(unread) else ValueError)(about.problem) from unread
        return about


@attrs.frozen(kw_only=True)
class ScanUnit:
    """A shard to be read.

    Args:
        name: of the unit.
        shard: path or address.
        fingerprint: of it.
        scan: what is read of it.
    """

    name: str
    shard: str
    fingerprint: str
    scan: ShardScan


def scan_shard(unit: ScanUnit) -> AboutShard:
    """Read a shard, see `ShardScan`."""
    return unit.scan(unit.shard, unit.fingerprint)


@attrs.frozen(kw_only=True)
class ImageScan(ShardScan):
    """Notes where the images of a shard are.

    Args:
        hashed: whether to read and hash the images, and not the headers alone.
    """

    kind = PLACES

    hashed: bool

    def known(self, shard: str, fingerprint: str) -> AboutShard | None:
        """Return what an earlier run has found out about a shard, where it hashed its images if that is asked for."""
        about = super().known(shard, fingerprint)
        return about if about is not None and (about.hashed or not self.hashed) else None

    def __call__(self, shard: str, fingerprint: str) -> AboutShard:
        """Read a shard, see `ShardScan`."""
        rows: list[tuple[int, ...]] = []
        num_without, broken = 0, None
        try:
            with storage.open_read(shard) as stream:
                for sample in _samples(stream, by=self.by, hashed=self.hashed, limits=self.limits):
                    extension = next((one for one in IMAGE_EXTENSIONS if one in sample.images), None)
                    if extension is None:
                        continue
                    name = _image_name(sample, self.by, self.limits)
                    num_without += name is None
                    if name is not None:
                        rows.append(_place(name, sample, extension))
        except Exception as error:  # noqa: BLE001 - the last barrier of a shard: whatever its bytes make libraries raise
            raise_machine_fault(error)
            broken = error
        about = AboutShard(
            shard=shard, by=self.by, fingerprint=fingerprint, hashed=self.hashed, num_without=num_without
        )
        return self._keep(about, rows, broken)


@attrs.frozen(kw_only=True)
class NameScan(ShardScan):
    """Notes what the samples of a reinforced shard are called; one with an image of its own asks for none."""

    kind = NAMES

    def __call__(self, shard: str, fingerprint: str) -> AboutShard:
        """Read the headers of a shard, see `ShardScan`."""
        names: list[tuple[int, int]] = []
        broken = None
        try:
            with storage.open_read(shard) as stream:
                forward = forward_reader(stream, self.limits)
                for sample in _samples(forward, by=self.by, hashed=False, limits=self.limits):
                    own = sample.metadata, sample.url
                    name = "" if sample.images else sample_name(sample.key, *own, by=self.by, limits=self.limits)
                    names.append(name_hash(name) if name else (0, 0))
        except Exception as error:  # noqa: BLE001 - as above; reading the shard says what is wrong with it
            raise_machine_fault(error)
            broken = error
        # One that breaks off is read again in any case.
        about = AboutShard(shard=shard, by=self.by, fingerprint="" if broken else fingerprint)
        return self._keep(about, names, broken)


def sample_name(key: str, metadata: bytes | None, url: bytes, *, by: str, limits: SampleLimits) -> str:
    """Return what a reinforced sample is called, by which its image is looked for; empty where nothing says so.

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
    """Return a field of a sample's JSON as a name, None where it is not stated.

    Args:
        metadata: the JSON.
        name: of the field.
        limits: of what is read.
    """
    try:
        value = parse_object(metadata or b"{}", "json", limit=limits.text_bytes).get(name)
    except BadSampleError:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    return storable(str(value).strip()) or None


def storable(key: str) -> str:
    """Return a key in which what has no place in UTF-8 is spelled out; names in tar files may be any bytes."""
    return key if key.isascii() else key.encode(errors="backslashreplace").decode()


def image_name(shard: str, place: Records, by: str, limits: SampleLimits) -> str:
    """Return what an image is called, read from its shard; empty where that cannot be read any more.

    Args:
        shard: path or address.
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


def _samples(stream: IO[bytes] | ForwardReader, *, by: str, hashed: bool, limits: SampleLimits) -> Iterator[_Sample]:
    """Yield what stands under each key; where the archive breaks off, the last sample may lack something."""
    sample: _Sample | None = None
    for member in tar_members(stream):
        name = split_name(member.name)
        if name is None:
            continue
        key, extension = name
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        is_text = extension in ("json", "url.txt")
        if member.size <= (limits.text_bytes if is_text else min(limits.member_bytes, _MOST_BYTES)):
            _enter(sample, extension, member, stream, by=by, hashed=hashed)
    if sample is not None:
        yield sample


def _enter(
    sample: _Sample, extension: str, member: TarMember, stream: IO[bytes] | ForwardReader, *, by: str, hashed: bool
) -> None:
    if extension in IMAGE_EXTENSIONS:
        sample.images[extension] = member
        if hashed:
            digest = hashlib.sha256(_content(stream, member)).digest()
            sample.sha256[extension] = int.from_bytes(digest[:8], "big")
    elif extension == "txt":
        sample.text = member
    elif extension == "url.txt" and by == "url":
        sample.url = _content(stream, member)
    elif extension == "json":
        sample.json = member
        if by != "key":
            sample.metadata = _content(stream, member)


def _content(stream: IO[bytes] | ForwardReader, member: TarMember) -> bytes:
    stream.seek(member.offset)
    return read_content(stream, member)


def _place(name: str, sample: _Sample, extension: str) -> tuple[int, ...]:
    """Return the record of a sample's image."""
    image = sample.images[extension]
    beside = [(0, 0) if one is None else (one.offset, one.size) for one in (sample.text, sample.json)]
    numbers = IMAGE_EXTENSIONS.index(extension), sample.sha256.get(extension, 0)
    return (*name_hash(name), image.offset, image.size, *beside[0], *beside[1], *numbers)


def _image_name(sample: _Sample, by: str, limits: SampleLimits) -> str | None:
    return storable(sample.key) if by == "key" else field_of(sample.metadata, by, limits)


def _problem(error: Exception) -> str:
    text = str(error) if isinstance(error, tarfile.TarError) else f"{type(error).__name__}: {error}"
    return storage.printable(storage.without_secrets(" ".join(text.split())))
