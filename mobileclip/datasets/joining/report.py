"""The report of a join: one note for every finished shard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip import storage
from mobileclip.data.shards.counts import MANIFEST
from mobileclip.datasets.joining.image_index import IndexCounts
from mobileclip.datasets.joining.placeholders import Placeholder
from mobileclip.datasets.sources.records import called_ahead
from mobileclip.datasets.sources.tables import read_keys, text_column
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict

if TYPE_CHECKING:
    import pyarrow as pa

LEDGER = "join"
REPORT = "join.json"
MISSING = "missing.txt"
OTHER = "other.txt"
_NOTE = b"mobileclip"
_COLUMNS = ("key", "image", "likeness", "reason")
_NUM_NAMED = 10
_NUM_OTHERS = 2
_MOST_BYTES = 2**31
_REASONS = {
    "no_image": "no image under their key",
    "wrong_image": "the file is not the one that was reinforced: its hash, its size or a crop disagrees",
    "other_image": "another picture was downloaded: the hash or the size that is stated is another one",
    "placeholder": "the image is a placeholder",
    "no_caption": "there is no caption for them; --captions takes some from a data set of their own",
    "other_caption": "the caption under their uid is one of another picture",
}
_LIKENESS: Mapping[str, str] = {
    "stored": "equal_stored",
    "downloaded": "equal_downloaded",
    "unknown": "unknown",
    "other": "kept_other",
}
# Of crops that were drawn in the image itself, it is 0.88 for one view, and 0.97 for three.
_LEAST_REACH = 0.8


@attrs.frozen(kw_only=True)
class JoinedSample:
    """The outcome of a join for one sample.

    Args:
        key: of it.
        image: the shard that its image comes from; None where it is its own, or it is left out.
        likeness: what comparing the image with what the sample states gave.
        reason: why it is left out.
    """

    key: str
    image: str | None = None
    likeness: str | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True, field_transformer=strict)
class JoinedShard:
    """One finished shard.

    Args:
        source: fingerprint of the reinforced shard.
        images: fingerprint of all images.
        matches: hash of the places of its own images.
        captions: fingerprint of the shard with the captions; empty where captions were not asked for.
        choices: as `JoinSpec.choices`.
        num_bytes: size of the joined shard; None where nothing could be joined, and there is none.
        num_joined: samples in it.
        num_captions: samples whose caption came with the image.
        num_set_captions: samples whose caption came from the captions' shard.
        likeness: number of joined samples by what comparing their image with what they state gave.
        other: keys of the joined samples whose image is another one.
        reach: of the crops, the mean over the joined samples; None where there are none.
        left_out: key and reason of every sample that is not in it.
    """

    source: str
    images: str
    matches: str
    captions: str
    choices: str
    num_bytes: int | None
    num_joined: int
    num_captions: int
    num_set_captions: int
    likeness: Mapping[str, int]
    other: tuple[str, ...]
    reach: float | None
    left_out: tuple[tuple[str, str], ...]

    @property
    def num_samples(self) -> int:
        """Number of reinforced samples."""
        return self.num_joined + len(self.left_out)

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts of this shard, by field of `JoinReport`, and of samples whose reach is known."""
        return {
            "shards": int(self.num_bytes is not None),
            "joined": self.num_joined,
            "num_bytes": self.num_bytes or 0,
            "captions": self.num_captions,
            "set_captions": self.num_set_captions,
            "reaching": 0 if self.reach is None else self.num_joined,
            **{_LIKENESS[one]: count for one, count in self.likeness.items()},
        }


