"""One reinforced shard, read, given its images and written, in whatever process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import chain, groupby, islice
from pathlib import Path
from typing import IO

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.buckets import Records
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.data.samples.sample import check_key, is_showable
from mobileclip.data.shards.files import RawSample, read_shard, write_shard_members
from mobileclip.data.shards.tar import read_up_to
from mobileclip.data.skips import BadSampleError, Skip, attempt
from mobileclip.datasets.joining.checks import (
    Captioned,
    check_joined,
    find_caption,
    has_caption,
    read_captions,
    stated_of,
)
from mobileclip.datasets.joining.index import name_hash, sample_name
from mobileclip.datasets.joining.matching import read_matches
from mobileclip.datasets.joining.report import JoinedSample, JoinedShard, read_ledger, renew_ledger, write_ledger
from mobileclip.datasets.joining.spec import JoinSpec

# Samples, and bytes of their images, that are read at once, in the order of the shards that they are in.
_SAMPLES_AT_ONCE = 256
_BYTES_AT_ONCE = 64 * 2**20
_DIGESTED = ("order", "high", "low", "start", "size", "text_start", "text_size", "json_start", "json_size")


@attrs.frozen(kw_only=True)
class JoinUnit:
    """A shard to be joined.

    Args:
        name: of the joined shard.
        source: path or URL of the reinforced shard.
        fingerprint: of it.
        problem: why the names of its samples could not be read to the end; then some may seem to have no image.
        captions: the shard with its captions; None where captions are not asked for.
        captions_print: fingerprint of that; empty where captions are not asked for.
        matches: of its samples, in order: where they begin and end among all.
    """

    name: str
    source: str
    fingerprint: str
    problem: str | None
    captions: str | None
    captions_print: str
    matches: tuple[int, int]


@attrs.frozen(kw_only=True)
class ShardJoin:
    """Joins shards, in whatever process.

    Args:
        spec: the choices.
        images: fingerprint of all images.
        matches: the file with the matches of all shards.
        shards: path and fingerprint of every image shard, by its number.
        dropped: hashes of the pictures that are left out.
    """

    spec: JoinSpec
    images: str
    matches: Path
    shards: Sequence[tuple[str, str]]
    dropped: frozenset[int]

    def __call__(self, unit: JoinUnit) -> int:
        """Write a shard and the note about it, and return the number of samples.

        Raises:
            ValueError: if the shard could not be read to its end; what comes before is written.
            StorageError: if that may be otherwise at another time; the same.
            OSError: if an image shard cannot be read any more, or the output cannot be written.
        """
        matches = read_matches(self.matches, unit.matches)
        path = storage.join(self.spec.output, unit.name)
        done = JoinedShard(
            source=unit.fingerprint,
            images=self.images,
            matches=self._digest(matches),
            captions=unit.captions_print,
            choices=self.spec.choices,
        )
        before = read_ledger(self.spec.output, unit.name)
        if before is not None and before.made_of == done.made_of and before.num_bytes == _size(path):
            renew_ledger(self.spec.output, unit.name, attrs.evolve(before, images=self.images))
            return before.num_samples
        problems: list[Skip] = []
        joined = _Shard(
            spec=self.spec,
            dropped=self.dropped,
            matches=matches,
            paths=[path for path, _ in self.shards],
            captions=read_captions(unit.captions, problems.append, self.spec.sample_limits),
        )
        storage.make_directory_of(path)
        samples = joined.samples(read_shard(unit.source, problems.append, self.spec.sample_limits))
        first = next(samples, None)
        if first is None:
            storage.remove(path)
        else:
            write_shard_members(path, chain([first], samples))
        # A shard that broke off may do so for its connection: the next run tries again.
        source = "" if problems or unit.problem else done.source
        reach = sum(joined.reaches) / len(joined.reaches) if joined.reaches else None
        done = attrs.evolve(done, source=source, num_bytes=_size(path), reach=reach, counts=joined.counts)
        write_ledger(self.spec.output, unit.name, done, joined.rows)
        if problems:
            raise problems[0].error(f"{problems[0].reason}, {problems[0].detail}")
        if unit.problem is not None:
            raise ValueError(unit.problem)
        return len(joined.rows)

    def _digest(self, matches: Records) -> str:
        """Return what changes when the images of the shard's samples do, or whether they are left out."""
        numbers, places = np.unique(matches["shard"], return_inverse=True)
        digest = blake2b(repr([self.shards[number] for number in numbers.tolist()]).encode(), digest_size=16)
        digest.update(places.astype(np.uint32).tobytes())
        for name in _DIGESTED:
            digest.update(matches[name].tobytes())
        digest.update(bytes(sha256 in self.dropped for sha256 in matches["sha256"].tolist()))
        return digest.hexdigest()


