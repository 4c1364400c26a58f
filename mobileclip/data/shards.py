"""Shards: tar files of samples, read whatever state they are in, and written whole or not at all."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import IO, TypeVar, cast

import attrs

from mobileclip import storage
from mobileclip.data.members import parse_reinforced_sample, parse_sample, sample_members
from mobileclip.data.sample import LAYOUTS, ImageTextSample, Layout, ReinforcedSample
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.data.tar import is_compressed, read_members, split_name, tar_members

Shards = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
SampleType = TypeVar("SampleType")
PathType = TypeVar("PathType", bound=str | os.PathLike[str])

# What webdataset opens by running a program.
_PROGRAMS = ("pipe:", "ais://", "ftps://", "htgs://", "scp://", "sftp://")
_READ_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)


@attrs.frozen(kw_only=True)
class RawSample:
    """What a shard holds under one key.

    Args:
        key: the members' common name, up to the first dot.
        shard: where it was read.
        members: extension in lower case to content.
        duplicates: extensions that came more than once.
    """

    key: str
    shard: str
    members: dict[str, bytes] = attrs.field(factory=dict)
    duplicates: list[str] = attrs.field(factory=list)


def expand_shards(shards: Shards) -> tuple[str, ...]:
    """Return the paths or addresses of all shards.

    Args:
        shards: a path, a brace pattern such as `train/{00000..00127}.tar`, several of them separated by `::`, or a
            sequence of paths and patterns. Addresses are those of `mobileclip.storage` (`s3://`, `gs://`, `https://`)
            and of webdataset (`pipe:`).

    Raises:
        ValueError: if there is none, a pattern is malformed, or an address cannot be opened by what is installed.
    """
    from webdataset.shardlists import expand_urls  # type: ignore[import-untyped]

    patterns = [shards] if isinstance(shards, (str, os.PathLike)) else list(shards)
    try:
        expanded = [shard for pattern in patterns for shard in expand_urls(os.fspath(pattern))]
    except (ValueError, AssertionError) as error:
        raise ValueError(f"the shard patterns {patterns} cannot be expanded: {error}") from None
    if not expanded:
        raise ValueError("no shards were given; expected paths or a pattern such as 'train/{00000..00127}.tar'")
    for address in {shard.partition("://")[0]: shard for shard in expanded if "://" in shard}.values():
        if not runs_program(address):
            storage.check_address(address)
    return tuple(expanded)


def runs_program(shard: str) -> bool:
    """Return whether webdataset runs a program to open the shard, such as `pipe:`."""
    return shard == "-" or shard.startswith(_PROGRAMS)


def read_shard(shard: str, on_skip: Callable[[Skip], None]) -> Iterator[RawSample]:
    """Yield the samples of a shard as they come; a shard that breaks off or cannot be read is reported, not raised.

    The reason `connection_failed` means that its store could not be reached; the shard may be whole.

    Args:
        shard: path or address.
        on_skip: called with what had to be left out.
    """
    num_read = 0
    try:
        with _open(shard) as stream:
            for raw in _group(shard, read_members(stream)):
                num_read += 1
                yield raw
    except _READ_ERRORS as error:
        reason = "truncated_shard" if num_read else "unreadable_shard"
        if isinstance(error, storage.StorageError):
            reason = "connection_failed"
        detail = f"after {num_read} samples: {type(error).__name__}: {error}"
        on_skip(Skip(reason=reason, key="", shard=shard, detail=detail))


def parse(
    raw: RawSample, parser: Callable[[str, Mapping[str, bytes]], SampleType], on_skip: Callable[[Skip], None]
) -> SampleType | None:
    """Return the sample that `parser` makes of the members, or None after reporting why there is none."""
    if raw.duplicates:
        detail = f"{', '.join(raw.duplicates)} is there more than once"
        on_skip(Skip(reason="duplicate_member", key=raw.key, shard=raw.shard, detail=detail))
        return None
    try:
        return parser(raw.key, raw.members)
    except BadSampleError as error:
        on_skip(Skip(reason=error.reason, key=raw.key, shard=raw.shard, detail=error.detail))
        return None


def read_reinforced_samples(shards: Shards, report: SkipReport | None = None) -> Iterator[ReinforcedSample]:
    """Yield every usable reinforced sample of the shards, in order; the others are counted and logged.

    Args:
        shards: paths or patterns, as `expand_shards` takes them.
        report: counts what was read and what was left out.
    """
    return _read(shards, parse_reinforced_sample, SkipReport() if report is None else report)


def read_samples(shards: Shards, report: SkipReport | None = None) -> Iterator[ImageTextSample]:
    """Yield every usable image-text sample of the shards, in order; the others are counted and logged.

    Args:
        shards: paths or patterns, as `expand_shards` takes them.
        report: counts what was read and what was left out.
    """
    return _read(shards, parse_sample, SkipReport() if report is None else report)


def count_samples(shards: Shards) -> int:
    """Return the number of keys in shards, from the tar headers alone; that is fast on disk only.

    Raises:
        ValueError: if a shard cannot be read or breaks off.
    """
    count = 0
    for shard in expand_shards(shards):
        try:
            with storage.open_read(shard) as stream:
                names = [split_name(name) for name in _names(stream)]
        except _READ_ERRORS as error:
            raise ValueError(f"the samples of {shard} cannot be counted: {type(error).__name__}: {error}") from None
        keys = [parts[0] for parts in names if parts is not None]
        count += sum(key != before for key, before in zip(keys, [None, *keys], strict=False))
    return count


def write_shard(path: PathType, samples: Iterable[ImageTextSample], *, layout: Layout = "npz") -> PathType:
    """Write samples to a shard and return its path; the file appears when it is complete, and never otherwise.

    Equal samples give equal bytes.

    Args:
        path: the tar file, or its address; replaced where it exists.
        samples: plain or reinforced samples, at least one.
        layout: how embeddings are stored, as `sample_members` takes it.

    Raises:
        ValueError: if there is no sample, a key comes twice, the layout is unknown, or the address cannot be written.
    """
    from webdataset import TarWriter  # type: ignore[import-untyped]

    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    keys: set[str] = set()
    with storage.atomic_write(path) as stream:
        with TarWriter(stream, encoder=False, mtime=0, keep_meta=True) as writer:
            for sample in samples:
                if sample.key in keys:
                    raise ValueError(f"key {sample.key!r} comes twice in {path}; keys must be unique")
                keys.add(sample.key)
                writer.write({"__key__": sample.key, **sample_members(sample, layout)})
        if not keys:
            raise ValueError(f"there are no samples to write to {path}")
    return path


def write_shards(
    directory: str | os.PathLike[str],
    samples: Iterable[ImageTextSample],
    *,
    layout: Layout = "npz",
    samples_per_shard: int = 1000,
) -> list[Path]:
    """Write samples to as many shards as they need, `00000000.tar` and so on, and return the paths.

    Args:
        directory: created where it is missing.
        samples: plain or reinforced samples.
        layout: how embeddings are stored, as `sample_members` takes it.
        samples_per_shard: at most so many in each.

    Raises:
        ValueError: if there is no sample, or a key comes twice in a shard.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, not {samples_per_shard}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    remaining = iter(samples)
    paths: list[Path] = []
    while batch := list(islice(remaining, samples_per_shard)):
        paths.append(write_shard(directory / f"{len(paths):08d}.tar", batch, layout=layout))
    if not paths:
        raise ValueError(f"there are no samples to write to {directory}")
    return paths