@attrs.frozen(kw_only=True)
class JoinReport:
    """Totals of a join over all of its runs: shards, samples joined and samples left out by reason.

    Args:
        output: where they are.
        shards: number of joined shards.
        samples: number of reinforced samples.
        joined: samples in the joined shards.
        num_bytes: size of the joined shards.
        left_out: samples left out, by reason; `missing.txt` names them.
        equal_stored: joined samples whose image has the hash that they state.
        equal_downloaded: joined samples whose image was made of a file with that hash, as stands beside it.
        unknown: joined samples whose image could not be compared with anything.
        kept_other: joined samples whose image is another one; `other.txt` names them.
        reach: how far the crops reach to the right or down, as a mean share of the images; None where there are none.
        captions: joined samples whose caption came with the image.
        set_captions: joined samples whose caption came from the data set of captions.
        repeated_samples: samples that asked for an image that another one had asked for.
        images: what was found on the images' side.
        unused_keys: image keys that no sample asked for.
        placeholders: pictures that stand under many keys, the most frequent first.
        unfinished: what is wrong with a reinforced shard, by its path; the next run tries it again.
        min_share: of the samples that must be joined.
        stopped: the first shard, if nothing of it was joined and the others were left therefore; None otherwise.
        examples: a key of a sample and one of an image.
        others: the first samples for which another picture was downloaded, each with its shard.
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
        """Whether all shards could be read and enough samples were joined."""
        return self.complete and self.is_enough

    @property
    def is_enough(self) -> bool:
        """Whether enough samples were joined, one at least, and the join was not stopped."""
        return self.stopped is None and self.joined > 0 and self.joined >= self.min_share * self.samples

    @property
    def complete(self) -> bool:
        """Whether all shards could be read, and none was left."""
        return not self.unfinished and not self.images.unreadable and self.stopped is None

    def __str__(self) -> str:
        parts = self._told_of_samples(), self._told_of_likeness(), self._told_of_images(), self._told_of_problems()
        return "\n".join(f"{title:<12}{text}" for title, text in chain(*parts))

    def _told_of_samples(self) -> Iterator[tuple[str, str]]:
        shards = f"{self.num_bytes / 1e9:,.2f} GB in {self.shards:,} shards of {self.output}"
        share = f"{self.joined / self.samples:.1%}" if self.samples else "none"
        yield "joined", f"{self.joined:,} of {self.samples:,} samples ({share}), {shards}"
        for count, where in ((self.set_captions, "from the data set of captions"), (self.captions, "with the image")):
            if count:
                yield "", f"{count:,} had no caption of their own; theirs came {where}"
        if self.left_out:
            yield "left out", f"{sum(self.left_out.values()):,} samples, named in {MISSING}:"
        for reason, count in sorted(self.left_out.items(), key=lambda item: -item[1]):
            yield "", f"{count:,}  {_REASONS.get(reason, reason)}"
        if self.repeated_samples:
            yield "repeated", f"{self.repeated_samples:,} samples have a key that another one has too"

    def _told_of_likeness(self) -> Iterator[tuple[str, str]]:
        equal, other = self.equal_stored + self.equal_downloaded, self.kept_other + self.left_out.get("other_image", 0)
        how = f"{self.equal_stored:,} as stored, {self.equal_downloaded:,} by the hash of their download"
        unknown = f"{self.unknown:,} unknown: there was nothing to compare"
        yield "compared", f"{equal:,} equal ({how}), {other:,} other, {unknown}"
        if self.kept_other:
            yield "", f"{self.kept_other:,} other ones were kept, named in {OTHER}"
        if self.others:
            yield "", f"other: {', '.join(self.others[:_NUM_OTHERS])}"
        if self.reach is not None and self.reach < _LEAST_REACH:
            doubt = "these may be larger copies than those that were reinforced"
            yield "", f"the crops end at {self.reach:.0%} of the pictures on average, expected about 97%: {doubt}"

    def _told_of_images(self) -> Iterator[tuple[str, str]]:
        images, unused = self.images, f"{self.unused_keys:,} of {self.images.keys:,} keys never asked for"
        yield "images", f"{images.images:,} in {images.shards:,} shards; {unused}"
        if images.repeated_keys:
            yield "", f"{images.repeated_keys:,} keys more than once; the first image was taken"
        if images.without_field:
            yield "", f"{images.without_field:,} without the field to join by"
        if self.placeholders:
            keys = sum(one.num_keys for one in self.placeholders)
            dropped = "left out" if "placeholder" in self.left_out else "--drop-placeholders leaves them out"
            pictures = f"{len(self.placeholders):,} pictures stand under many keys"
            yield "repeating", f"{pictures}, {keys:,} in all ({dropped}):"
            yield from _listed([str(one) for one in self.placeholders])

    def _told_of_problems(self) -> Iterator[tuple[str, str]]:
        if self.stopped is not None:
            sample, image = self.examples
            yield "stopped", f"after {self.stopped}, of which no sample was joined; --go-on joins the others"
            if max(self.left_out, key=lambda reason: self.left_out[reason]) == "no_image":
                yield "", f"a sample has the key {sample}, an image {image}: --by says what must be equal"
        elif not self.joined:
            yield "too few", "nothing was joined"
        elif not self.is_enough:
            shares = f"{self.joined / self.samples:.1%} of the samples were joined, expected {self.min_share:.1%}"
            yield "too few", f"{shares}; --min-share says how many will do"
        problems = ("unfinished", "reinforced", self.unfinished), ("unreadable", "image", self.images.unreadable)
        for title, side, of_shards in problems:
            if of_shards:
                yield title, f"{len(of_shards):,} {side} shards:"
                yield from _listed([f"{shard}: {problem}" for shard, problem in of_shards.items()])


def _listed(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the first of them, and how many more there are."""
    yield from (("", text) for text in texts[:_NUM_NAMED])
    if len(texts) > _NUM_NAMED:
        yield "", f"and {len(texts) - _NUM_NAMED:,} more, in {REPORT}"


