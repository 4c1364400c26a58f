"""A file of JSON lines as a source: one sample a line, its image a file or an address."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b
from itertools import count
from typing import IO, Any

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.samples.json_object import parse_object
from mobileclip.data.samples.members import json_captions
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.skips import CONNECTION_FAILED, BadSampleError, Skip, made_or_skip
from mobileclip.datasets.sources.access import SCHEMES, RowOptions, directory_of, locate, without_user
from mobileclip.datasets.sources.base import Source, numbered_name, sources
from mobileclip.datasets.sources.records import MAX_LINE_BYTES, Record, RecordUnit, key_of, parse_row
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import strict

CAPTION_FIELDS = ("caption", "captions", "text", "texts")

_GZIP = b"\x1f\x8b"


@attrs.frozen
class Line:
    """A line of a file.

    Args:
        number: from 1.
        data: its bytes; None where it is too long to be one sample.
        num_bytes: its length.
    """

    number: int
    data: bytes | None
    num_bytes: int


def read_lines(stream: IO[bytes], first: int = 1) -> Iterator[Line]:
    """Yield the lines of a file from its position on; a line of any length takes little memory.

    Args:
        stream: the file.
        first: number of the line at the position.
    """
    number = first
    while data := stream.readline(MAX_LINE_BYTES):
        num_bytes, rest = len(data), data
        while not rest.endswith(b"\n") and (rest := stream.readline(MAX_LINE_BYTES)):
            num_bytes += len(rest)
        yield Line(number, data if num_bytes <= MAX_LINE_BYTES else None, num_bytes)
        number += 1


@attrs.frozen(kw_only=True)
class JsonLinesUnit(RecordUnit):
    """A range of lines.

    Args:
        path: the file.
        image_root: where relative image paths begin.
        start: byte at which the first line begins.
        num_bytes: of the lines.
        first_line: its number, from 1.
        num_samples: lines that are not blank.
        digest: of the lines.
        inside: whether local images must lie below `image_root`.
        schemes: of the addresses that are opened.
        hosts: that are reached beside public ones.
    """

    image_root: str
    start: int
    num_bytes: int
    first_line: int
    num_samples: int
    digest: str
    inside: bool = True
    schemes: tuple[str, ...] = SCHEMES
    hosts: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a hash of the lines, and of sizes and times of change of the local images that they name."""
        digest = blake2b(os.fsencode(f"{self.digest} {self.image_root}"), digest_size=16)
        if not storage.is_remote(self.image_root):
            try:
                for line in self._lines():
                    digest.update(self._local_print(line).encode())
            except OSError as error:
                raise_machine_fault(error)
                if storage.is_transient(error):
                    raise
                raise ValueError(f"{self.path} cannot be read: {error}") from None
        return digest.hexdigest()

    def about(self) -> str:
        """Return a hash of the lines, and where their images are."""
        return f"{self.digest} {self.image_root}"

    def count(self) -> int:
        """Return the number of lines that are not blank."""
        return self.num_samples

    def _lines(self) -> Iterator[Line]:
        with storage.open_read(self.path) as stream:
            stream.seek(self.start)
            remaining = self.num_bytes
            for line in read_lines(stream, self.first_line):
                if line.data is None or line.data.strip():
                    yield line
                remaining -= line.num_bytes
                if remaining <= 0:
                    return

    def records(self) -> Iterator[Record | Skip]:
        """Yield what every line that is not blank says of a sample."""
        try:
            yield from map(self._record_or_skip, self._lines())
        except OSError as error:
            raise_machine_fault(error)
            reason = CONNECTION_FAILED if storage.is_transient(error) else "unreadable_file"
            yield Skip(reason=reason, key="", shard=self.path, detail=f"lines from {self.first_line} on: {error}")

    def _record_or_skip(self, line: Line) -> Record | Skip:
        label = f"line {line.number}"
        return made_or_skip(partial(self._record, line, label), key=label, shard=self.path)

    def _record(self, line: Line, label: str) -> Record:
        if line.data is None:
            detail = f"{label} has {line.num_bytes} bytes; {MAX_LINE_BYTES} are enough for a sample"
            raise BadSampleError("line_too_long", detail)
        fields = parse_row(line.data, label)
        image = fields.pop("image", None)
        if not isinstance(image, str) or not image:
            raise BadSampleError("missing_image", f"{label} has no `image`, a path or an address")
        url: Any = None
        if storage.is_remote(image):
            url = without_user(image)
        elif isinstance(fields.get("url"), str):
            url = fields.pop("url")
        key = key_of(fields.pop("key", None), f"{line.number:09d}")
        captions = json_captions(fields)
        metadata = {name: value for name, value in fields.items() if name not in CAPTION_FIELDS}
        if not storage.is_remote(image):
            metadata["image"] = image
        return Record(
            sample=ImageTextSample(key=key, captions=captions, url=url, metadata=metadata),
            image=self._located(image),
            label=label,
            hosts=self.hosts,
        )

    def _located(self, image: str) -> str:
        options = RowOptions(inside=self.inside, schemes=self.schemes, hosts=self.hosts)
        return locate(image, self.image_root, options)

    def _local_print(self, line: Line) -> str:
        """Return what tells the state of the local image that a line names, if it names one."""
        try:
            image = parse_object(line.data or b"", "a line", limit=MAX_LINE_BYTES).get("image")
            if not isinstance(image, str) or storage.is_remote(image):
                return ""
            return storage.fingerprint(self._located(image))
        except (OSError, ValueError) as error:
            raise_machine_fault(error)
            return "missing"