@attrs.define(kw_only=True, eq=False)
class _Shard:
    """One reinforced shard on its way."""

    spec: JoinSpec
    dropped: frozenset[int]
    matches: Records
    paths: Sequence[str]
    captions: Mapping[str, Captioned]
    counts: Counter[str] = attrs.field(factory=Counter)
    rows: list[JoinedSample] = attrs.field(factory=list)
    reaches: list[float] = attrs.field(factory=list)
    keys: set[str] = attrs.field(factory=set)

    def samples(self, samples: Iterator[RawSample]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield key and members of every sample that can be joined, in order."""
        rows = {order: row for row, order in enumerate(self.matches["order"].tolist())}
        numbered = ((sample, rows.get(order)) for order, sample in enumerate(samples))
        for batch in iter(lambda: list(islice(numbered, _SAMPLES_AT_ONCE)), []):
            pairs = [(sample, row if self._is_match(sample, row) else None) for sample, row in batch]
            sizes = np.cumsum([0 if row is None else int(self.matches["size"][row]) for _, row in pairs])
            for _, some in groupby(zip(sizes // _BYTES_AT_ONCE, pairs, strict=True), lambda one: one[0]):
                portion = [pair for _, pair in some]
                found = self._images([row for _, row in portion if row is not None])
                for sample, row in portion:
                    members = attempt(
                        partial(self._members, sample, row, found),
                        key=sample.key,
                        shard=sample.shard,
                        on_skip=lambda skip: self.rows.append(JoinedSample(skip.key, reason=skip.reason)),
                    )
                    if members is not None:
                        yield sample.key, members

    def _is_match(self, sample: RawSample, row: int | None) -> bool:
        """Return whether a sample asks for an image, by the name that was matched."""
        if row is None or not _lacks_image(sample):
            return False
        name = sample_name(sample.key, sample.members, by=self.spec.by, limits=self.spec.sample_limits)
        return name_hash(name) == (int(self.matches["high"][row]), int(self.matches["low"][row]))

    def _images(self, rows: list[int]) -> dict[int, list[bytes | None]]:
        """Return by the rows of matches the image, the caption and the JSON beside it, as far as they are there.

        Raises:
            ValueError: if a shard is shorter than it was.
        """
        found = {}
        ordered = sorted(rows, key=lambda row: (int(self.matches["shard"][row]), int(self.matches["start"][row])))
        for shard, some in groupby(ordered, lambda row: int(self.matches["shard"][row])):
            with storage.open_read(self.paths[shard]) as stream:
                for row in some:
                    places = [
                        (int(self.matches[f"{name}start"][row]), int(self.matches[f"{name}size"][row]))
                        for name in ("", "text_", "json_")
                    ]
                    found[row] = [_read(stream, self.paths[shard], *place) for place in places]
        return found

    def _members(self, sample: RawSample, row: int | None, found: Mapping[int, list[bytes | None]]) -> dict[str, bytes]:
        self._enter(sample)
        if not _lacks_image(sample):
            self.rows.append(JoinedSample(sample.key))
            return sample.members
        if row is None:
            raise BadSampleError("no_image", "there is no image under its key")
        if int(self.matches["sha256"][row]) in self.dropped:
            raise BadSampleError("placeholder", "its image stands under many keys")
        image, beside, told = found[row]
        known = find_caption(self.captions, sample.key, stated_of(sample.members.get("json"), self.spec.sample_limits))
        likeness, reach = check_joined(
            sample.members,
            image or b"",
            stated={} if known is None else known.stated,
            beside=told,
            keep_other=self.spec.keep_other,
            decode=self.spec.check_images,
            limits=self.spec.sample_limits,
        )
        members = {**sample.members, IMAGE_EXTENSIONS[self.matches["extension"][row]]: image or b""}
        if not has_caption(members, self.spec.sample_limits):
            text = beside if known is None else known.text
            if text is None:
                raise BadSampleError("no_caption", "there is none for it")
            members["txt"] = text
            self.counts["captions" if known is None else "set_captions"] += 1
        shard = storage.printable(storage.without_secrets(self.paths[self.matches["shard"][row]]))
        self.rows.append(JoinedSample(sample.key, image=shard, likeness=likeness))
        self.reaches += [] if reach is None else [reach]
        return members

    def _enter(self, sample: RawSample) -> None:
        """Note a sample's key, or raise where it cannot stand in a shard."""
        if sample.problem is not None:
            raise sample.problem
        check_key(sample.key)
        if not all(map(is_showable, sample.members)):
            raise BadSampleError("bad_member", "the name of a member has control characters")
        if sample.key in self.keys:
            raise BadSampleError("repeated_key", "another sample of the shard has its key")
        self.keys.add(sample.key)


def _read(stream: IO[bytes], shard: str, start: int, size: int) -> bytes | None:
    """Return what is at a place; nothing is at 0, where a shard begins."""
    if not start:
        return None
    try:
        stream.seek(start)
        content = read_up_to(stream, size)
    except OverflowError:  # a place that no file has
        content = b""
    if len(content) < size:
        raise ValueError(f"{shard} has changed since its images were indexed; run again to have it indexed anew")
    return content


def _lacks_image(sample: RawSample) -> bool:
    return not any(extension in sample.members for extension in IMAGE_EXTENSIONS)


def _size(path: str) -> int | None:
    """Return the size of a file, None where there is none."""
    try:
        return storage.size(path)
    except FileNotFoundError:
        return None
