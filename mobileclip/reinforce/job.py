"""The reinforcement job: shards in, the same shards with stored augmentations and teachers' embeddings out.

A shard is the unit of work: it is written whole or not at all, entered into the card, and never done again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import attrs
import torch

from mobileclip.data import (
    ImageTextSample,
    ReinforcedSample,
    Skip,
    SkipReport,
    count_samples,
    expand_shards,
    read_samples,
    write_shard,
)
from mobileclip.data.sample import Layout
from mobileclip.progress import Progress, console
from mobileclip.reinforce.card import ReinforcementCard, ShardEntry, open_card, write_card
from mobileclip.reinforce.encoding import BatchEncoder, CaptionSource, own_captions
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble


@attrs.frozen(kw_only=True)
class ReinforcementReport:
    """What a job did.

    Args:
        shards: all reinforced shards, those of earlier runs included.
        num_samples: samples in them.
        skipped: samples left out, by reason.
        num_done_before: shards that an earlier run had finished.
        seconds: duration of this run.
        samples_per_second: of this run.
    """

    shards: tuple[Path, ...]
    num_samples: int
    skipped: Mapping[str, int]
    num_done_before: int
    seconds: float
    samples_per_second: float

    def __str__(self) -> str:
        skipped = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items()) or "none"
        return f"{self.num_samples} samples in {len(self.shards)} reinforced shards, skipped: {skipped}"


def reinforce(
    spec: ReinforcementSpec,
    teachers: TeacherEnsemble,
    *,
    captions: CaptionSource = own_captions,
    show_progress: bool = True,
) -> ReinforcementReport:
    """Reinforce every shard that is not reinforced yet.

    Per image, `num_augmentations` parameters are drawn and replayed, and every teacher encodes the results; all
    captions, real and synthetic, are encoded once. Equal arguments give equal files, whatever was interrupted.

    Args:
        spec: the choices.
        teachers: whose embeddings are stored.
        captions: what is written under an image: the real captions, and sets of synthetic ones by name, `syn_text` or
            `syn_text_NAME`.
        show_progress: show a bar with the speed and the time left.

    Raises:
        ValueError: if there are no shards, two have one name, `output` was made with other choices or teachers, or a
            teacher gives embeddings that cannot be stored.

    Source: section 4 of the paper.
    """
    started = time.monotonic()
    sources = _sources(spec)
    card = open_card(spec, teachers)
    pending = {name: source for name, source in sources.items() if not _finished(spec, card, name, source)}
    total = sum(map(count_samples, pending.values())) if show_progress else 0
    num_done = 0
    screen = console(shown=show_progress)
    with Progress("reinforcing", total=total, console=screen) as progress, _workers(spec) as pool:
        for name, source in pending.items():
            encoder = BatchEncoder(spec=spec, teachers=teachers, captions=captions, shard=source)
            skips = SkipReport()
            samples = _reinforced(encoder, read_samples([source], skips), spec, pool, skips)
            num_samples = _write(Path(spec.output) / name, _watched(samples, progress), spec.layout)
            entry = ShardEntry(
                source_bytes=Path(source).stat().st_size, num_samples=num_samples, skipped=dict(skips.counts)
            )
            card = attrs.evolve(card, shards={**card.shards, name: entry})
            write_card(spec.output, card)
            num_done += num_samples
    seconds = time.monotonic() - started
    done = attrs.evolve(card, shards={name: card.shards[name] for name in sources})
    return ReinforcementReport(
        shards=tuple(Path(spec.output) / name for name, entry in done.shards.items() if entry.num_samples),
        num_samples=done.num_samples,
        skipped=done.skipped,
        num_done_before=len(sources) - len(pending),
        seconds=seconds,
        samples_per_second=num_done / max(seconds, 1e-9),
    )


def _sources(spec: ReinforcementSpec) -> dict[str, str]:
    sources: dict[str, str] = {}
    for source in expand_shards(spec.shards):
        name = Path(source).name
        if name in sources:
            raise ValueError(f"{sources[name]} and {source} have the same name; reinforce them into two directories")
        if not Path(source).is_file():
            raise ValueError(f"shard {source} does not exist")
        if Path(source).resolve() == (Path(spec.output) / name).resolve():
            raise ValueError(f"the output would replace {source}; choose another output directory")
        sources[name] = source
    return sources


def _finished(spec: ReinforcementSpec, card: ReinforcementCard, name: str, source: str) -> bool:
    """Whether an earlier run made this shard of the very source; a shard that is not in the card may be anything."""
    entry = card.shards.get(name)
    if entry is None or entry.source_bytes != Path(source).stat().st_size:
        return False
    return entry.num_samples == 0 or (Path(spec.output) / name).exists()


_Encode = Callable[[Sequence[ImageTextSample]], list[ReinforcedSample | Skip]]


def _write(path: Path, samples: Iterator[ReinforcedSample], layout: Layout) -> int:
    """Write a shard unless there is nothing to write, and return the number of samples."""
    first = next(samples, None)
    if first is None:
        path.unlink(missing_ok=True)
        return 0
    counted = _Counted(chain([first], samples))
    write_shard(path, counted, layout=layout)
    return counted.num_items


class _Counted(Iterator[ReinforcedSample]):
    """Samples that are counted as they pass."""

    def __init__(self, items: Iterable[ReinforcedSample]) -> None:
        self.items = iter(items)
        self.num_items = 0

    def __next__(self) -> ReinforcedSample:
        item = next(self.items)
        self.num_items += 1
        return item


def _watched(samples: Iterable[ReinforcedSample], progress: Progress) -> Iterator[ReinforcedSample]:
    for sample in samples:
        yield sample
        progress.advance()


@contextmanager
def _workers(spec: ReinforcementSpec) -> Iterator[ThreadPoolExecutor | None]:
    """Yield threads that share torch's own threads among them, or None for doing it here."""
    if spec.num_workers == 1:
        yield None
        return
    num_threads = torch.get_num_threads()
    share = max(1, num_threads // spec.num_workers)
    try:
        with ThreadPoolExecutor(spec.num_workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(num_threads)


def _reinforced(
    encode: _Encode,
    samples: Iterator[ImageTextSample],
    spec: ReinforcementSpec,
    pool: ThreadPoolExecutor | None,
    skips: SkipReport,
) -> Iterator[ReinforcedSample]:
    """Yield what `encode` makes of the samples, in their order, with as many batches under way as there are workers."""
    batches = iter(lambda: list(islice(samples, spec.batch_size)), [])
    results = map(encode, batches) if pool is None else _ahead(pool, encode, batches, spec.num_workers + 1)
    for result in results:
        for sample in result:
            if isinstance(sample, Skip):
                skips.add(sample)
            else:
                yield sample


def _ahead(
    pool: ThreadPoolExecutor,
    encode: _Encode,
    batches: Iterator[Sequence[ImageTextSample]],
    depth: int,
) -> Iterator[list[ReinforcedSample | Skip]]:
    futures = deque(pool.submit(encode, batch) for batch in islice(batches, depth))
    while futures:
        yield futures.popleft().result()
        futures.extend(pool.submit(encode, batch) for batch in islice(batches, 1))