def read_ledger(output: str, name: str) -> JoinedShard | None:
    """Return what an earlier run noted about a shard, None where it did not, or in another form."""
    content = storage.read_if_there(_note(output, name), limit=_MOST_BYTES)
    if content is None:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read(["key", "likeness", "reason"])
        done = from_json(table.schema.metadata[_NOTE].decode(), JoinedShard)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        return None
    rows = list(zip(read_keys(table["key"]), table["likeness"].to_pylist(), table["reason"].to_pylist(), strict=True))
    left_out = tuple((key, reason) for key, _, reason in rows if reason is not None)
    return attrs.evolve(done, left_out=left_out, other=tuple(key for key, likeness, _ in rows if likeness == "other"))


def read_ledgers(output: str, names: Sequence[str]) -> Iterator[tuple[str, JoinedShard | None]]:
    """Yield the names of shards with what earlier runs noted about them, in order; several at once from a store."""
    is_remote = storage.is_remote(output)
    yield from zip(names, called_ahead((is_remote, partial(read_ledger, output, name)) for name in names), strict=True)


def write_ledger(output: str, name: str, done: JoinedShard, samples: Sequence[JoinedSample]) -> None:
    """Note that a shard is finished: a row for every sample, and the rest beside them."""
    import pyarrow as pa

    columns = [text_column([getattr(one, name) for one in samples]) for name in _COLUMNS]
    _write_note(_note(output, name), pa.Table.from_arrays(columns, _COLUMNS), done)


def renew_ledger(output: str, name: str, done: JoinedShard) -> None:
    """Note other fingerprints of a shard whose samples are what they were."""
    import pyarrow.parquet as pq

    path = _note(output, name)
    with storage.open_read(path) as stream:
        table = pq.ParquetFile(stream).read()
    _write_note(path, table, done)


def _note(output: str, name: str) -> str:
    return storage.join(output, f"{LEDGER}/{name.removesuffix('.tar')}.parquet")


def _write_note(path: str, table: pa.Table, done: JoinedShard) -> None:
    import pyarrow.parquet as pq

    note = to_json(attrs.evolve(done, left_out=(), other=()))
    storage.make_directory_of(path)
    with storage.atomic_write(path) as stream:
        pq.write_table(table.replace_schema_metadata({_NOTE: note}), stream)


def write_report(report: JoinReport, names: Sequence[str]) -> JoinReport:
    """Write `missing.txt`, `other.txt`, `manifest.jsonl` and `join.json`, and return the report with all counts.

    Args:
        report: what is known beside the notes of shards.
        names: of all shards.
    """
    counts, left_out, reach = Counter[str](), Counter[str](), 0.0
    others, example = list[str](), ""
    with ExitStack() as files:
        missing, other, manifest = (
            files.enter_context(storage.atomic_write(storage.join(report.output, file)))
            for file in (MISSING, OTHER, MANIFEST)
        )
        for name, done in read_ledgers(report.output, names):
            if done is None:
                continue
            reasons = Counter(reason for _, reason in done.left_out)
            counts.update(done.counts)
            left_out += reasons
            reach += (done.reach or 0.0) * done.num_joined
            line = {"shard": name, "fingerprint": done.source, "num_samples": done.num_joined}
            line |= {"num_bytes": done.num_bytes or 0, "skipped": dict(sorted(reasons.items()))}
            manifest.write(json.dumps(line).encode() + b"\n")
            missing.write("".join(f"{key}\t{name}\t{reason}\n" for key, reason in done.left_out).encode())
            other.write("".join(f"{key}\t{name}\n" for key in done.other).encode())
            keys = chain(done.other, (key for key, reason in done.left_out if reason == "other_image"))
            others += [f"{storage.printable(key)} in {name}" for key in islice(keys, _NUM_NAMED - len(others))]
            if name == report.stopped:
                example = storage.printable(done.left_out[0][0])
    reaching, totals = counts.pop("reaching", 0), dict[str, Any](counts)
    report = attrs.evolve(
        report,
        **totals,
        samples=counts["joined"] + left_out.total(),
        left_out=dict(sorted(left_out.items())),
        reach=reach / reaching if reaching else None,
        others=tuple(others),
        examples=(example, report.examples[1]),
    )
    if not report.kept_other:
        storage.remove(storage.join(report.output, OTHER))
    content = storage.without_secrets(to_json(report, indent=1)) + "\n"
    storage.write_text(storage.join(report.output, REPORT), content)
    return report
