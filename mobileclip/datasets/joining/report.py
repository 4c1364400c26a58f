"""Writes and reads the report of a join, and the record of each finished shard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import attrs

from mobileclip import storage
from mobileclip.data.shards.sidecars import MANIFEST
from mobileclip.datasets.joining.matching import Placeholder
from mobileclip.datasets.sources.base import call_ahead
from mobileclip.datasets.sources.tables import read_annotated_table, text_column, write_annotated_table
from mobileclip.serialization import to_json
from mobileclip.strict import strict

Likeness = Literal["stored", "downloaded", "other", "unknown"]
"""Result of comparing an image with its sample. `stored`: the image file has the hash that the sample states.
`downloaded`: the image's JSON states the same hash for the download. `other`: the hash or the size of the download
differs. `unknown`: the hashes and sizes for a comparison are missing."""

LEDGER = "join"
REPORT = "join.json"
_NUM_NAMED = 10
_NUM_OTHERS = 2
_REASONS = {
    "no_image": "no image has their key",
    "wrong_image": "the hash, size or crops of the image do not fit the reinforced image",
    "other_image": "the download is another image: its hash or size differs from the stored one",
    "placeholder": "the image is a placeholder",
    "no_caption": "no caption found; --captions adds captions from another data set",
    "other_caption": "the caption with the same uid belongs to a different image",
}
_LIKENESS: Mapping[Likeness, str] = {
    "stored": "equal_stored",
    "downloaded": "equal_downloaded",
    "unknown": "unknown",
    "other": "kept_other",
}
# Expected reach of crops in the reinforced image: 0.88 for one view, 0.97 for three views.
_LEAST_REACH = 0.8


class JoinedSample(NamedTuple):
    """The result of a join for one sample: a row of a table in `join/`.

    Args:
        key: key of the sample.
        image: shard of the joined image; None for a sample that already has an image, or a skipped sample.
        likeness: result of comparing the image with the sample; None without a joined image.
        reason: reason for skipping the sample; None for a sample in the joined shard.
    """

    key: str
    image: str | None = None
    likeness: Likeness | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True, field_transformer=strict)
class JoinedShard:
    """The record of a finished shard.

    Args:
        source: fingerprint of the reinforced shard; empty if the next run must join the shard again.
        images: fingerprint of the image index.
        matches: hash of the positions of the shard's images.
        captions: fingerprint of the shard of captions; empty without captions.
        choices: see `JoinSpec.choices`.
        num_bytes: size of the joined shard, in bytes; None if no sample was joined.
        counts: numbers of samples; the names of the counts are fields of `JoinReport`.
        reach: mean reach of the crops over the joined samples, see `check_joined`; None without crops.
        left_out: number of skipped samples, by reason.
        others: keys of the first samples with a different image, at most 10.
        first: key of the first skipped sample; empty without skipped samples.
    """

    source: str
    images: str
    matches: str
    captions: str
    choices: str
    num_bytes: int | None = None
    counts: Mapping[str, int] = attrs.field(factory=dict)
    reach: float | None = None
    left_out: Mapping[str, int] = attrs.field(factory=dict)
    others: tuple[str, ...] = ()
    first: str = ""

    @property
    def input_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints of all inputs that affect the joined shard."""
        return self.source, self.captions, self.choices, self.matches

    @property
    def num_joined(self) -> int:
        """Number of samples in the joined shard."""
        return self.counts.get("joined", 0)

    @property
    def num_samples(self) -> int:
        """Number of reinforced samples."""
        return self.num_joined + sum(self.left_out.values())


@attrs.frozen(kw_only=True)
class IndexCounts:
    """The size of an image index, and the problems found in the image shards.

    Args:
        shards: number of shards.
        images: number of images.
        keys: number of unique keys.
        repeated_keys: number of keys with several images; the join uses the first image.
        without_field: number of samples without the field of `JoinSpec.by`.
        unreadable: error messages by shard path; the index keeps the records before an error.
    """

    shards: int
    images: int
    keys: int
    repeated_keys: int
    without_field: int
    unreadable: dict[str, str]


