"""The reinforcement job: reads a source, and writes shards with stored augmentations and teacher embeddings.

A shard is the unit of work: the job writes each shard atomically and lists the finished shard in the manifest, so that
later runs skip this shard. The stored data depends only on the spec and the source, not on the engine, the number or
order of workers, or interruptions.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

import attrs

from mobileclip import storage
from mobileclip.data import ViewAgreement, read_card, write_card
from mobileclip.datasets import Unit
from mobileclip.engines import Engine, InlineEngine, Listener, LocalEngine, Run, SetAside, held
from mobileclip.progress import Progress
from mobileclip.reinforce.captioners import Captioner
from mobileclip.reinforce.encoding import CHANGED_BY, LOW_AGREEMENT
from mobileclip.reinforce.manifest import (
    Manifest,
    ShardEntry,
    close_card,
    pending_units,
    refuse_other_choices,
    refuse_own_input,
)
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble
from mobileclip.reinforce.worker import ReinforcementWork
from mobileclip.terminal import console, get_logger, say

logger = get_logger(__name__)

# Counting samples reads every shard's headers; with more shards than this number, the progress bar counts shards.
_MAX_COUNTED = 256


@attrs.frozen(kw_only=True)
class ReinforcementReport:
    """The report of a reinforcement: shards, samples, skips and time.

    Args:
        shards: paths or URLs of all reinforced shards, including the shards of earlier runs.
        num_samples: number of samples in all reinforced shards.
        num_bytes: total size of all reinforced shards, in bytes.
        skipped: number of skipped samples by reason.
        num_done_before: number of shards that earlier runs finished.
        set_aside: failed shards and their reasons; the next run tries these shards again.
        seconds: duration of this run, in seconds.
        samples_per_second: number of samples per second in this run.
        agreement: agreement of the teachers on the stored views of the first shard; None without a measurement.
    """

    shards: tuple[str, ...]
    num_samples: int
    num_bytes: int
    skipped: Mapping[str, int]
    num_done_before: int = 0
    seconds: float = 0.0
    samples_per_second: float = 0.0
    agreement: ViewAgreement | None = None
    set_aside: tuple[SetAside, ...] = ()

    def __str__(self) -> str:
        skipped = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items()) or "none"
        aside = f"; {len(self.set_aside)} shards set aside" if self.set_aside else ""
        return f"{self.num_samples} samples in {len(self.shards)} reinforced shards, skipped: {skipped}{aside}"


def reinforce(
    spec: ReinforcementSpec,
    *,
    engine: Engine | None = None,
    teachers: TeacherEnsemble | None = None,
    captioner: Captioner | None = None,
    show_progress: bool = True,
) -> ReinforcementReport:
    """Reinforce all remaining units of the source.

    The job samples and applies `num_augmentations` augmentations per image. Every teacher encodes the augmented images,
    and encodes all real and synthetic captions once. Equal specs give equal files, even after interruptions.

    If all tries of a unit fail (see `Retries`), the run lists the unit in `set_aside.jsonl` and continues; the next run
    tries the unit again.

    Args:
        spec: options of the reinforcement.
        engine: engine that runs the workers; None for this machine, with one process per GPU.
        teachers: loaded teachers to use instead of the spec's teachers, in this process; None for the spec's teachers.
        captioner: loaded captioner to use instead of the spec's captioner, in this process; None for the spec's
            captioner.
        show_progress: whether to show a progress bar with speed, remaining time and written bytes.

    Raises:
        ValueError: if the source has no units, or two units with the same shard name; if there are neither teachers nor
            a captioner; if `output` was written with different options or teachers, or is locked by another job; if
            the disk is full; if a teacher's embeddings cannot be stored; or if no sample is stored.

    Source: MobileCLIP, section 4.
    """
    started = time.monotonic()
    is_loaded = teachers is not None or captioner is not None
    engine = engine or (InlineEngine() if is_loaded else LocalEngine())
    if is_loaded and not isinstance(engine, InlineEngine):
        raise ValueError("loaded teachers only work in this process; leave engine out, or set it to an InlineEngine")
    units: dict[str, Unit] = {unit.name: unit for unit in spec.units()}
    refuse_own_input(spec, tuple(units.values()))
    first = next(iter(units))
    work = ReinforcementWork(spec=spec, teachers=teachers, captioner=captioner, measured=first)
    with held(spec.output, engine) as run:
        manifest = Manifest(spec.output)
        is_known = refuse_other_choices(spec)
        pending = pending_units(spec, tuple(units.values()), manifest) if is_known else list(units.values())
        num_done_before = len(units) - len(pending)
        try:
            run.begin("reinforcing", num_units=len(units), num_done_before=num_done_before)
            done = _do(run, work, pending, manifest=manifest, show_progress=show_progress)
            entries = [manifest[name] for name in units if name in manifest]
            report = _report(spec.output, entries, run.set_aside, num_units=len(units))
        except BaseException:
            # The output has a card but no shards; without the card, a job with different options can use the output.
            if not is_known and not any(entry.num_samples for entry in manifest.entries()):
                with suppress(OSError):  # the error that ended the run matters more
                    close_card(spec)
            raise
        _count(spec.output, report)
    seconds = time.monotonic() - started
    return attrs.evolve(
        report,
        num_done_before=num_done_before,
        seconds=seconds,
        samples_per_second=done.num_samples / max(seconds, 1e-9),
    )


def _report(
    output: str, entries: Sequence[ShardEntry], set_aside: tuple[SetAside, ...], *, num_units: int
) -> ReinforcementReport:
    """Return the report of the stored shards; raise an error if there are no shards."""
    report = ReinforcementReport(
        shards=tuple(storage.join(output, entry.shard) for entry in entries if entry.num_samples),
        num_samples=sum(entry.num_samples for entry in entries),
        num_bytes=sum(entry.num_bytes for entry in entries),
        skipped=dict(sorted(sum((Counter(entry.skipped) for entry in entries), Counter[str]()).items())),
        agreement=next((entry.agreement for entry in entries if entry.agreement is not None), None),
        set_aside=set_aside,
    )
    if not report.num_samples:
        why = "".join(f"; {aside.unit}: {aside.reason}" for aside in set_aside[:1])
        raise ValueError(f"no sample of {num_units} shards can be reinforced: {report}{why}")
    return report


@attrs.define(kw_only=True, eq=False)
class _Done(Listener[Unit, ShardEntry]):
    """Adds finished shards to the manifest, and updates the progress display.

    Args:
        manifest: manifest of the output.
        progress: the progress display.
        by_sample: whether a progress step is a sample instead of a shard.
        aloud: whether to print the agreement.
    """

    manifest: Manifest
    progress: Progress
    by_sample: bool
    aloud: bool
    num_samples: int = 0
    num_bytes: int = 0

    def advanced(self, count: int) -> None:
        self._show(count if self.by_sample else 0, count)

    def finished(self, unit: Unit, entry: ShardEntry) -> None:  # noqa: ARG002 - the entry names it
        before = self.manifest[entry.shard] if entry.attempts > 1 else None
        self.manifest.add(entry)
        if entry.agreement is not None:
            _tell(entry.agreement, aloud=self.aloud)
        self.num_samples += entry.num_samples - (before.num_samples if before is not None else 0)
        self.num_bytes += entry.num_bytes
        self._show(sum(entry.skipped.values()) if self.by_sample else 1, 0)

    def _show(self, steps: int, count: int) -> None:
        from rich.filesize import decimal

        if steps or count:
            self.progress.advance(steps, count=count, detail=f"{decimal(self.num_bytes)} written")


def _do(
    run: Run,
    work: ReinforcementWork,
    pending: Sequence[Unit],
    *,
    manifest: Manifest,
    show_progress: bool,
) -> _Done:
    """Run the pending units, and add every finished shard to the manifest."""
    counts = [unit.count() for unit in pending] if show_progress and len(pending) <= _MAX_COUNTED else [None]
    by_sample = None not in counts
    total = sum(count or 0 for count in counts) if by_sample else len(pending)
    with Progress("reinforcing", total=total, console=console(shown=show_progress and bool(pending))) as progress:
        done = _Done(manifest=manifest, progress=progress, by_sample=by_sample, aloud=show_progress)
        try:
            run.do(work, pending, done)
        finally:
            manifest.close()
    return done


def _tell(agreement: ViewAgreement, *, aloud: bool) -> None:
    if aloud:
        say(agreement)
    if agreement.agreement < LOW_AGREEMENT:
        logger.warning(
            "the teachers recognise only %.0f %% of the stored views as the original image, so a student learns little "
            "from these views; %s; choose a different output for the new options",
            100 * agreement.agreement,
            CHANGED_BY,
        )


def _count(output: str, report: ReinforcementReport) -> None:
    card = read_card(output)
    names = ("num_samples", "num_bytes", "skipped", "agreement")
    counts = {name: getattr(report, name) for name in names}
    counted = attrs.evolve(card, num_shards=len(report.shards), **counts)
    if attrs.asdict(counted) != attrs.asdict(card):
        write_card(output, counted)
