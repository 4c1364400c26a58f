"""Where every image of a data set is: an index on disk, a file of records for each shard, made once.

A killed run loses the shards that it was reading. Several jobs may share an index: each file appears whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.data.buckets import Records
from mobileclip.data.samples.sample import SampleLimits
from mobileclip.data.shards.files import expand_shards
from mobileclip.datasets.joining.image_scan import ScanUnit, image_name
from mobileclip.datasets.joining.records import NAMES, PLACES, AboutShard, read_records
from mobileclip.datasets.joining.spec import JoinSpec
from mobileclip.datasets.sources.shards import listed_fingerprints
from mobileclip.engines import FunctionWork, Listener, Run, SetAside
from mobileclip.progress import Progress
from mobileclip.terminal import console

_MISSING = "missing"


@attrs.frozen(kw_only=True)
class IndexCounts:
    """The size of an image index, and the problems found while it was built.

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
        """Return a hash of the indexed shards and their order."""
        return digest_of([self.by, *([about.shard, about.fingerprint, about.num_records] for about in self.shards)])

    def name_at(self, shard: int, row: int) -> str:
        """Return the name of an image.

        Args:
            shard: its number.
            row: of its record in the shard.
        """
        about = self.shards[shard]
        return image_name(about.shard, read_records(self.folder, PLACES, about)[row], self.by, self.limits)

    def example(self) -> str:
        """Return the name of the first image, as an example."""
        return self.name_at(next(number for number, about in enumerate(self.shards) if about.num_records), 0)


def digest_of(value: Any) -> str:
    """Return a short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def build_image_index(
    run: Run, folder: Path, spec: JoinSpec, reinforced: Mapping[str, str], *, show_progress: bool
) -> tuple[ImageIndex, dict[str, AboutShard]]:
    """Return the index of images, and what is known of samples' names, reading what no earlier run has read.

    Args:
        run: in which the shards are read.
        folder: of the index, on this machine; made where it is missing.
        spec: the choices; images are read and hashed, and not their headers alone, where placeholders are looked for.
        reinforced: fingerprints of the reinforced shards that are there, by path or URL.
        show_progress: show a bar with the speed and the time left.

    Returns:
        The index, and what is known of every reinforced shard, by its path.

    Raises:
        ValueError: if none of the images can be read.
        OSError: if the folder cannot be written.
    """
    # One that is not there has been found out once for all.
    images = expand_shards(spec.images)
    fingerprints = dict.fromkeys(images, _MISSING) | listed_fingerprints(images)
    units = [
        ScanUnit(
            name=f"{side} shard {number}, {storage.printable(storage.without_secrets(shard))}",
            shard=shard,
            fingerprint=fingerprint,
            kind=kind,
            folder=folder,
            by=spec.by,
            limits=spec.sample_limits,
            hashed=spec.placeholder_threshold > 0 and kind == PLACES,
        )
        for side, kind, shards in (("image", PLACES, fingerprints), ("reinforced", NAMES, reinforced))
        for number, (shard, fingerprint) in enumerate(shards.items())
    ]
    known = {unit.name: about for unit in units if (about := unit.known()) is not None}
    pending = [unit for unit in units if unit.name not in known]
    screen = console(shown=show_progress and bool(pending))
    with Progress("indexing", total=len(units), done=len(known), unit="keys", console=screen) as bar:
        run.begin("indexing", num_units=len(units), num_done_before=len(known), then=("matching", "joining"))
        run.do(FunctionWork(function=ScanUnit.read), pending, _Scanned(known=known, bar=bar))
    every = [known[unit.name] for unit in units]
    index = ImageIndex(folder=folder, by=spec.by, shards=tuple(every[: len(fingerprints)]), limits=spec.sample_limits)
    if not index.num_images:
        problems = (about.problem for about in index.shards if about.problem is not None)
        num_without = sum(about.num_without for about in index.shards)
        problem = next(problems, f"{num_without} samples have no field {spec.by!r}")
        raise ValueError(f"there is no image in the {len(index.shards)} shards from {index.shards[0].shard}: {problem}")
    return index, dict(zip(reinforced, every[len(fingerprints) :], strict=True))


@attrs.define(kw_only=True, eq=False)
class _Scanned(Listener[ScanUnit, AboutShard]):
    """Keeps what is known of shards, by the names of their units.

    Args:
        known: what is known.
        bar: what is shown.
    """

    known: dict[str, AboutShard]
    bar: Progress

    def finished(self, unit: ScanUnit, entry: AboutShard) -> None:
        self.known[unit.name] = entry
        self.bar.advance(count=entry.num_records)

    def gave_up(self, unit: ScanUnit, aside: SetAside) -> None:
        self.finished(unit, unit.left(aside.reason))
