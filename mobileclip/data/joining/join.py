"""Joins reinforced shards, which are published without images, with shards that hold the images, by key.

The two may be sharded differently and in another order. One shard is written per reinforced shard, whole or not at all,
and a second run writes what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path

import attrs

from mobileclip import storage
from mobileclip.data.images.formats import IMAGE_EXTENSIONS
from mobileclip.data.joining.captions import Captioned, Captions, caption_shard
from mobileclip.data.joining.checks import Checked, check_joined, has_caption
from mobileclip.data.joining.comparison import stated_of
from mobileclip.data.joining.image_index import ImageIndex, IndexedImage, build_image_index
from mobileclip.data.joining.image_reader import Content, ImageReader, portions
from mobileclip.data.joining.image_scan import field_of, storable
from mobileclip.data.joining.report import LEDGER, JoinedShard, JoinReport, make_report, read_ledger, write_ledger
from mobileclip.data.joining.spec import INDEX, JoinSpec
from mobileclip.data.samples.sample import check_key, is_showable
from mobileclip.data.shards.card import card_of_shards, write_card
from mobileclip.data.shards.files import RawSample, expand_shards, read_shard, write_shard_members
from mobileclip.data.skips import BadSampleError, Skip, attempt
from mobileclip.data.workers import Mapper, workers
from mobileclip.progress import Progress
from mobileclip.terminal import console

_SAMPLES_AT_ONCE = 256


def join_images(spec: JoinSpec, *, show_progress: bool = True) -> JoinReport:
    """Write every joined shard that is missing, `join.json` with the report, and `missing.txt` with what was left out.

    A joined sample has all members of the reinforced one as they are, and the image. Where it has no caption, it gets
    the one of the captions' shard, or else the one beside the image. A reinforced sample with an image of its own stays
    as it is.

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
        problems, stopped = _join(job, sources, share, show_progress=show_progress)
        report = make_report(
            spec.output,
            tuple(sources),
            index,
            placeholders=tuple(placeholders.values()),
            unfinished=problems,
            min_share=spec.min_share,
            stopped=stopped,
        )
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


