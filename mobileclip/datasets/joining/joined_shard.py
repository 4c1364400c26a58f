"""One reinforced shard, read, given its images and written, in whatever process."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from hashlib import blake2b
from itertools import chain, islice
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
from mobileclip.datasets.joining.checks import Captioned, Captions, check_joined, has_caption, stated_of
from mobileclip.datasets.joining.index import name_hash, sample_name
from mobileclip.datasets.joining.matching import read_matches
from mobileclip.datasets.joining.report import JoinedSample, JoinedShard, read_ledger, renew_ledger, write_ledger
from mobileclip.datasets.joining.spec import JoinSpec

_BYTES_AT_ONCE = 64 * 2**20
_MAX_OPEN_SHARDS = 32


@attrs.frozen(kw_only=True)
class FoundImage:
    """An image read from its shard, with the caption and the JSON stored beside it.

    Args:
        shard: where it was.
        data: the encoded image.
        text: the caption beside it, where there is one.
        json: the JSON beside it, where there is one.
    """

    shard: str
    data: bytes
    text: bytes | None
    json: bytes | None


def portions(
    pairs: Sequence[tuple[RawSample, int | None]], sizes: Records
) -> Iterator[list[tuple[RawSample, int | None]]]:
    """Yield the samples in portions whose images fit into memory.

    Args:
        pairs: samples, each with the row of its match.
        sizes: of the images, by row.
    """
    portion: list[tuple[RawSample, int | None]] = []
    num_bytes = 0
    for sample, row in pairs:
        size = 0 if row is None else int(sizes[row])
        if portion and num_bytes + size > _BYTES_AT_ONCE:
            yield portion
            portion, num_bytes = [], 0
        portion.append((sample, row))
        num_bytes += size
    if portion:
        yield portion


class ImageReader:
    """Reads images by their matches, in the order of the shards they are in, a few of which stay open.

    Args:
        shards: paths or URLs by number.
    """

    def __init__(self, shards: Mapping[int, str]) -> None:
        self._shards = shards
        self._open: OrderedDict[str, tuple[ExitStack, IO[bytes]]] = OrderedDict()

    def read(self, matches: Records) -> Iterator[tuple[int, FoundImage]]:
        """Yield the row of each match and its image, in the order of the shards.

        Raises:
            ValueError: if a shard is shorter than it was.
        """
        for row in np.lexsort((matches["start"], matches["shard"])).tolist():
            shard = self._shards[int(matches["shard"][row])]
            data, text, json = (
                self._read(shard, int(matches[f"{name}start"][row]), int(matches[f"{name}size"][row]))
                for name in ("", "text_", "json_")
            )
            yield row, FoundImage(shard=shard, data=data or b"", text=text, json=json)

    def close(self) -> None:
        """Close all shards."""
        while self._open:
            self._open.popitem()[1][0].close()

    def _stream(self, shard: str) -> IO[bytes]:
        if shard not in self._open:
            if len(self._open) == _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1][0].close()
            stack = ExitStack()
            self._open[shard] = (stack, stack.enter_context(storage.open_read(shard)))
        self._open.move_to_end(shard)
        return self._open[shard][1]

    def _read(self, shard: str, start: int, size: int) -> bytes | None:
        """Return what is at a place; nothing is at 0, where a shard begins."""
        if not start:
            return None
        stream = self._stream(shard)
        try:
            stream.seek(start)
            content = read_up_to(stream, size)
        except OverflowError:  # a place that no file has
            content = b""
        if len(content) < size:
            raise ValueError(f"{shard} has changed since its images were indexed; run again to have it indexed anew")
        return content


_SAMPLES_AT_ONCE = 256


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
        digest, path = self._digest(matches), storage.join(self.spec.output, unit.name)
        before = read_ledger(self.spec.output, unit.name)
        if before is not None and self._is_same(before, unit, digest) and before.num_bytes == _size(path):
            renew_ledger(self.spec.output, unit.name, attrs.evolve(before, images=self.images))
            return before.num_samples
        problems: list[Skip] = []
        captions = Captions(unit.captions, problems.append, self.spec.sample_limits)
        storage.make_directory_of(path)
        shards = {number: self.shards[number][0] for number in np.unique(matches["shard"]).tolist()}
        with closing(ImageReader(shards)) as reader:
            joined = _Shard(spec=self.spec, dropped=self.dropped, matches=matches, reader=reader, captions=captions)
            samples = joined.samples(read_shard(unit.source, problems.append, self.spec.sample_limits))
            first = next(samples, None)
            if first is None:
                storage.remove(path)
            else:
                write_shard_members(path, chain([first], samples))
        likeness = Counter(one.likeness for one in joined.done if one.likeness is not None)
        done = JoinedShard(
            # A shard that broke off may do so for its connection: the next run tries again.
            source="" if problems or unit.problem else unit.fingerprint,
            images=self.images,
            matches=digest,
            captions=unit.captions_print,
            choices=self.spec.choices,
            num_bytes=_size(path),
            num_joined=sum(one.reason is None for one in joined.done),
            num_captions=joined.num_captions,
            num_set_captions=joined.num_set_captions,
            likeness=dict(sorted(likeness.items())),
            reach=sum(joined.reaches) / len(joined.reaches) if joined.reaches else None,
        )
        write_ledger(self.spec.output, unit.name, done, joined.done)
        if problems:
            raise problems[0].error(f"{problems[0].reason}, {problems[0].detail}")
        if unit.problem is not None:
            raise ValueError(unit.problem)
        return len(joined.done)

    def _is_same(self, before: JoinedShard, unit: JoinUnit, digest: str) -> bool:
        """Return whether an earlier run joined the shard with these very images, others among all images apart."""
        now = (unit.fingerprint, unit.captions_print, self.spec.choices, digest)
        return (before.source, before.captions, before.choices, before.matches) == now

    def _digest(self, matches: Records) -> str:
        """Return what changes when the images of the shard's samples do, or whether they are left out."""
        numbers, places = np.unique(matches["shard"], return_inverse=True)
        digest = blake2b(digest_size=16)
        digest.update(repr([self.shards[number] for number in numbers.tolist()]).encode())
        digest.update(places.astype(np.uint32).tobytes())
        for name in ("order", "high", "low", "start", "size", "text_start", "text_size", "json_start", "json_size"):
            digest.update(matches[name].tobytes())
        digest.update(bytes(sha256 in self.dropped for sha256 in matches["sha256"].tolist()))
        return digest.hexdigest()


