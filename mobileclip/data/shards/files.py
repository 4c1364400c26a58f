"""Reading shards (tar files of samples), intact or damaged, and writing them completely or not at all."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import IO, TypeVar, cast

import attrs

from mobileclip import storage
from mobileclip.data.images.limits import is_image_name
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.members import parse_reinforced_sample, parse_sample, sample_members
from mobileclip.data.samples.sample import LAYOUTS, ImageTextSample, Layout, ReinforcedSample
from mobileclip.data.shards.tar import (
    START_BYTES,
    by_key,
    is_compressed,
    read_members,
    tar_members,
    write_end,
    write_member,
)
from mobileclip.data.skips import CONNECTION_FAILED, BadSampleError, Skip, SkipReport, attempt
from mobileclip.machine import raise_machine_fault

Shards = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
SampleType = TypeVar("SampleType")
PathType = TypeVar("PathType", bound=str | os.PathLike[str])

# Prefixes for which webdataset runs a program.
_PROGRAMS = ("pipe:", "ais://", "ftps://", "htgs://", "scp://", "sftp://")


@attrs.define(kw_only=True)
class RawSample:
    """The members of one sample in a shard as unparsed bytes.

    Args:
        key: the members' common name, up to the first dot.
        shard: path or URL of the shard.
        members: content of each member by extension in lower case.
        problem: first error of the sample, such as a repeated or too large member; None if there is no error.
        num_bytes: total size of all members, in bytes.
    """

    key: str
    shard: str
    members: dict[str, bytes] = attrs.field(factory=dict)
    problem: BadSampleError | None = None
    num_bytes: int = 0

    @property
    def image(self) -> bytes | None:
        """First encoded image among the members, or None."""
        return next((content for extension, content in self.members.items() if is_image_name(f".{extension}")), None)

    def enter(self, name: str, extension: str, content: bytes | None, limits: SampleLimits) -> None:
        """Add a member, or record the sample's first error; `content` is None for a member that is too large."""
        if content is None:
            self._refuse("too_large", f"{extension} has more than {limits.member_bytes:,} bytes")
        elif len(name) > limits.name_bytes:
            self._refuse("too_large", f"a member's name has more than {limits.name_bytes:,} bytes")
        elif extension in self.members:
            self._refuse("duplicate_member", f"{extension} occurs more than once")
        elif len(self.members) == limits.num_members:
            self._refuse("too_large", f"the sample has more than {limits.num_members:,} members")
        elif self.num_bytes + len(content) > limits.sample_bytes:
            self._refuse("too_large", f"the sample has more than {limits.sample_bytes:,} bytes")
        else:
            self.members[extension] = content
            self.num_bytes += len(content)

    def _refuse(self, reason: str, detail: str) -> None:
        self.problem = self.problem or BadSampleError(reason, detail)


def expand_shards(shards: Shards) -> tuple[str, ...]:
    """Return the paths or URLs of all shards.

    Args:
        shards: a path, a brace pattern such as `train/{00000..00127}.tar`, several paths or patterns separated by `::`,
            or a sequence of paths and patterns. URLs may use the schemes of `mobileclip.storage` (`s3://`, `gs://`,
            `https://`) and of webdataset (`pipe:`).

    Raises:
        ValueError: if no shard is given, a pattern is malformed, or no installed package can open a URL.
    """
    patterns = list(paths_of(shards))
    try:
        expanded = [shard for pattern in patterns for shard in _expanded(pattern)]
    except (ValueError, AssertionError) as error:
        raise ValueError(f"the shard patterns {patterns} cannot be expanded: {error}") from None
    if not expanded:
        raise ValueError("no shards were given; expected paths or a pattern such as 'train/{00000..00127}.tar'")
    for address in {shard.partition("://")[0]: shard for shard in expanded if "://" in shard}.values():
        if not runs_program(address):
            storage.check_address(address)
    return tuple(expanded)