def _join(
    job: _Job, sources: Mapping[str, str], share: Mapper, *, show_progress: bool
) -> tuple[dict[str, str], str | None]:
    """Join what is pending; return the problems by shard, and the name of a first shard after which it was stopped."""
    pending = [source for name, source in sources.items() if not job.finished(name, source)]
    problems: dict[str, str] = {}
    with Progress(
        "joining",
        total=len(sources),
        done=len(sources) - len(pending),
        console=console(shown=show_progress and bool(pending)),
    ) as progress:

        def run(some: Sequence[str]) -> None:
            for source, (count, problem) in zip(some, share(job, some, doing="joining"), strict=True):
                progress.advance(count=count)
                if problem is not None:
                    problems[source] = problem

        for number, (name, source) in enumerate(sources.items()):
            if job.spec.go_on:
                break
            if source in pending:
                run([source])
                pending.remove(source)
            done = read_ledger(job.spec.output, name)
            if done is not None and done.num_samples:
                if not done.num_joined and number + 1 < len(sources):
                    return problems, name
                break
        run(pending)
    return problems, None


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
            same_inputs = same_source and done.images == self.images and done.captions == self._captions_print(name)
            return same_inputs and _size(path) == done.num_bytes
        except FileNotFoundError:
            return False

    def _captions_print(self, name: str) -> str:
        shard = caption_shard(self.spec.captions, name)
        return "" if shard is None else storage.fingerprint(shard)

    def __call__(self, source: str) -> tuple[int, str | None]:
        """Write one joined shard and the note about it; return the number of samples and what went wrong in reading."""
        name = storage.file_name(source)
        problems: list[Skip] = []
        try:
            fingerprint = storage.fingerprint(source)
        except FileNotFoundError:
            return 0, "there is no such file"
        try:
            captions_print = self._captions_print(name)
        except FileNotFoundError:
            return 0, f"there is no {caption_shard(self.spec.captions, name)} with its captions"
        captions = Captions(caption_shard(self.spec.captions, name), problems.append, self.spec.sample_limits)
        path = storage.join(self.spec.output, name)
        with (
            ImageIndex(self.index, self.spec.by, lock_seconds=self.spec.index_seconds) as index,
            closing(ImageReader()) as reader,
        ):
            joined = _Shard(spec=self.spec, index=index, reader=reader, dropped=self.dropped, captions=captions)
            _write(path, joined.samples(read_shard(source, problems.append, self.spec.sample_limits)))
        done = JoinedShard(
            # A shard that broke off may do so for its connection: the next run tries again.
            source="" if problems else fingerprint,
            images=self.images,
            captions=captions_print,
            choices=self.spec.choices,
            num_bytes=_size(path),
            num_joined=joined.num_joined,
            num_captions=joined.num_captions,
            num_set_captions=joined.num_set_captions,
            likeness=dict(sorted(joined.likeness.items())),
            other=tuple(joined.other),
            reach=sum(joined.reaches) / len(joined.reaches) if joined.reaches else None,
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
    reader: ImageReader
    dropped: frozenset[int]
    captions: Captions
    num_joined: int = 0
    num_captions: int = 0
    num_set_captions: int = 0
    likeness: Counter[str] = attrs.field(factory=Counter)
    other: list[str] = attrs.field(factory=list)
    reaches: list[float] = attrs.field(factory=list)
    keys: set[str] = attrs.field(factory=set)
    left_out: list[tuple[str, str]] = attrs.field(factory=list)
    numbers: list[int] = attrs.field(factory=list)

    def samples(self, samples: Iterator[RawSample]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield key and members of every sample that can be joined, in order."""
        for batch in iter(lambda: list(islice(samples, _SAMPLES_AT_ONCE)), []):
            names = [self._name(sample) for sample in batch]
            found = self.index.find([name for name in names if name])
            pairs = [(sample, found.get(storable(name))) for sample, name in zip(batch, names, strict=True)]
            for some in portions(pairs):
                content = self.reader.read([image for _, image in some if image is not None])
                for sample, image in some:
                    members = self._usable(sample, image, content)
                    if members is not None:
                        yield sample.key, members

    def _name(self, sample: RawSample) -> str:
        if not _lacks_image(sample):
            return ""
        if self.spec.by == "url":
            return sample.members.get("url.txt", b"").decode(errors="backslashreplace").strip()
        own = None
        if self.spec.by != "key":
            own = field_of(sample.members.get("json"), self.spec.by, self.spec.sample_limits)
        return sample.key if own is None else own

    def _usable(self, sample: RawSample, image: IndexedImage | None, content: Content) -> dict[str, bytes] | None:
        members = attempt(
            partial(self._members, sample, image, content),
            key=sample.key,
            shard=sample.shard,
            on_skip=lambda skip: self.left_out.append((skip.key, skip.reason)),
        )
        self.num_joined += members is not None
        return members

    def _members(self, sample: RawSample, image: IndexedImage | None, content: Content) -> dict[str, bytes]:
        if image is not None:
            self.numbers.append(image.number)
        self._enter(sample)
        if not _lacks_image(sample):
            return sample.members
        if image is None:
            raise BadSampleError("no_image", "there is no image under its key")
        if image.hash in self.dropped:
            raise BadSampleError("placeholder", "its image stands under many keys")
        data, beside_text, beside = content[image.number]
        stated = stated_of(sample.members.get("json"), self.spec.sample_limits)
        known = self.captions.find(sample.key, stated)
        checked = check_joined(
            sample.members,
            data,
            stated={} if known is None else known.stated,
            beside=beside,
            keep_other=self.spec.keep_other,
            decode=self.spec.check_images,
            limits=self.spec.sample_limits,
        )
        members = {**sample.members, image.extension: data}
        if not has_caption(members, self.spec.sample_limits):
            members["txt"] = self._caption(known, beside_text)
        self._note(sample.key, checked)
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

    def _note(self, key: str, checked: Checked) -> None:
        self.likeness[checked.likeness] += 1
        if checked.likeness == "other":
            self.other.append(key)
        if checked.reach is not None:
            self.reaches.append(checked.reach)


def _lacks_image(sample: RawSample) -> bool:
    return not any(extension in sample.members for extension in IMAGE_EXTENSIONS)


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