def _optional_path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@sources.register("jsonl")
@attrs.frozen(kw_only=True, field_transformer=strict)
class JsonLinesSource(Source):
    """A file with one JSON object a line.

    `image` is a path or an address, kept with the sample; `caption`, `captions`, `text` or `texts` hold one caption or
    several; `key` is optional, the line's number does as well. Other fields become metadata.

    The file may be a stranger's: unless they are told otherwise, its lines name files below `image_root`, and addresses
    of web servers that anyone can reach.

    Args:
        path: the file, or its address; not compressed.
        image_root: where relative image paths begin; None for the directory of the file.
        samples_per_shard: lines that become one shard.
        inside: whether local images must lie below `image_root`; False lets lines name any file.
        schemes: of addresses that lines may name, such as `https` and `s3`.
        hosts: web servers that lines may name although they are not at a public address, such as `127.0.0.1`.

    Raises:
        ValueError: if a number is out of its range.
    """

    path: str = attrs.field(converter=os.fspath)
    image_root: str | None = attrs.field(default=None, converter=_optional_path)
    samples_per_shard: int = attrs.field(default=1000, validator=validators.gt(0))
    inside: bool = True
    schemes: tuple[str, ...] = attrs.field(default=SCHEMES, converter=_names)
    hosts: tuple[str, ...] = attrs.field(default=(), converter=_names)

    def allowing(self, rows: RowOptions) -> JsonLinesSource:
        """Return the same file, whose lines may name this.

        Raises:
            ValueError: if columns are named, which are a table's.
        """
        if rows.names_columns:
            raise ValueError(
                f"{self.path} has no columns that could be named; its lines have `image` and `caption`, as JSON"
            )
        return attrs.evolve(self, inside=rows.inside, schemes=rows.schemes, hosts=rows.hosts)

    def units(self) -> tuple[JsonLinesUnit, ...]:
        """Return ranges of lines; the file is read once, to find them.

        Raises:
            ValueError: if the file cannot be read, has no lines or is compressed.
        """
        try:
            with storage.open_read(self.path) as stream:
                if stream.read(2) == _GZIP:
                    raise ValueError(f"{self.path} is compressed, so its lines cannot be found; decompress it first")
                stream.seek(0)
                units = tuple(self._cut(stream))
        except storage.StorageError:
            raise
        except FileNotFoundError:
            raise ValueError(f"{self.path} does not exist") from None
        except OSError as error:
            raise_machine_fault(error)
            raise ValueError(f"{self.path} cannot be read: {error}") from None
        if not units:
            raise ValueError(f"{self.path} has no lines; expected one JSON object a line")
        return units

    def _cut(self, stream: IO[bytes]) -> Iterator[JsonLinesUnit]:
        root = directory_of(self.path) if self.image_root is None else self.image_root
        unit = JsonLinesUnit(
            name=numbered_name(0),
            path=self.path,
            image_root=root,
            start=0,
            num_bytes=0,
            first_line=1,
            num_samples=0,
            digest="",
            inside=self.inside,
            schemes=self.schemes,
            hosts=self.hosts,
        )
        for index in count():
            digest = blake2b(digest_size=16)
            num_bytes, num_lines, num_samples = 0, 0, 0
            for line in read_lines(stream):
                num_bytes, num_lines = num_bytes + line.num_bytes, num_lines + 1
                digest.update(b"%d " % line.num_bytes if line.data is None else line.data)
                num_samples += line.data is None or bool(line.data.strip())
                if num_samples == self.samples_per_shard:
                    break
            if num_samples == 0:
                return
            unit = attrs.evolve(
                unit,
                name=numbered_name(index),
                num_bytes=num_bytes,
                num_samples=num_samples,
                digest=digest.hexdigest(),
            )
            yield unit
            unit = attrs.evolve(unit, start=unit.start + num_bytes, first_line=unit.first_line + num_lines)
