"""Tar shards as a source: a shard is a unit, and what it becomes bears its name."""

from __future__ import annotations

import re
import urllib.parse
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import attrs

from mobileclip import storage
from mobileclip.data.samples.members import parse_sample
from mobileclip.data.samples.sample import SAMPLE_LIMITS, ImageTextSample, SampleLimits
from mobileclip.data.shards.card import CARD
from mobileclip.data.shards.counts import shard_folder
from mobileclip.data.shards.files import count_samples, expand_shards, parse_each, paths_of, read_shard, runs_program
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.datasets.sources.access import RowOptions, num_common, told
from mobileclip.datasets.sources.base import Source, Unit, sources
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import strict

# What is written is not compressed: its members are.
_COMPRESSED = re.compile(r"(\.tar)?\.(gz|bz2|xz)$|\.(tgz|tbz2|txz)$")
_FILE_NAME = re.compile(r"[\w][\w.+=@,~ -]*")
_MAX_NAMED = 3


@attrs.frozen(kw_only=True)
class ShardUnit(Unit):
    """One shard.

    Args:
        path: path, URL, or webdataset's `pipe:`.
        sample_limits: of what is read of a sample.
    """

    path: str
    sample_limits: SampleLimits = SAMPLE_LIMITS

    def fingerprint(self) -> str:
        """Return size and time of change, or the store's mark; the command, where a program gives the shard."""
        if runs_program(self.path):
            return self.path
        with told(f"shard {self.path}"):
            return storage.fingerprint(self.path)

    def about(self) -> str:
        """Return the name of a shard on this machine."""
        is_near = not (runs_program(self.path) or storage.is_remote(self.path))
        return self.name if is_near else self.fingerprint()

    def count(self) -> int | None:
        """Return the number of keys in a whole shard on this machine."""
        if runs_program(self.path) or storage.is_remote(self.path) or _COMPRESSED.search(self.path):
            return None
        try:
            return count_samples([self.path], self.sample_limits)
        except (ValueError, OSError) as error:
            raise_machine_fault(error)
            # Reading will tell how far it goes.
            return None

    def size(self) -> int | None:
        """Return the bytes of the shard."""
        return None if runs_program(self.path) else storage.size(self.path)

    def files(self) -> tuple[str, ...]:
        """Return the shard."""
        return () if runs_program(self.path) else (self.path,)

    def sample(self, key: str, members: Mapping[str, bytes]) -> ImageTextSample:
        """Return the sample that members of the shard make.

        Raises:
            BadSampleError: if they make none.
        """
        return parse_sample(key, members, self.sample_limits)

    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples; of those with one key, the first that can be used."""
        keys: set[str] = set()
        for sample in parse_each(read_shard(self.path, report.add, self.sample_limits), self.sample, report.add):
            if sample.key in keys:
                detail = "an earlier sample of the shard has this key"
                report.add(Skip(reason="duplicate_key", key=sample.key, shard=self.path, detail=detail))
                continue
            keys.add(sample.key)
            report.num_read += 1
            yield sample


@sources.register("shards")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ShardSource(Source):
    """Tar shards of image-text samples.

    Args:
        shards: paths, URLs or brace patterns, as `expand_shards` takes them; compressed ones too. What they become
            bears their names, without `.gz`; shards of several folders, their paths below the folder common to all.
        sample_limits: of what is read of a sample.
    """

    shards: tuple[str, ...] = attrs.field(converter=paths_of)
    sample_limits: SampleLimits = SAMPLE_LIMITS

    @classmethod
    def of(cls, argument: str, *, samples_per_shard: int, rows: RowOptions) -> ShardSource:
        """Return the shards of a path, a pattern or a folder, see `Source.of`."""
        del samples_per_shard, rows  # shards are cut, and no lists
        return cls(shards=(is_folder(argument) and shards_in(argument)) or argument)

    def units(self) -> tuple[ShardUnit, ...]:
        """Return a unit for every shard, in the order given.

        Raises:
            ValueError: if there is none, a local one is missing, or one is given twice.
        """
        paths = expand_shards(self.shards)
        local = [path for path in paths if not runs_program(path) and not storage.is_remote(path)]
        _check_present(local)
        units: dict[str, ShardUnit] = {}
        for path, name in zip(paths, output_names(paths), strict=True):
            if name in units:
                raise ValueError(
                    f"{units[name].path} and {path} would both become {name}; name each shard once, or work on them as "
                    "two data sets"
                )
            units[name] = ShardUnit(name=name, path=path, sample_limits=self.sample_limits)
        return tuple(units.values())

    def fingerprints(self, units: Collection[Unit]) -> dict[str, str]:
        """Return the fingerprints of shards; stores list those of a folder, and of web servers none is known."""
        paths = {}
        for unit in units:
            assert isinstance(unit, ShardUnit), "shards are the units of this source"
            paths[unit.name] = unit.path
        listed = listed_fingerprints([path for path in paths.values() if not storage.is_web(path)])
        return {name: listed[path] for name, path in paths.items() if path in listed}


def shards_in(folder: str) -> tuple[str, ...]:
    """Return the shards in a folder; where they were reinforced, those in the folders below as well."""
    shards = storage.list_files(folder, ".tar")
    if shards or not storage.exists(storage.join(folder, CARD)):
        return shards
    # What a reinforcement has under way is in a hidden folder.
    return storage.list_files(folder, ".tar", recursive=True)


def is_folder(text: str) -> bool:
    """Return whether there is a folder; no store is asked about what is called like a shard."""
    is_shard = is_pattern(text) or "::" in text or ".tar" in storage.file_name(text)
    return not (is_shard and storage.is_remote(text)) and storage.is_directory(text)


def is_pattern(text: str) -> bool:
    """Return whether this is a brace pattern, or what a program writes."""
    return "{" in text or runs_program(text)


def listed_fingerprints(paths: Iterable[str]) -> dict[str, str]:
    """Return the fingerprints of shards, of those that are there; stores and disks list those of a folder at once.

    Args:
        paths: or URLs; those of web servers, which list nothing, are asked for one after another.

    Raises:
        OSError: if a store cannot be reached.
    """
    found = {}
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if runs_program(path):
            found[path] = path
        elif storage.is_web(path):
            with suppress(FileNotFoundError):
                found[path] = storage.fingerprint(path)
        else:
            folders[shard_folder(path)].append(path)
    for folder, own in folders.items():
        listed = storage.find_files(folder, recursive=False)
        names = ((path, storage.file_name(path)) for path in own)
        found |= {path: listed[name] for path, name in names if name in listed}
    return found


def _check_present(paths: list[str]) -> None:
    missing = [path for path in paths if not storage.local_path(path).exists()]
    if missing:
        others = f", nor do {len(missing) - _MAX_NAMED} others" if len(missing) > _MAX_NAMED else ""
        raise ValueError(
            f"shard {', '.join(missing[:_MAX_NAMED])} does not exist{others}; "
            "patterns are written with braces, such as 'train/{00000..00127}.tar'"
        )
    for path in paths:
        if storage.is_directory(path):
            raise ValueError(f"{path} is a directory and no shard; for a directory of images, take FolderSource")


def output_names(paths: Sequence[str]) -> list[str]:
    """Return what the shards become: their paths below the folder that is common to all; a program's has no folder."""
    folders = [() if runs_program(path) else _folders(path) for path in paths]
    num_above = num_common(one for path, one in zip(paths, folders, strict=True) if not runs_program(path))
    return [_output_name(path, one[num_above:]) for path, one in zip(paths, folders, strict=True)]


def _folders(path: str) -> tuple[str, ...]:
    """Return the names of the folders that lead to a file, from the root or the store on."""
    if storage.is_web(path):
        address = urllib.parse.urlsplit(path)
        whole = f"{address.netloc}{urllib.parse.unquote(address.path)}"
    else:
        whole = path if storage.is_remote(path) else storage.local_path(path).absolute().as_posix()
    return tuple(part for part in whole.split("/")[:-1] if part not in ("", "."))


def _output_name(path: str, folders: Sequence[str]) -> str:
    name = _COMPRESSED.sub(".tar", storage.file_name(path))
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{path!r} does not end with the name of a file, which the new shard could bear")
    for folder in folders:
        if not _FILE_NAME.fullmatch(folder):
            raise ValueError(
                f"the shards lie in several folders, and what becomes of {path!r} cannot lie in one that is called "
                f"{folder!r}; rename it, or work on each folder as a data set of its own"
            )
    return "/".join((*folders, name))