def paths_of(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return one or several paths as strings."""
    return tuple(os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths))


def _expanded(pattern: str) -> tuple[str, ...]:
    # Cache the expansion: a run repeats it, and 65,536 shards take 0.2 s. Environment variables may change, so patterns
    # with environment variables are not cached.
    return _expand.__wrapped__(pattern) if "${" in pattern else _expand(pattern)


@lru_cache(maxsize=4)
def _expand(pattern: str) -> tuple[str, ...]:
    from webdataset.shardlists import expand_urls  # type: ignore[import-untyped]

    return tuple(expand_urls(pattern))


def runs_program(shard: str) -> bool:
    """Return whether webdataset runs a program to open the shard, as for `pipe:` URLs."""
    return shard == "-" or shard.startswith(_PROGRAMS)


def is_local(shard: str) -> bool:
    """Return whether the shard is a local file, not a remote file or the output of a program."""
    return not (runs_program(shard) or storage.is_remote(shard))


def read_shard(
    shard: str,
    on_skip: Callable[[Skip], None],
    limits: SampleLimits = SAMPLE_LIMITS,
    *,
    cache: storage.FileCache | None = None,
) -> Iterator[RawSample]:
    """Yield the samples of a shard in order; report a truncated or unreadable shard instead of raising an error.

    Args:
        shard: path or URL.
        on_skip: function that receives each `Skip`.
        limits: limits on the data of a sample; a sample beyond the limits has a `problem`.
        cache: cache for a copy of a remote shard; None stores no copy.
    """
    num_read = 0
    try:
        with _open(shard, cache) as stream:
            for raw in _samples(shard, stream, limits):
                num_read += 1
                yield raw
    except Exception as error:  # noqa: BLE001 - the last barrier around a shard, for any exception that its bytes cause
        raise_machine_fault(error)
        reason = "truncated_shard" if num_read else "unreadable_shard"
        # The cause of a program's failure is unknown, and many programs use a network.
        if storage.is_transient(error) or (isinstance(error, OSError) and runs_program(shard)):
            reason = CONNECTION_FAILED
        detail = f"after {num_read} samples: {type(error).__name__}: {error}"
        on_skip(Skip(reason=reason, key="", shard=shard, detail=detail))


def parse(
    raw: RawSample, parser: Callable[[str, Mapping[str, bytes]], SampleType], on_skip: Callable[[Skip], None]
) -> SampleType | None:
    """Parse a raw sample with `parser`; if the sample cannot be used, report a `Skip` and return None."""

    def parsed() -> SampleType:
        if raw.problem is not None:
            raise raw.problem
        return parser(raw.key, raw.members)

    return attempt(parsed, key=raw.key, shard=raw.shard, on_skip=on_skip)


def parse_each(
    raws: Iterable[RawSample],
    parser: Callable[[str, Mapping[str, bytes]], SampleType],
    on_skip: Callable[[Skip], None],
) -> Iterator[SampleType]:
    """Yield the samples that `parser` returns, in order, and report a `Skip` for every unusable raw sample."""
    made = (parse(raw, parser, on_skip) for raw in raws)
    return (sample for sample in made if sample is not None)


def read_reinforced_samples(
    shards: Shards, report: SkipReport | None = None, limits: SampleLimits = SAMPLE_LIMITS
) -> Iterator[ReinforcedSample]:
    """Yield every usable reinforced sample of the shards in order; count and log unusable samples.

    Args:
        shards: paths or patterns, as for `expand_shards`.
        report: report that counts the read and the skipped samples; None uses a new report.
        limits: limits on the data of a sample.
    """
    return _read(shards, parse_reinforced_sample, SkipReport() if report is None else report, limits)


def read_samples(
    shards: Shards, report: SkipReport | None = None, limits: SampleLimits = SAMPLE_LIMITS
) -> Iterator[ImageTextSample]:
    """Yield every usable image-text sample of the shards in order; count and log unusable samples.

    Args:
        shards: paths or patterns, as for `expand_shards`.
        report: report that counts the read and the skipped samples; None uses a new report.
        limits: limits on the data of a sample.
    """
    return _read(shards, parse_sample, SkipReport() if report is None else report, limits)


def count_samples(shards: Shards, limits: SampleLimits = SAMPLE_LIMITS) -> int:
    """Count the samples in shards by the keys in the tar headers; fast only for uncompressed files on disk.

    Args:
        shards: paths or patterns, as for `expand_shards`.
        limits: limits on the data of a sample.

    Raises:
        ValueError: if a shard cannot be read or is truncated.
        StorageError: if the store or disk of a shard fails.
    """
    total = 0
    for shard in expand_shards(shards):
        count, problem = count_shard(shard, limits)
        if problem is not None:
            raise problem
        total += count
    return total


def count_shard(shard: str, limits: SampleLimits = SAMPLE_LIMITS) -> tuple[int, Exception | None]:
    """Return the number of samples in a shard, by the keys in the tar headers, and the error that ended the count.

    The error is None if the function read the whole shard.

    The error is a `StorageError` if the shard's store or disk failed, and a `ValueError` otherwise.

    Args:
        shard: path or URL.
        limits: limits on the data of a sample.
    """
    count = 0
    try:
        with storage.open_read(shard) as stream:
            for _ in by_key(_names(stream, limits), str):
                count += 1
    except Exception as error:  # noqa: BLE001 - as in read_shard
        raise_machine_fault(error)
        text = storage.without_secrets(f"the samples of {shard} cannot be counted: {type(error).__name__}: {error}")
        return count, storage.StorageError(text) if storage.is_transient(error) else ValueError(text)
    return count, None


def write_shard(path: PathType, samples: Iterable[ImageTextSample], *, layout: Layout = "npz") -> PathType:
    """Write samples to a shard and return its path; the file appears only when complete.

    Equal samples give equal bytes.

    Args:
        path: path or URL of the tar file; an existing file is replaced.
        samples: plain or reinforced samples, at least one.
        layout: storage layout of the embeddings; see `sample_members`.

    Raises:
        ValueError: if no samples are given, a key is repeated, the layout is unknown, or the URL is not writable.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    return write_shard_members(path, ((sample.key, sample_members(sample, layout)) for sample in samples))


def write_shard_members(path: PathType, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> PathType:
    """Write the members of samples to a shard and return its path, like `write_shard`.

    Args:
        path: path or URL of the tar file; an existing file is replaced.
        samples: pairs of a key and the member contents by extension; at least one pair.

    Raises:
        ValueError: if no samples are given, a key is repeated, or the URL is not writable.
    """
    keys: set[str] = set()
    with storage.atomic_write(path) as stream:
        for key, members in samples:
            if key in keys:
                raise ValueError(f"key {key!r} comes twice in {path}; keys must be unique")
            keys.add(key)
            for extension in sorted(members):
                write_member(stream, f"{key}.{extension}", members[extension])
        write_end(stream)
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
    """Write samples to as many shards as necessary (`00000000.tar`, ...) and return the paths of the shards.

    Args:
        directory: folder of the shards, created if missing.
        samples: plain or reinforced samples.
        layout: storage layout of the embeddings; see `sample_members`.
        samples_per_shard: maximum number of samples per shard, at least 1.

    Raises:
        ValueError: if no samples are given, `samples_per_shard` is below 1, or a key is repeated within a shard.
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


def _open(shard: str, cache: storage.FileCache | None) -> AbstractContextManager[IO[bytes]]:
    if not runs_program(shard):
        return storage.open_read(shard) if cache is None else cache.open_read(shard)
    from webdataset.gopen import gopen  # type: ignore[import-untyped]

    return cast("AbstractContextManager[IO[bytes]]", gopen(shard))


def _names(stream: IO[bytes], limits: SampleLimits) -> Iterator[str]:
    """Yield the names of the files in a tar file, and skip the contents if the file is not compressed."""
    if is_compressed(stream.read(START_BYTES)):
        stream.seek(0)
        yield from (name for name, _ in read_members(stream, limits))
        return
    end = stream.seek(0, os.SEEK_END)
    for member in tar_members(stream):
        if member.offset + member.size > end:
            raise tarfile.ReadError(f"the archive ends within {storage.printable(member.name)}")
        yield member.name


def _samples(shard: str, stream: IO[bytes], limits: SampleLimits) -> Iterator[RawSample]:
    for key, members in by_key(read_members(stream, limits), itemgetter(0)):
        raw = RawSample(key=key, shard=shard)
        try:
            for extension, (name, content) in members:
                raw.enter(name, extension, content, limits)
        except Exception as error:
            raise_machine_fault(error)
            # The members before the break may form a complete sample; the parser decides.
            yield raw
            raise
        yield raw


def _read(
    shards: Shards,
    parser: Callable[[str, Mapping[str, bytes], SampleLimits], SampleType],
    report: SkipReport,
    limits: SampleLimits,
) -> Iterator[SampleType]:
    for shard in expand_shards(shards):
        raws = read_shard(shard, report.add, limits)
        for sample in parse_each(raws, lambda key, members: parser(key, members, limits), report.add):
            report.num_read += 1
            yield sample
