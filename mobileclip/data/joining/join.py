"""Joins reinforced shards, which are published without images, with shards that hold the images, by key.

The two may be sharded differently and in another order. One shard is written per reinforced shard, whole or not at all,
and a second run writes what is missing.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.images.formats import IMAGE_EXTENSIONS
from mobileclip.data.joining.checks import check_joined, has_caption
from mobileclip.data.joining.image_index import LOCK_SECONDS, ImageIndex, IndexedImage, build_image_index
from mobileclip.data.joining.image_scan import storable
from mobileclip.data.joining.report import LEDGER, JoinedShard, JoinReport, make_report, read_ledger, write_ledger
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.sample import check_key, is_showable
from mobileclip.data.shards.card import card_of_shards, write_card
from mobileclip.data.shards.files import RawSample, expand_shards, read_shard, write_shard_members
from mobileclip.data.shards.tar import read_up_to
from mobileclip.data.skips import BadSampleError, Skip, attempt
from mobileclip.data.workers import SHARD_SECONDS, workers
from mobileclip.progress import Progress
from mobileclip.strict import strict
from mobileclip.terminal import console

INDEX = "images.sqlite"

_SAMPLES_AT_ONCE = 256
_BYTES_AT_ONCE = 64 * 2**20
_MAX_OPEN_SHARDS = 32

# Image and caption by the image's number in the index.
_Content = Mapping[int, tuple[bytes, bytes | None]]


@attrs.frozen(kw_only=True, field_transformer=strict)
class JoinSpec:
    """What is joined with what, and how.

    Args:
        reinforced: shards with captions, augmentations and embeddings: paths, addresses or patterns.
        images: shards with the images, uncompressed tar files.
        output: directory or address of the joined shards, which have the names of the reinforced ones.
        index: local file that remembers where every image is; `images.sqlite` in the output by default. It can serve
            several joins with the same images.
        by: what tells which image belongs to a sample: `key`, or the field of the images' JSON that holds the
            sample's key, such as `uid`; `url` is compared with the sample's URL instead.
        placeholder_threshold: a picture under that many keys is reported as a placeholder; 0 looks for none, which
            saves reading all images once.
        drop_placeholders: leave samples out whose image is a placeholder.
        check_images: decode every image, and leave samples out whose image is broken.
        num_workers: number of processes; the result does not depend on it.
        shard_seconds: without a finished shard of any process, after which the join ends: one may be stopped or stuck.
        index_seconds: for which another job that writes to the same index is waited for.
        sample_limits: of what is read of a sample.

    Raises:
        ValueError: if choices contradict each other.
    """

    reinforced: str
    images: str
    output: str
    index: str | None = None
    by: str = attrs.field(default="key", validator=validators.min_len(1))
    placeholder_threshold: int = attrs.field(default=10, validator=validators.ge(0))
    drop_placeholders: bool = False
    check_images: bool = False
    num_workers: int = attrs.field(default=1, validator=validators.ge(1))
    shard_seconds: float = attrs.field(default=SHARD_SECONDS, validator=validators.gt(0))
    index_seconds: float = attrs.field(default=LOCK_SECONDS, validator=validators.gt(0))
    sample_limits: SampleLimits = SAMPLE_LIMITS

    def __attrs_post_init__(self) -> None:
        if self.placeholder_threshold == 1:
            raise ValueError("placeholder_threshold must be at least 2, or 0 to look for none: every picture has a key")
        if self.drop_placeholders and not self.placeholder_threshold:
            raise ValueError("drop_placeholders needs a placeholder_threshold of at least 2")
        if self.index is None and storage.is_remote(self.output):
            raise ValueError(f"the index is a local file; say where with index, as the output {self.output} is not")

    @property
    def choices(self) -> str:
        """What the joined shards depend on, besides their sources."""
        dropped = self.placeholder_threshold if self.drop_placeholders else 0
        return json.dumps({"by": self.by, "placeholders_dropped_from": dropped, "check_images": self.check_images})


def join_images(spec: JoinSpec, *, show_progress: bool = True) -> JoinReport:
    """Write every joined shard that is missing, `join.json` with the report, and `missing.txt` with what was left out.

    A joined sample has all members of the reinforced one as they are, the image, and the caption beside the image where
    the reinforced one has none. A reinforced sample with an image of its own stays as it is.

    Args:
        spec: the choices.
        show_progress: show bars with the speed and the time left.

    Raises:
        ValueError: if there are no shards, two have one name, the output holds a join with other choices, none of the
            images can be read, or a process of several is stopped or stuck.
        OSError: if an image shard cannot be read any more, or the output cannot be written.
    """
    sources = _sources(spec)
    index_path = str(Path(spec.output) / INDEX) if spec.index is None else spec.index
    card = card_of_shards(list(sources.values()))
    for directory in (spec.output, storage.join(spec.output, LEDGER)):
        storage.make_directory(directory)
    hashed = spec.placeholder_threshold > 0
    with (
        workers(spec.num_workers, shard_seconds=spec.shard_seconds) as share,
        build_image_index(
            *(index_path, expand_shards(spec.images)),
            by=spec.by,
            hashed=hashed,
            share=share,
            show_progress=show_progress,
            limits=spec.sample_limits,
            lock_seconds=spec.index_seconds,
        ) as index,
    ):
        placeholders = index.placeholders(spec.placeholder_threshold) if hashed else {}
        dropped = frozenset(placeholders) if spec.drop_placeholders else frozenset[int]()
        job = _Job(spec=spec, index=index_path, images=index.fingerprint(), dropped=dropped)
        pending = [source for name, source in sources.items() if not job.finished(name, source)]
        problems: dict[str, str] = {}
        done, screen = len(sources) - len(pending), console(shown=show_progress and bool(pending))
        with Progress("joining", total=len(sources), done=done, console=screen) as progress:
            for source, (count, problem) in zip(pending, share(job, pending, doing="joining"), strict=True):
                progress.advance(count=count)
                if problem is not None:
                    problems[source] = problem
        report = make_report(spec.output, tuple(sources), index, tuple(placeholders.values()), problems)
    if card is not None:
        card = attrs.evolve(card, num_shards=report.shards, num_samples=report.joined, num_bytes=report.num_bytes)
        write_card(spec.output, attrs.evolve(card, skipped=report.left_out))
    return report


def _sources(spec: JoinSpec) -> dict[str, str]:
    sources: dict[str, str] = {}
    for source in expand_shards(spec.reinforced):
        name = storage.file_name(source)
        if name in sources:
            raise ValueError(f"{sources[name]} and {source} have the same name; join them into two directories")
        if storage.is_same(source, storage.join(spec.output, name)):
            raise ValueError(f"the output would replace {source}; choose another directory")
        sources[name] = source
    return sources


@attrs.frozen(kw_only=True)
class _Job:
    """What is done with every shard, in whatever process."""

    spec: JoinSpec
    index: str
    images: str
    dropped: frozenset[int]

    def finished(self, name: str, source: str) -> bool:
        """Whether an earlier run joined this very shard with these very images.

        Raises:
            ValueError: if it did with other choices.
        """
        done = read_ledger(self.spec.output, name)
        if done is None:
            return False
        if done.choices != self.spec.choices:
            raise ValueError(
                f"{self.spec.output} was joined with other choices ({done.choices}, now {self.spec.choices}); "
                "choose another output, or delete it to start again"
            )
        try:
            same_source = done.source == storage.fingerprint(source)
            path = storage.join(self.spec.output, name)
            return same_source and done.images == self.images and _size(path) == done.num_bytes
        except FileNotFoundError:
            return False

    def __call__(self, source: str) -> tuple[int, str | None]:
        """Write one joined shard and the note about it; return the number of samples and what went wrong in reading."""
        name = storage.file_name(source)
        problems: list[Skip] = []
        try:
            fingerprint = storage.fingerprint(source)
        except FileNotFoundError:
            return 0, "there is no such file"
        path = storage.join(self.spec.output, name)
        with (
            ImageIndex(self.index, self.spec.by, lock_seconds=self.spec.index_seconds) as index,
            closing(_ImageReader()) as reader,
        ):
            joined = _Shard(spec=self.spec, index=index, reader=reader, dropped=self.dropped)
            _write(path, joined.samples(read_shard(source, problems.append, self.spec.sample_limits)))
        done = JoinedShard(
            # A shard that broke off may do so for its connection: the next run tries again.
            source="" if problems else fingerprint,
            images=self.images,
            choices=self.spec.choices,
            num_bytes=_size(path),
            num_joined=joined.num_joined,
            num_captions=joined.num_captions,
            left_out=tuple(joined.left_out),
            numbers=tuple(joined.numbers),
        )
        write_ledger(self.spec.output, name, done)
        problem = f"{problems[0].reason}, {problems[0].detail}" if problems else None
        return joined.num_joined + len(joined.left_out), problem


@attrs.define(kw_only=True, eq=False)
class _Shard:
    """One reinforced shard on its way."""

    spec: JoinSpec
    index: ImageIndex
    reader: _ImageReader
    dropped: frozenset[int]
    num_joined: int = 0
    num_captions: int = 0
    keys: set[str] = attrs.field(factory=set)
    left_out: list[tuple[str, str]] = attrs.field(factory=list)
    numbers: list[int] = attrs.field(factory=list)

    def samples(self, samples: Iterator[RawSample]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield key and members of every sample that can be joined, in order."""
        for batch in iter(lambda: list(islice(samples, _SAMPLES_AT_ONCE)), []):
            names = [self._name(sample) for sample in batch]
            found = self.index.find([name for name in names if name])
            pairs = [(sample, found.get(storable(name))) for sample, name in zip(batch, names, strict=True)]
            for some in _portions(pairs):
                content = self.reader.read([image for _, image in some if image is not None])
                for sample, image in some:
                    members = self._usable(sample, image, content)
                    if members is not None:
                        yield sample.key, members

    def _name(self, sample: RawSample) -> str:
        if not _lacks_image(sample):
            return ""
        if self.spec.by != "url":
            return sample.key
        return sample.members.get("url.txt", b"").decode(errors="backslashreplace").strip()

    def _usable(self, sample: RawSample, image: IndexedImage | None, content: _Content) -> dict[str, bytes] | None:
        members = attempt(
            partial(self._members, sample, image, content),
            key=sample.key,
            shard=sample.shard,
            on_skip=lambda skip: self.left_out.append((skip.key, skip.reason)),
        )
        self.num_joined += members is not None
        return members

    def _members(self, sample: RawSample, image: IndexedImage | None, content: _Content) -> dict[str, bytes]:
        if image is not None:
            self.numbers.append(image.number)
        if sample.problem is not None:
            raise sample.problem
        check_key(sample.key)
        if not all(map(is_showable, sample.members)):
            raise BadSampleError("bad_member", "the name of a member has control characters")
        if sample.key in self.keys:
            raise BadSampleError("repeated_key", "another sample of the shard has its key")
        self.keys.add(sample.key)
        if not _lacks_image(sample):
            return sample.members
        if image is None:
            raise BadSampleError("no_image", "there is no image under its key")
        if image.hash in self.dropped:
            raise BadSampleError("placeholder", "its image stands under many keys")
        data, caption = content[image.number]
        check_joined(sample.members, data, decode=self.spec.check_images, limits=self.spec.sample_limits)
        members = {**sample.members, image.extension: data}
        if not has_caption(members, self.spec.sample_limits):
            if caption is None:
                raise BadSampleError("no_caption", "neither side has a caption")
            members["txt"] = caption
            self.num_captions += 1
        return members