@attrs.frozen(kw_only=True)
class JoinReport:
    """Totals of a join over all its runs: shards, joined samples, and skipped samples by reason.

    Args:
        output: folder or URL of the joined shards.
        shards: number of joined shards.
        samples: number of reinforced samples.
        joined: number of samples in the joined shards.
        num_bytes: size of the joined shards, in bytes.
        left_out: number of skipped samples, by reason; the tables in `join/` list the samples.
        equal_stored: number of joined samples whose image has the stated hash.
        equal_downloaded: number of joined samples whose stated hash equals the download's hash in the image's JSON.
        unknown: number of joined samples without metadata for comparison.
        kept_other: number of joined samples whose image differs from the stated hash or size; the tables in `join/`
            list the samples.
        reach: mean reach of the crops over all joined samples, see `check_joined`; None without crops.
        captions: number of joined samples with a caption from the image's sample.
        set_captions: number of joined samples with a caption from the shards of captions.
        repeated_samples: number of samples with the same image as an earlier sample.
        images: counts of the image index.
        unused_keys: number of image keys without a sample.
        placeholders: placeholder images, sorted by decreasing number of keys.
        unfinished: error messages of reinforced shards, by path; the next run retries these shards.
        min_share: minimum share of joined samples, see `JoinSpec`.
        stopped: name of the first shard, if the join stopped because this shard had no match; otherwise None.
        examples: key of a skipped sample and key of an image, for comparison if the join stopped; otherwise empty.
        others: keys of the first samples with a different image, each with its shard.
    """

    output: str
    shards: int = 0
    samples: int = 0
    joined: int = 0
    num_bytes: int = 0
    left_out: Mapping[str, int] = attrs.field(factory=dict)
    equal_stored: int = 0
    equal_downloaded: int = 0
    unknown: int = 0
    kept_other: int = 0
    reach: float | None = None
    captions: int = 0
    set_captions: int = 0
    repeated_samples: int
    images: IndexCounts
    unused_keys: int
    placeholders: tuple[Placeholder, ...]
    unfinished: Mapping[str, str]
    min_share: float
    stopped: str | None
    examples: tuple[str, str]
    others: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether all shards were readable and enough samples were joined."""
        return self.complete and self.is_enough

    @property
    def is_enough(self) -> bool:
        """Whether the join reached the minimum share with at least one sample, and did not stop early."""
        return self.stopped is None and self.joined > 0 and self.joined >= self.min_share * self.samples

    @property
    def complete(self) -> bool:
        """Whether the join read and finished all shards."""
        return not self.unfinished and not self.images.unreadable and self.stopped is None

    def __str__(self) -> str:
        return "\n".join(f"{title:<12}{text}" for title, text in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        shards = f"{self.num_bytes / 1e9:,.2f} GB in {self.shards:,} shards of {self.output}"
        share = f"{self.joined / self.samples:.1%}" if self.samples else "none"
        yield "joined", f"{self.joined:,} of {self.samples:,} samples ({share}), {shards}"
        for count, where in (
            (self.set_captions, "from the data set of captions"),
            (self.captions, "from the image's sample"),
        ):
            if count:
                yield "", f"{count:,} had no caption; the join took one {where}"
        if self.left_out:
            yield "left out", f"{sum(self.left_out.values()):,} samples, listed in {LEDGER}/:"
        for reason, count in sorted(self.left_out.items(), key=lambda item: -item[1]):
            yield "", f"{count:,}  {_REASONS.get(reason, reason)}"
        if self.repeated_samples:
            yield "repeated", f"{self.repeated_samples:,} samples share their key with another sample"
        equal, other = self.equal_stored + self.equal_downloaded, self.kept_other + self.left_out.get("other_image", 0)
        how = f"{self.equal_stored:,} as stored, {self.equal_downloaded:,} by the hash of their download"
        unknown = f"{self.unknown:,} unknown: without a stored hash or size"
        yield "compared", f"{equal:,} equal ({how}), {other:,} other, {unknown}"
        if self.kept_other:
            yield "", f"{self.kept_other:,} samples with other images were kept, listed in {LEDGER}/"
        if self.others:
            yield "", f"other: {', '.join(self.others[:_NUM_OTHERS])}"
        if self.reach is not None and self.reach < _LEAST_REACH:
            doubt = "the images may be larger than the reinforced images"
            yield "", f"the crops end at {self.reach:.0%} of the image on average, expected about 97%: {doubt}"
        yield from self._lines_of_images()
        yield from self._problems()

    def _lines_of_images(self) -> Iterator[tuple[str, str]]:
        images, unused = self.images, f"{self.unused_keys:,} of {self.images.keys:,} keys without a sample"
        yield "images", f"{images.images:,} in {images.shards:,} shards; {unused}"
        if images.repeated_keys:
            yield "", f"{images.repeated_keys:,} keys occur more than once; the join used the first image"
        if images.without_field:
            yield "", f"{images.without_field:,} samples have no field to join by"
        if self.placeholders:
            keys = sum(one.num_keys for one in self.placeholders)
            dropped = "left out" if "placeholder" in self.left_out else "--drop-placeholders skips them"
            repeating = f"{len(self.placeholders):,} images have many keys"
            yield "repeating", f"{repeating}, {keys:,} in total ({dropped}):"
            yield from _listed(self.placeholders)

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.stopped is not None:
            sample, image = self.examples
            yield (
                "stopped",
                f"after {self.stopped}, without a joined sample; --continue-on-mismatch joins the other shards",
            )
            if max(self.left_out, key=lambda reason: self.left_out[reason]) == "no_image":
                yield (
                    "",
                    f"a sample has the key {sample}, an image has the key {image}; --by selects the field to join by",
                )
        elif not self.joined:
            yield "too few", "no samples were joined"
        elif not self.is_enough:
            shares = f"{self.joined / self.samples:.1%} of the samples were joined, expected {self.min_share:.1%}"
            yield "too few", f"{shares}; --min-share sets the required share"
        problems = ("unfinished", "reinforced", self.unfinished), ("unreadable", "image", self.images.unreadable)
        for title, side, of_shards in problems:
            if of_shards:
                yield title, f"{len(of_shards):,} {side} shards:"
                yield from _listed([f"{shard}: {problem}" for shard, problem in of_shards.items()])


def _listed(values: Sequence[object]) -> Iterator[tuple[str, str]]:
    """Yield the first values as lines, then the number of remaining values."""
    yield from (("", str(value)) for value in values[:_NUM_NAMED])
    if len(values) > _NUM_NAMED:
        yield "", f"and {len(values) - _NUM_NAMED:,} more, in {REPORT}"


def read_ledger(output: str, name: str) -> JoinedShard | None:
    """Read the record of a shard from an earlier run; None if the record is missing or has a different format."""
    found = read_annotated_table(_note(output, name), JoinedShard, rows=False)
    return None if found is None else found[0]


def read_ledgers(output: str, names: Sequence[str]) -> Iterator[tuple[str, JoinedShard | None]]:
    """Yield the name and earlier record of each shard in the order of `names`; request remote records in parallel."""
    is_remote = storage.is_remote(output)
    yield from zip(names, call_ahead((is_remote, partial(read_ledger, output, name)) for name in names), strict=True)


def write_ledger(output: str, name: str, done: JoinedShard, samples: Sequence[JoinedSample]) -> None:
    """Write the record of a finished shard: a table with one row per sample, and metadata."""
    import pyarrow as pa

    others = [one.key for one in samples if one.likeness == "other" or one.reason == "other_image"]
    left_out = [(one.reason, one.key) for one in samples if one.reason is not None]
    counts = Counter(done.counts)
    counts["joined"] = len(samples) - len(left_out)
    counts.update(_LIKENESS[one.likeness] for one in samples if one.likeness is not None)
    done = attrs.evolve(
        done,
        counts=dict(sorted(counts.items())),
        left_out=dict(sorted(Counter(reason for reason, _ in left_out).items())),
        others=tuple(storage.printable(key) for key in others[:_NUM_NAMED]),
        first=storage.printable(left_out[0][1]) if left_out else "",
    )
    columns = [text_column([getattr(one, name) for one in samples]) for name in JoinedSample._fields]
    write_annotated_table(_note(output, name), pa.Table.from_arrays(columns, list(JoinedSample._fields)), done)


def update_ledger(output: str, name: str, done: JoinedShard) -> None:
    """Update the fingerprints in the record of a shard whose samples are unchanged."""
    path = _note(output, name)
    found = read_annotated_table(path, JoinedShard)
    if found is not None and found[1] is not None:
        write_annotated_table(path, found[1], done)


def _note(output: str, name: str) -> str:
    return storage.join(output, f"{LEDGER}/{name.removesuffix('.tar')}.parquet")


def write_report(report: JoinReport, names: Sequence[str]) -> JoinReport:
    """Write `manifest.jsonl` and `join.json`, and return the report with the totals of all shards.

    Args:
        report: report without totals; the function adds the totals from the records of the shards.
        names: file names of all joined shards.
    """
    counts, left_out, reach, num_reaching = Counter[str](), Counter[str](), 0.0, 0
    others, example = list[str](), ""
    with storage.atomic_write(storage.join(report.output, MANIFEST)) as manifest:
        for name, done in read_ledgers(report.output, names):
            if done is None:
                continue
            counts.update(done.counts, shards=int(done.num_bytes is not None), num_bytes=done.num_bytes or 0)
            left_out.update(done.left_out)
            if done.reach is not None:
                reach, num_reaching = reach + done.reach * done.num_joined, num_reaching + done.num_joined
            line = {"shard": name, "fingerprint": done.source, "num_samples": done.num_joined}
            line |= {"num_bytes": done.num_bytes or 0, "skipped": done.left_out}
            manifest.write(json.dumps(line).encode() + b"\n")
            others += [f"{key} in {name}" for key in done.others[: _NUM_NAMED - len(others)]]
            example = done.first if name == report.stopped else example
    report = attrs.evolve(
        report,
        **dict[str, Any](counts),
        samples=counts["joined"] + left_out.total(),
        left_out=dict(sorted(left_out.items())),
        reach=reach / num_reaching if num_reaching else None,
        others=tuple(others),
        examples=(example, report.examples[1]),
    )
    content = storage.without_secrets(to_json(report, indent=1)) + "\n"
    storage.write_text(storage.join(report.output, REPORT), content)
    return report
