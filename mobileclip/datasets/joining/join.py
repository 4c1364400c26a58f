"""Joins reinforced shards with shards of images by key.

The shards of reinforced samples and images may differ in number and order. The join writes one shard per reinforced
shard, atomically, and a second run resumes the first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.buckets import scratch_folder
from mobileclip.data.shards.files import expand_shards, runs_program
from mobileclip.data.shards.sidecars import card_of_shards, write_card
from mobileclip.datasets.joining.index import build_image_index, digest_of
from mobileclip.datasets.joining.joined_shard import JoinUnit, ShardJoin
from mobileclip.datasets.joining.matching import Matches, match_images
from mobileclip.datasets.joining.report import LEDGER, IndexCounts, JoinReport, read_ledger, read_ledgers, write_report
from mobileclip.datasets.joining.spec import INDEX, JoinSpec
from mobileclip.datasets.sources.shards import listed_fingerprints, output_names
from mobileclip.engines import Engine, FunctionWork, InlineEngine, ResultCallback, Run, SetAside, held
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import Progress
from mobileclip.serialization import from_json, to_json
from mobileclip.terminal import console

_MOST_SUMMARY_BYTES = 2**28
_MATCHES = "matches"


def join_images(spec: JoinSpec, *, engine: Engine | None = None, show_progress: bool = True) -> JoinReport:
    """Write all missing joined shards, `join.json` with the report, and tables with one row per sample.

    A joined sample has the unchanged members of the reinforced sample, and the image. A sample without a caption gets
    the caption from the shard of captions, or from the image's sample. A reinforced sample with an image stays
    unchanged.

    If a shard fails all retries, the join adds the shard to the list of failed units, `set_aside.jsonl` in the output.

    Args:
        spec: the options.
        engine: engine that reads and joins the shards; None for this process. The output does not depend on the engine.
            The workers of the engine need access to the index folder.
        show_progress: whether to show bars with speed and remaining time.

    Raises:
        ValueError: if there are no shards, two shards have the same name, the output has shards joined with other
            options, another job has locked the output, or no image can be read.
        OSError: if the output cannot be written.
        ImportError: if Apache Arrow is not installed (extra `parquet`).
    """
    with needed("the join", "parquet"):
        import pyarrow as pa  # noqa: F401 - before anything is read
    sources = _sources(spec)
    card = card_of_shards(list(sources.values()))
    storage.make_directory(storage.join(spec.output, LEDGER))
    folder = Path(spec.output) / INDEX if spec.index is None else Path(spec.index)
    with (
        (engine or InlineEngine(device="cpu")).reuse_workers() as reusing,
        held(spec.output, reusing) as run,
        scratch_folder(folder) as scratch,
    ):
        job = _Job(spec, sources, run=run, folder=folder, scratch=scratch, show_progress=show_progress)
        found, stopped = job.run_all()
        if stopped is not None:
            run.end(f"no sample of the first shard, {storage.printable(stopped)}, was joined")
        counts, shards = found.counts, job.index.shards
        first = next(number for number, about in enumerate(shards) if about.num_records)
        report = JoinReport(
            output=spec.output,
            images=IndexCounts(
                shards=sum(about.num_records > 0 or about.problem is None for about in shards),
                images=job.index.num_images,
                keys=counts.keys,
                repeated_keys=counts.repeated_keys,
                without_field=sum(about.num_without for about in shards),
                unreadable={about.shard: about.problem for about in shards if about.problem is not None},
            ),
            repeated_samples=counts.matched_samples - counts.used_keys,
            unused_keys=counts.keys - counts.used_keys,
            placeholders=found.placeholders,
            unfinished={sources[aside.unit]: aside.reason for aside in run.set_aside if aside.unit in sources},
            min_share=spec.min_share,
            stopped=stopped,
            examples=("", "" if stopped is None else storage.printable(job.index.name_at(first, 0))),
        )
        report = write_report(report, tuple(sources))
    if card is not None:
        card = attrs.evolve(card, num_shards=report.shards, num_samples=report.joined, num_bytes=report.num_bytes)
        write_card(spec.output, attrs.evolve(card, skipped=report.left_out))
    return report


def _sources(spec: JoinSpec) -> dict[str, str]:
    """Return the path of each reinforced shard, by the name of the joined shard."""
    sources: dict[str, str] = {}
    paths = expand_shards(spec.reinforced)
    for source, name in zip(paths, output_names(paths), strict=True):
        if runs_program(source):
            raise ValueError(
                f"{source} is the output of a program, but a join reads shards twice; expected files or URLs"
            )
        if name in sources:
            raise ValueError(f"{sources[name]} and {source} have the same name; pass each shard once")
        if storage.is_same(source, storage.join(spec.output, name)):
            raise ValueError(f"the output would replace {source}; choose another directory")
        sources[name] = source
    return sources


def _caption_shards(captions: str | None, names: Sequence[str]) -> dict[str, str | None]:
    """Return the path of the caption shard for each shard name; None for a join without captions.

    Raises:
        ValueError: if the pattern does not match exactly one shard for each name.
    """
    if captions is None:
        return dict.fromkeys(names)
    if not captions.endswith(".tar"):
        return {name: storage.join(captions, name) for name in names}
    shards: dict[str, list[str]] = {storage.file_name(name): [] for name in names}
    for shard in expand_shards(captions):
        shards.get(storage.file_name(shard), []).append(shard)
    for name, found in shards.items():
        if len(found) != 1:
            raise ValueError(
                f"{len(found)} of the shards {captions} have the name {name}, expected one: "
                "captions come from the shard of the same name"
            )
    return {name: shards[storage.file_name(name)][0] for name in names}


class _Job:
    """One run of a join: indexes new shards, then joins reinforced samples and images.

    Args:
        spec: the options.
        sources: path of each reinforced shard, by the name of the joined shard.
        run: engine run that reads and joins the shards.
        folder: folder of the index.
        scratch: folder for temporary files.
        show_progress: whether to show progress bars.
    """

    def __init__(
        self, spec: JoinSpec, sources: Mapping[str, str], *, run: Run, folder: Path, scratch: Path, show_progress: bool
    ) -> None:
        self.spec, self.sources, self.run, self.scratch = spec, sources, run, scratch
        self.show_progress = show_progress
        self.captions = _caption_shards(spec.captions, list(sources))
        self.prints = prints = listed_fingerprints({*sources.values(), *filter(None, self.captions.values())})
        there = {source: prints[source] for source in sources.values() if source in prints}
        self.index, abouts = build_image_index(run, folder, spec, there, show_progress=show_progress)
        self.images = self.index.fingerprint()
        # Metadata of the sample names of each existing shard.
        self.names = {name: abouts[source] for name, source in sources.items() if source in abouts}

    def run_all(self) -> tuple[Matches, str | None]:
        """Join missing shards; return the matches, and the first shard's name if the join stopped early."""
        pending = set(self._pending())
        there = [(about.shard, self.prints[about.shard]) for about in self.names.values()]
        parts = [self.images, self.spec.by, self.spec.placeholder_threshold, *there]
        # Stored next to the index, for runs without pending shards.
        path = self.index.folder / f"summary-{digest_of(parts)}.json"
        found = None if pending else _read_matches(path)
        if found is not None:
            self.run.begin("joining", num_units=len(self.sources), num_done_before=len(self.sources))
            return found, None
        self.run.begin("matching", then=("joining",))
        total = len(self.index.shards) + len(self.names)
        with Progress("matching", total=total, unit="keys", console=console(shown=self.show_progress)) as progress:
            found, extents = match_images(
                self.index,
                list(self.names.values()),
                np.array([name in pending for name in self.names], bool),
                self.scratch / _MATCHES,
                threshold=self.spec.placeholder_threshold,
                progress=progress,
            )
        if not any(about.problem for about in self.names.values()):
            storage.write_text(path, to_json(found) + "\n")
        return found, self._join(pending, found, extents)

    def _pending(self) -> Iterator[str]:
        """Yield the names of the shards that no earlier run joined from the same inputs.

        Raises:
            ValueError: if an earlier run joined a shard with other options.
        """
        sizes = storage.find_sizes(self.spec.output, self.sources)
        for name, done in read_ledgers(self.spec.output, list(self.sources)):
            if done is not None and done.choices != self.spec.choices:
                raise ValueError(
                    f"{self.spec.output} was joined with other options ({done.choices}, now {self.spec.choices}); "
                    "choose another output, or delete the output to start again"
                )
            captions = self.prints.get(self.captions[name] or "", "")
            now = (self.prints.get(self.sources[name]), self.images, captions, sizes.get(name))
            if done is None or (done.source, done.images, done.captions, done.num_bytes) != now:
                yield name

    def _join(self, pending: Collection[str], found: Matches, extents: Mapping[int, tuple[int, int]]) -> str | None:
        """Join the pending shards; if the first shard has no match, stop and return the name of the first shard."""
        dropped = (int(one.sha256, 16) for one in found.placeholders) if self.spec.drop_placeholders else ()
        join = ShardJoin(
            spec=self.spec,
            images=self.images,
            matches=self.scratch / _MATCHES,
            shards=tuple((about.shard, about.fingerprint) for about in self.index.shards),
            dropped=frozenset(dropped),
        )
        total = len(self.sources)
        self.run.begin("joining", num_units=total, num_done_before=total - len(pending))
        units, work = self._units(pending, extents), FunctionWork(function=join)
        screen = console(shown=self.show_progress and bool(pending))
        with Progress("joining", total=total, done=total - len(pending), console=screen) as progress:
            progress.advance(len(pending) - len(units), count=0)
            joined = ResultCallback[JoinUnit, int](
                lambda _, result: progress.advance(count=0 if isinstance(result, SetAside) else result)
            )
            for number, name in enumerate(() if self.spec.continue_on_mismatch else self.sources):
                if name in units:
                    self.run.do(work, [units.pop(name)], joined)
                done = read_ledger(self.spec.output, name)
                if done is not None and done.num_samples:
                    if not done.num_joined and number + 1 < total:
                        return name
                    break
            self.run.do(work, list(units.values()), joined)
        return None

    def _units(self, pending: Collection[str], extents: Mapping[int, tuple[int, int]]) -> dict[str, JoinUnit]:
        """Return the units of the pending shards, in source order; mark shards with missing inputs as failed."""
        numbers = {name: number for number, name in enumerate(self.names)}
        units = {}
        for name, source in self.sources.items():
            captions = self.captions[name]
            if name not in pending:
                continue
            if name not in numbers:
                self.run.refuse(name, "there is no such file")
            elif captions is not None and captions not in self.prints:
                self.run.refuse(name, f"the shard of captions, {captions}, does not exist")
            else:
                units[name] = JoinUnit(
                    name=name,
                    source=source,
                    fingerprint=self.prints[source],
                    problem=self.names[name].problem,
                    captions=captions,
                    captions_print=self.prints.get(captions or "", ""),
                    matches=extents.get(numbers[name], (0, 0)),
                )
        return units


def _read_matches(path: Path) -> Matches | None:
    """Read the matches of an earlier run; None if the file is missing or has a different format."""
    try:
        return from_json(storage.read_bytes(path, limit=_MOST_SUMMARY_BYTES).decode(), Matches)
    except (OSError, ValueError) as error:
        raise_machine_fault(error)
        return None
