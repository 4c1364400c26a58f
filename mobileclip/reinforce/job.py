"""The reinforcement job: a source in, shards with stored augmentations and teachers' embeddings out.

A shard is the unit of work: it appears whole or not at all, is entered into the manifest, and is never done again. What
is stored depends on the spec and the source alone: not on the engine, the number of workers, their order, or on how
often the job was killed.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import attrs

from mobileclip import storage
from mobileclip.data import Unit, ViewAgreement, read_card, write_card
from mobileclip.progress import Progress
from mobileclip.reinforce.agreement import LOW_AGREEMENT, MeasuredUnit
from mobileclip.reinforce.engines import Engine, LocalEngine
from mobileclip.reinforce.manifest import Manifest, ShardEntry
from mobileclip.reinforce.provenance import refuse_other_choices
from mobileclip.reinforce.resume import pending_units, refuse_own_input
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.worker import STAGING
from mobileclip.terminal import console, get_logger, say

logger = get_logger(__name__)

# Counting reads every shard's headers; beyond so many shards progress is counted in shards.
_MAX_COUNTED = 256


@attrs.frozen(kw_only=True)
class ReinforcementReport:
    """What a job did.

    Args:
        shards: all reinforced shards, those of earlier runs included; paths or addresses.
        num_samples: samples in them.
        num_bytes: their size.
        skipped: samples left out, by reason.
        num_done_before: shards that an earlier run had finished.
        seconds: duration of this run.
        samples_per_second: of this run.
        agreement: how far the teachers recognise the stored views of the first shard; None where it was not measured.
    """

    shards: tuple[str, ...]
    num_samples: int
    num_bytes: int
    skipped: Mapping[str, int]
    num_done_before: int
    seconds: float
    samples_per_second: float
    agreement: ViewAgreement | None = None

    def __str__(self) -> str:
        skipped = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items()) or "none"
        return f"{self.num_samples} samples in {len(self.shards)} reinforced shards, skipped: {skipped}"


def reinforce(
    spec: ReinforcementSpec, *, engine: Engine | None = None, show_progress: bool = True
) -> ReinforcementReport:
    """Reinforce every unit of the source that is not reinforced yet.

    Per image, `num_augmentations` parameters are drawn and replayed, and every teacher encodes the results; all
    captions, real and synthetic, are encoded once. Equal specs give equal files, whatever was interrupted.

    Args:
        spec: the choices.
        engine: who does the work; None for this machine, with one process per GPU.
        show_progress: show a bar with the speed, the time left and the bytes written.

    Raises:
        ValueError: if the source has no units, two would become one shard, there are neither teachers nor a captioner,
            `output` was made with other choices or teachers, another job works in it, a shard cannot be written, or a
            teacher gives embeddings that cannot be stored.

    Source: section 4 of the paper.
    """
    started = time.monotonic()
    units: dict[str, Unit] = {unit.name: unit for unit in spec.source.units()}
    refuse_own_input(spec, tuple(units.values()))
    first = next(iter(units))
    with _claimed(spec.output):
        manifest = Manifest(spec.output)
        is_known = refuse_other_choices(spec)
        pending = pending_units(spec, tuple(units.values()), manifest) if is_known else list(units.values())
        pending = [MeasuredUnit.of(unit) if unit.name == first else unit for unit in pending]
        num_done = _run(spec, engine or LocalEngine(), pending, manifest, show_progress=show_progress)
        entries = [manifest[name] for name in units]
        report = ReinforcementReport(
            shards=tuple(storage.join(spec.output, entry.shard) for entry in entries if entry.num_samples),
            num_samples=sum(entry.num_samples for entry in entries),
            num_bytes=sum(entry.num_bytes for entry in entries),
            skipped=_skipped(entries),
            num_done_before=len(units) - len(pending),
            seconds=time.monotonic() - started,
            samples_per_second=num_done / max(time.monotonic() - started, 1e-9),
            agreement=entries[0].agreement,
        )
        if not report.num_samples:
            raise ValueError(f"not one sample of {len(units)} shards can be reinforced: {report}")
        _count(spec.output, report)
    return report


def _run(
    spec: ReinforcementSpec, engine: Engine, pending: Sequence[Unit], manifest: Manifest, *, show_progress: bool
) -> int:
    """Have the engine do what is pending, enter every shard as it is finished, and return the number of samples."""
    from rich.filesize import decimal

    if not pending:
        return 0
    counts = [unit.count() for unit in pending] if show_progress and len(pending) <= _MAX_COUNTED else [None]
    by_sample = None not in counts
    total = sum(count or 0 for count in counts) if by_sample else len(pending)
    num_samples = num_bytes = 0
    with Progress("reinforcing", total=total, console=console(shown=show_progress)) as progress:

        def on_samples(count: int) -> None:
            progress.advance(count if by_sample else 0, count=count, detail=f"{decimal(num_bytes)} written")

        try:
            # Closed before the output is tidied up: its processes write there until then.
            with closing(engine.run(spec, pending, on_samples)) as entries:
                for entry in entries:
                    manifest.add(entry)
                    if entry.agreement is not None:
                        _tell(entry.agreement, aloud=show_progress)
                    num_samples += entry.num_samples
                    num_bytes += entry.num_bytes
                    steps = sum(entry.skipped.values()) if by_sample else 1
                    if steps:
                        progress.advance(steps, count=0, detail=f"{decimal(num_bytes)} written")
        finally:
            manifest.close()
    return num_samples


def _tell(agreement: ViewAgreement, *, aloud: bool) -> None:
    if aloud:
        say(agreement)
    if agreement.agreement < LOW_AGREEMENT:
        logger.warning(
            "the teachers take only %.0f %% of the stored views for the same as the plain picture, so a student learns "
            "little of what they know; try larger crops or fewer and weaker operations, in another output",
            100 * agreement.agreement,
        )


@contextmanager
def _claimed(output: str) -> Iterator[None]:
    """Keep a local output for this job alone, and clear away what a killed one left half done."""
    if storage.is_remote(output):
        yield
        return
    with storage.exclusive(Path(output)):
        shutil.rmtree(Path(output) / STAGING, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(Path(output) / STAGING, ignore_errors=True)


def _count(output: str, report: ReinforcementReport) -> None:
    card = read_card(output)
    counted = attrs.evolve(
        card,
        num_shards=len(report.shards),
        num_samples=report.num_samples,
        num_bytes=report.num_bytes,
        skipped=report.skipped,
        agreement=report.agreement,
    )
    if attrs.asdict(counted) != attrs.asdict(card):
        write_card(output, counted)


def _skipped(entries: Sequence[ShardEntry]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry.skipped)
    return dict(sorted(counts.items()))
