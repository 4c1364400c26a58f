"""Copies the first samples of a user's data to a folder of shards, for a recipe's `--tiny`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from mobileclip.data import ImageTextSample, SkipReport, write_shards
from mobileclip.data.shards.sidecars import find_card, write_card
from mobileclip.datasets import ShardSource, Source
from mobileclip.serialization import to_json
from mobileclip.storage import atomic_folder

NUM_SAMPLES = 48
SAMPLES_PER_SHARD = 12
NUM_CLASSES = 6
_MOST_READ = 2_000


def first_samples(source: Source, folder: Path, name: str = "data") -> str:
    """Copy the first samples of a source to a folder of shards, unless the copy exists, and return the folder.

    For images with classes, the copy has at most eight images of each of the first six classes.

    Args:
        source: data set to copy from.
        folder: parent folder of the copies of all sources.
        name: name of this copy's folder.

    Raises:
        ValueError: if the source does not exist, or none of the first samples can be read.
    """
    fingerprints = [to_json(source, unstructure_as=Source), *(unit.content() for unit in source.units()[:1])]
    place = folder / blake2b("\0".join(fingerprints).encode(errors="surrogatepass"), digest_size=6).hexdigest() / name
    if not place.exists():
        report = SkipReport()
        samples = list(islice(_by_class(_samples(source, report)), NUM_SAMPLES))
        if not samples:
            such = "; ".join(f"such as {skips[0].detail}" for skips in report.named.values())
            raise ValueError(f"none of the first samples can be read: {report}, {such or 'the data is empty'}")
        with atomic_folder(place) as partial:
            write_shards(partial, samples, samples_per_shard=SAMPLES_PER_SHARD)
            _copy_card(source, partial)
    return str(place)


def _copy_card(source: Source, folder: Path) -> None:
    """If the source has a card (with its captioners), copy the card to the folder of the copied shards."""
    if not isinstance(source, ShardSource):
        return
    card = find_card(source.units()[0].path.rpartition("/")[0] or ".")
    if card is not None:
        write_card(str(folder), card)


def _samples(source: Source, report: SkipReport) -> Iterator[ImageTextSample]:
    for unit in source.units():
        yield from unit.read(report)


def _by_class(samples: Iterator[ImageTextSample]) -> Iterator[ImageTextSample]:
    """Yield at most eight samples of each of the first six classes; without classes, yield all samples."""
    counts: Counter[str] = Counter()
    for sample in islice(samples, _MOST_READ):
        label = sample.metadata.get("label")
        if isinstance(label, str):
            if (label not in counts and len(counts) == NUM_CLASSES) or counts[label] == NUM_SAMPLES // NUM_CLASSES:
                continue
            counts[label] += 1
        yield sample