@attrs.define(kw_only=True, eq=False)
class _Shard:
    """One reinforced shard on its way."""

    spec: JoinSpec
    dropped: frozenset[int]
    matches: Records
    reader: ImageReader
    captions: Captions
    num_captions: int = 0
    num_set_captions: int = 0
    done: list[JoinedSample] = attrs.field(factory=list)
    reaches: list[float] = attrs.field(factory=list)
    keys: set[str] = attrs.field(factory=set)

    def samples(self, samples: Iterator[RawSample]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield key and members of every sample that can be joined, in order."""
        rows = {order: row for row, order in enumerate(self.matches["order"].tolist())}
        numbered = ((sample, rows.get(order)) for order, sample in enumerate(samples))
        for batch in iter(lambda: list(islice(numbered, _SAMPLES_AT_ONCE)), []):
            pairs = [(sample, row if self._is_match(sample, row) else None) for sample, row in batch]
            for some in portions(pairs, self.matches["size"]):
                own = [row for _, row in some if row is not None]
                found = {own[at]: image for at, image in self.reader.read(self.matches[own])}
                for sample, row in some:
                    members = attempt(
                        partial(self._members, sample, row, found),
                        key=sample.key,
                        shard=sample.shard,
                        on_skip=lambda skip: self.done.append(JoinedSample(key=skip.key, reason=skip.reason)),
                    )
                    if members is not None:
                        yield sample.key, members

    def _is_match(self, sample: RawSample, row: int | None) -> bool:
        """Return whether a sample asks for an image, by the name that was matched."""
        if row is None or not _lacks_image(sample):
            return False
        own = sample.members.get("json"), sample.members.get("url.txt", b"")
        name = sample_name(sample.key, *own, by=self.spec.by, limits=self.spec.sample_limits)
        return name_hash(name) == (int(self.matches["high"][row]), int(self.matches["low"][row]))

    def _members(self, sample: RawSample, row: int | None, found: Mapping[int, FoundImage]) -> dict[str, bytes]:
        self._enter(sample)
        if not _lacks_image(sample):
            self.done.append(JoinedSample(key=sample.key))
            return sample.members
        if row is None:
            raise BadSampleError("no_image", "there is no image under its key")
        if int(self.matches["sha256"][row]) in self.dropped:
            raise BadSampleError("placeholder", "its image stands under many keys")
        image = found[row]
        stated = stated_of(sample.members.get("json"), self.spec.sample_limits)
        known = self.captions.find(sample.key, stated)
        checked = check_joined(
            sample.members,
            image.data,
            stated={} if known is None else known.stated,
            beside=image.json,
            keep_other=self.spec.keep_other,
            decode=self.spec.check_images,
            limits=self.spec.sample_limits,
        )
        members = {**sample.members, IMAGE_EXTENSIONS[self.matches["extension"][row]]: image.data}
        if not has_caption(members, self.spec.sample_limits):
            members["txt"] = self._caption(known, image.text)
        shard = storage.printable(storage.without_secrets(image.shard))
        self.done.append(JoinedSample(key=sample.key, image=shard, likeness=checked.likeness))
        self.reaches += [] if checked.reach is None else [checked.reach]
        return members

    def _caption(self, known: Captioned | None, beside: bytes | None) -> bytes:
        if known is not None:
            self.num_set_captions += 1
            return known.text
        if beside is None:
            raise BadSampleError("no_caption", "there is none for it")
        self.num_captions += 1
        return beside

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


def _lacks_image(sample: RawSample) -> bool:
    return not any(extension in sample.members for extension in IMAGE_EXTENSIONS)


def _size(path: str) -> int | None:
    """Return the size of a file, None where there is none."""
    try:
        return storage.size(path)
    except FileNotFoundError:
        return None