def _open(shard: str) -> AbstractContextManager[IO[bytes]]:
    if not runs_program(shard):
        return storage.open_read(shard)
    from webdataset.gopen import gopen  # type: ignore[import-untyped]

    return cast("AbstractContextManager[IO[bytes]]", gopen(shard))


def _names(stream: IO[bytes]) -> Iterator[str]:
    """Yield the names of the files in a tar file, which is not read where it can be jumped over."""
    if is_compressed(stream.read(2)):
        stream.seek(0)
        yield from (name for name, _ in read_members(stream))
        return
    end = stream.seek(0, os.SEEK_END)
    for member in tar_members(stream):
        if member.offset + member.size > end:
            raise tarfile.ReadError(f"the archive ends within {member.name}")
        yield member.name


def _group(shard: str, members: Iterable[tuple[str, bytes]]) -> Iterator[RawSample]:
    raw: RawSample | None = None
    try:
        for name, content in members:
            parts = split_name(name)
            if parts is None:
                continue
            key, extension = parts
            if raw is None or raw.key != key:
                if raw is not None:
                    yield raw
                raw = RawSample(key=key, shard=shard)
            if extension in raw.members:
                raw.duplicates.append(extension)
            raw.members[extension] = content
    except _READ_ERRORS:
        # What came before the break may be complete; its parser decides.
        if raw is not None:
            yield raw
        raise
    if raw is not None:
        yield raw


def _read(
    shards: Shards, parser: Callable[[str, Mapping[str, bytes]], SampleType], report: SkipReport
) -> Iterator[SampleType]:
    for shard in expand_shards(shards):
        for raw in read_shard(shard, report.add):
            sample = parse(raw, parser, report.add)
            if sample is not None:
                report.num_read += 1
                yield sample
