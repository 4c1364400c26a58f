"""Where every image of a data set is: an index on disk, a file of records for each shard, made once.

A killed run loses the shards that it was reading. Several jobs may share an index: each file appears whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mobileclip.data.buckets import Records
from mobileclip.data.joining.image_scan import ImageScan, NameScan, ScanTask, image_name
from mobileclip.data.joining.records import NAMES, PLACES, AboutShard, read_about, read_records
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.sources.shards import listed_fingerprints
from mobileclip.data.workers import Mapper, one_after_another
from mobileclip.progress import Progress
from mobileclip.terminal import console

_MISSING = "missing"


@attrs.frozen(kw_only=True)
class IndexCounts:
    """How much an index holds.

    Args:
        shards: number of shards that were read.
        images: number of images.
        keys: number of different keys.
        repeated_keys: number of keys with more than one image; the first one counts.
        without_field: samples without the field that is the key.
        unreadable: what is wrong with a shard, by its path; what comes before a break is in the index.
    """

    shards: int
    images: int
    keys: int
    repeated_keys: int
    without_field: int
    unreadable: dict[str, str]


@attrs.frozen(kw_only=True)
class ImageIndex:
    """Where the images of shards are; `build_image_index` makes it.

    Args:
        folder: of the index.
        by: what images are called by: `key`, or the field of their JSON.
        shards: what is known of each, in the order in which they were given: of several images of one name, that of
            the first shard counts.
        limits: of what is read.
    """

    folder: Path
    by: str
    shards: tuple[AboutShard, ...]
    limits: SampleLimits

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(about.num_records for about in self.shards)

    def parts(self) -> Iterator[Records]:
        """Yield the records of every shard, in order.

        Raises:
            ValueError: if some are gone or damaged.
        """
        for about in self.shards:
            yield read_records(self.folder, PLACES, about)

    def counts(self, *, num_keys: int, num_repeated_keys: int) -> IndexCounts:
        """Return how much there is.

        Args:
            num_keys: number of different keys.
            num_repeated_keys: of them, that have several images.
        """
        return IndexCounts(
            shards=sum(about.num_records > 0 or about.problem is None for about in self.shards),
            images=self.num_images,
            keys=num_keys,
            repeated_keys=num_repeated_keys,
            without_field=sum(about.num_without for about in self.shards),
            unreadable={about.shard: about.problem for about in self.shards if about.problem is not None},
        )

    def fingerprint(self) -> str:
        """Return what changes when the indexed shards do, or the order in which they were given."""
        return digest_of([self.by, *([about.shard, about.fingerprint, about.num_records] for about in self.shards)])

    def name_at(self, shard: int, row: int) -> str:
        """Return what an image is called.

        Args:
            shard: its number.
            row: of its record in the shard.
        """
        about = self.shards[shard]
        return image_name(about.shard, read_records(self.folder, PLACES, about)[row], self.by, self.limits)

    def example(self) -> str:
        """Return what the first image is called."""
        return self.name_at(next(number for number, about in enumerate(self.shards) if about.num_records), 0)


def digest_of(value: Any) -> str:
    """Return a short text that changes when the value, which JSON can hold, does."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def build_image_index(
    folder: str | os.PathLike[str],
    shards: Sequence[str],
    *,
    by: str = "key",
    hashed: bool = True,
    share: Mapper = one_after_another,
    show_progress: bool = False,
    limits: SampleLimits = SAMPLE_LIMITS,
) -> ImageIndex:
    """Return the index of the images in shards, reading what an earlier run has not.

    Args:
        folder: of the index, on this machine; made where it is missing.
        shards: paths or addresses of uncompressed tar files.
        by: `key`, or a field of the samples' JSON that is the key instead, such as `uid` or `url`.
        hashed: whether to read and hash the images too, which finds placeholders, and not the headers alone.
        share: reads several shards at once, or one after another.
        show_progress: show a bar with the speed and the time left.
        limits: of what is read of a sample.

    Raises:
        ValueError: if none of the shards can be read.
        OSError: if the folder cannot be written.
    """
    places = Path(folder)
    # One that is not there has been found out once for all.
    fingerprints = dict.fromkeys(shards, _MISSING) | listed_fingerprints(shards)
    known = {
        shard: about
        for shard in fingerprints
        if (about := read_about(places, PLACES, by, shard)) is not None
        and about.fingerprint == fingerprints[shard]
        and (about.hashed or not hashed)
    }
    scan = ImageScan(folder=places, by=by, limits=limits, hashed=hashed)
    pending = [ScanTask(*one) for one in fingerprints.items() if one[0] not in known]
    screen = console(shown=show_progress and bool(pending))
    with Progress("indexing images", total=len(fingerprints), done=len(known), unit="keys", console=screen) as bar:
        for about in share(scan, pending, doing="indexing the images of"):
            known[about.shard] = about
            bar.advance(count=about.num_records)
    index = ImageIndex(folder=places, by=by, shards=tuple(known[shard] for shard in fingerprints), limits=limits)
    _check_images(index)
    return index


def sample_names(
    folder: Path,
    sources: Mapping[str, str],
    *,
    by: str,
    share: Mapper = one_after_another,
    show_progress: bool = False,
    limits: SampleLimits = SAMPLE_LIMITS,
) -> dict[str, AboutShard]:
    """Return, by shard, what is known of the names of reinforced samples, reading what an earlier run has not.

    Args:
        folder: of the index.
        sources: fingerprints by shard.
        by: what samples are called by.
        share: reads several shards at once, or one after another.
        show_progress: show a bar with the speed and the time left.
        limits: of what is read of a sample.
    """
    known = {
        shard: about
        for shard, fingerprint in sources.items()
        if (about := read_about(folder, NAMES, by, shard)) is not None and about.fingerprint == fingerprint
    }
    pending = [ScanTask(*one) for one in sources.items() if one[0] not in known]
    screen = console(shown=show_progress and bool(pending))
    with Progress("reading keys", total=len(sources), done=len(known), unit="keys", console=screen) as bar:
        for about in share(NameScan(folder=folder, by=by, limits=limits), pending, doing="reading the keys of"):
            known[about.shard] = about
            bar.advance(count=about.num_records)
    return known


def read_names(folder: Path, about: AboutShard) -> Records:
    """Return the hashed names of a shard's samples, in their order.

    Raises:
        ValueError: if they are gone or damaged.
    """
    return read_records(folder, NAMES, about)


def _check_images(index: ImageIndex) -> None:
    if not index.num_images:
        problems = (about.problem for about in index.shards if about.problem is not None)
        num_without = sum(about.num_without for about in index.shards)
        problem = next(problems, f"{num_without} samples have no field {index.by!r}")
        first = index.shards[0].shard
        raise ValueError(f"there is no image in the {len(index.shards)} shards from {first}: {problem}")
