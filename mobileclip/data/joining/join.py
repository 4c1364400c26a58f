"""Joins reinforced shards, which are published without images, with shards that hold the images, by key.

The two may be sharded differently and in another order. One shard is written per reinforced shard, whole or not at all,
and a second run writes what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.buckets import scratch_folder
from mobileclip.data.joining.captions import caption_shards
from mobileclip.data.joining.image_index import ImageIndex, build_image_index, digest_of, sample_names
from mobileclip.data.joining.joined_shard import ShardJoin, ShardTask
from mobileclip.data.joining.matching import MATCH, MatchCounts, Matches
from mobileclip.data.joining.placeholders import Placeholder, find_placeholders
from mobileclip.data.joining.records import AboutShard
from mobileclip.data.joining.report import LEDGER, JoinReport, make_report, read_ledger, read_ledgers
from mobileclip.data.joining.spec import INDEX, JoinSpec
from mobileclip.data.shards.card import card_of_shards, write_card
from mobileclip.data.shards.files import expand_shards, runs_program
from mobileclip.data.sources.shards import listed_fingerprints, output_names
from mobileclip.data.workers import Mapper, workers
from mobileclip.progress import Progress
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict
from mobileclip.terminal import console

_MOST_SUMMARY_BYTES = 2**28


@attrs.frozen(kw_only=True, field_transformer=strict)
class _Summary:
    """What was found out of all images and samples, kept beside the index for runs that have nothing left to do."""

    counts: MatchCounts
    placeholders: tuple[Placeholder, ...]


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
    folder = Path(spec.output) / INDEX if spec.index is None else Path(spec.index)
    card = card_of_shards(list(sources.values()))
    for directory in (spec.output, storage.join(spec.output, LEDGER)):
        storage.make_directory(directory)
    with workers(spec.num_workers, shard_seconds=spec.shard_seconds) as share, scratch_folder(folder) as scratch:
        index = build_image_index(
            folder,
            expand_shards(spec.images),
            by=spec.by,
            hashed=spec.placeholder_threshold > 0,
            share=share,
            show_progress=show_progress,
            limits=spec.sample_limits,
        )
        job = _Job(spec=spec, sources=sources, index=index, share=share, scratch=scratch, show_progress=show_progress)
        summary, problems, stopped = job.run()
        report = make_report(
            spec.output,
            tuple(sources),
            index.counts(num_keys=summary.counts.keys, num_repeated_keys=summary.counts.repeated_keys),
            repeated_samples=summary.counts.asked - summary.counts.used_keys,
            unused_keys=summary.counts.keys - summary.counts.used_keys,
            placeholders=summary.placeholders,
            unfinished=problems,
            min_share=spec.min_share,
            stopped=stopped,
            image_example="" if stopped is None else index.example(),
        )
    if card is not None:
        card = attrs.evolve(card, num_shards=report.shards, num_samples=report.joined, num_bytes=report.num_bytes)
        write_card(spec.output, attrs.evolve(card, skipped=report.left_out))
    return report


def _sources(spec: JoinSpec) -> dict[str, str]:
    """Return the reinforced shards by the names of the joined ones."""
    sources: dict[str, str] = {}
    paths = expand_shards(spec.reinforced)
    for source, name in zip(paths, output_names(paths), strict=True):
        if runs_program(source):
            raise ValueError(f"{source} is what a program writes; a join reads shards twice: give files or addresses")
        if name in sources:
            raise ValueError(f"{sources[name]} and {source} have the same name; name each shard once")
        if storage.is_same(source, storage.join(spec.output, name)):
            raise ValueError(f"the output would replace {source}; choose another directory")
        sources[name] = source
    return sources


@attrs.frozen(kw_only=True, eq=False)
class _Job:
    """A join, once its images are indexed."""

    spec: JoinSpec
    sources: Mapping[str, str]
    index: ImageIndex
    share: Mapper
    scratch: Path
    show_progress: bool

    def run(self) -> tuple[_Summary, dict[str, str], str | None]:
        """Return what was found, problems by shard, and the first shard if the join stopped after it."""
        captions = caption_shards(self.spec.captions, list(self.sources))
        prints = listed_fingerprints({*self.sources.values(), *filter(None, captions.values())})
        pending = set(self._pending(captions, prints))
        there = {source: prints[source] for source in self.sources.values() if source in prints}
        path = self._summary_path(there)
        summary = _read_summary(path)
        if summary is not None and not pending:
            return summary, {}, None
        read = sample_names(
            self.index.folder,
            there,
            by=self.spec.by,
            share=self.share,
            show_progress=self.show_progress,
            limits=self.spec.sample_limits,
        )
        names = {name: read[source] for name, source in self.sources.items() if source in read}
        total = len(self.index.shards) + len(names)
        with Progress("matching", total=total, unit="keys", console=console(shown=self.show_progress)) as progress:
            matches = Matches(
                self.index,
                list(names.values()),
                np.array([name in pending for name in names], bool),
                scratch=self.scratch,
                progress=progress,
            )
        with closing(matches):
            placeholders = self._placeholders() if summary is None else summary.placeholders
            summary = _Summary(counts=matches.counts, placeholders=placeholders)
            if not any(about.problem for about in names.values()):
                storage.write_text(path, to_json(summary) + "\n")
            images = self.index.fingerprint()
            numbers = frozenset(int(one.sha256, 16) for one in placeholders)
            join = ShardJoin(
                spec=self.spec, images=images, dropped=numbers if self.spec.drop_placeholders else frozenset()
            )
            tasks = self._tasks(pending, captions, prints, matches, names)
            return summary, *self._join(join, tasks, pending)

    def _pending(self, captions: Mapping[str, str | None], prints: Mapping[str, str]) -> Iterator[str]:
        """Yield the names of the shards that no earlier run joined from these very inputs.

        Raises:
            ValueError: if one did with other choices.
        """
        images, sizes = self.index.fingerprint(), dict[str, int | None]()
        for folder in dict.fromkeys(name.rpartition("/")[0] for name in self.sources):
            found = storage.find_sizes(storage.join(self.spec.output, folder) if folder else self.spec.output)
            sizes |= {f"{folder}/{name}" if folder else name: size for name, size in found.items()}
        for name, done in read_ledgers(self.spec.output, list(self.sources)):
            if done is not None and done.choices != self.spec.choices:
                raise ValueError(
                    f"{self.spec.output} was joined with other choices ({done.choices}, now {self.spec.choices}); "
                    "choose another output, or delete it to start again"
                )
            now = (prints.get(self.sources[name]), images, prints.get(captions[name] or "", ""), sizes.get(name))
            if done is None or (done.source, done.images, done.captions, done.num_bytes) != now:
                yield name

    def _placeholders(self) -> tuple[Placeholder, ...]:
        threshold = self.spec.placeholder_threshold
        return find_placeholders(self.index, threshold, self.scratch) if threshold else ()

    def _summary_path(self, sources: Mapping[str, str]) -> Path:
        parts = [self.index.fingerprint(), self.spec.by, self.spec.placeholder_threshold, *sources.items()]
        return self.index.folder / f"summary-{digest_of(parts)}.json"

    def _tasks(
        self,
        pending: set[str],
        captions: Mapping[str, str | None],
        prints: Mapping[str, str],
        matches: Matches,
        names: Mapping[str, AboutShard],
    ) -> Iterator[ShardTask]:
        """Yield what is to be done, in the order of the sources."""
        ordered = list(names)
        found = matches.by_source()
        source_number, some = next(found, (-1, np.empty(0, MATCH)))
        for name in self.sources:
            if name not in pending:
                continue
            own = np.empty(0, MATCH)
            if source_number >= 0 and ordered[source_number] == name:
                own = some
                source_number, some = next(found, (-1, np.empty(0, MATCH)))
            source, theirs = self.sources[name], captions[name]
            numbers = np.unique(own["shard"]).tolist()
            yield ShardTask(
                name=name,
                source=source,
                fingerprint=prints.get(source),
                problem=names[name].problem if name in names else None,
                captions=theirs,
                captions_print=None if theirs is None else prints.get(theirs),
                matches=own,
                shards={number: self.index.shards[number].shard for number in numbers},
                prints={number: self.index.shards[number].fingerprint for number in numbers},
            )

    def _join(
        self, join: ShardJoin, tasks: Iterator[ShardTask], pending: set[str]
    ) -> tuple[dict[str, str], str | None]:
        problems: dict[str, str] = {}
        with Progress(
            "joining",
            total=len(self.sources),
            done=len(self.sources) - len(pending),
            console=console(shown=self.show_progress and bool(pending)),
        ) as progress:

            def run(some: Iterable[ShardTask]) -> None:
                for source, count, problem in self.share(join, some, doing="joining"):
                    progress.advance(count=count)
                    if problem is not None:
                        problems[source] = problem

            for number, name in enumerate(self.sources):
                if self.spec.go_on:
                    break
                if name in pending:
                    run(islice(tasks, 1))
                done = read_ledger(self.spec.output, name)
                if done is not None and done.num_samples:
                    if not done.num_joined and number + 1 < len(self.sources):
                        return problems, name
                    break
            run(tasks)
        return problems, None


def _read_summary(path: Path) -> _Summary | None:
    """Return what an earlier run kept, None where it did not, or in another form."""
    try:
        return from_json(storage.read_bytes(path, limit=_MOST_SUMMARY_BYTES).decode(), _Summary)
    except (OSError, ValueError):
        return None