def _lacks_image(sample: RawSample) -> bool:
    return not any(extension in sample.members for extension in IMAGE_EXTENSIONS)


def _portions(
    pairs: Sequence[tuple[RawSample, IndexedImage | None]],
) -> Iterator[list[tuple[RawSample, IndexedImage | None]]]:
    """Yield the samples in portions whose images fit into memory."""
    portion: list[tuple[RawSample, IndexedImage | None]] = []
    num_bytes = 0
    for sample, image in pairs:
        size = 0 if image is None else image.size
        if portion and num_bytes + size > _BYTES_AT_ONCE:
            yield portion
            portion, num_bytes = [], 0
        portion.append((sample, image))
        num_bytes += size
    if portion:
        yield portion


class _ImageReader:
    """Reads images by their place, in the order of the shards they are in, a few of which stay open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[ExitStack, IO[bytes]]] = OrderedDict()

    def read(self, images: Iterable[IndexedImage]) -> dict[int, tuple[bytes, bytes | None]]:
        """Return image and caption by the image's number.

        Raises:
            ValueError: if a shard is shorter than it was.
        """
        content: dict[int, tuple[bytes, bytes | None]] = {}
        for image in sorted(images, key=lambda one: (one.shard, one.start)):
            if image.number not in content:
                stream = self._stream(image.shard)
                data = _read_at(stream, image.start, image.size, image.shard)
                caption = None
                if image.text_start is not None and image.text_size is not None:
                    caption = _read_at(stream, image.text_start, image.text_size, image.shard)
                content[image.number] = (data, caption)
        return content

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


def _read_at(stream: IO[bytes], start: int, size: int, shard: str) -> bytes:
    stream.seek(start)
    content = read_up_to(stream, size)
    if len(content) < size:
        raise ValueError(f"{shard} has changed since its images were indexed; run again to have it indexed anew")
    return content


def _write(path: str, samples: Iterator[tuple[str, dict[str, bytes]]]) -> None:
    """Write a shard, or remove it where there is nothing to write."""
    first = next(samples, None)
    if first is None:
        storage.remove(path)
        return
    write_shard_members(path, chain([first], samples))


def _size(path: str) -> int | None:
    """Return the size of a file, None where there is none."""
    try:
        return storage.size(path)
    except FileNotFoundError:
        return None
