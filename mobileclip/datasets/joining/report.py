"""What a join did: a note on every finished shard, from which the report is made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip import storage
from mobileclip.data.shards.counts import MANIFEST
from mobileclip.datasets.joining.image_index import IndexCounts
from mobileclip.datasets.joining.placeholders import Placeholder
from mobileclip.datasets.sources.parquet import read_keys, text_column
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
_NUM_CONNECTIONS = 16
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
    """What became of a sample.

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
        """What it adds to the fields of a `JoinReport`, and to the number of samples that have a reach."""
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
    """What is in the joined shards, and what is not; all runs together.

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
        parts = self._lines_of_samples(), self._lines_of_likeness(), self._lines_of_images(), self._lines_of_problems()
        return "\n".join(chain(*parts))

    def _lines_of_samples(self) -> Iterable[str]:
        share = f"{self.joined / self.samples:.1%}" if self.samples else "none"
        yield (
            f"joined      {self.joined:,} of {self.samples:,} samples ({share}), {self.num_bytes / 1e9:,.2f} GB in "
            f"{self.shards:,} shards of {self.output}"
        )
        for count, where in ((self.set_captions, "from the data set of captions"), (self.captions, "with the image")):
            if count:
                yield f"            {count:,} had no caption of their own; theirs came {where}"
        if self.left_out:
            yield f"left out    {sum(self.left_out.values()):,} samples, named in {MISSING}:"
            for reason, count in sorted(self.left_out.items(), key=lambda item: -item[1]):
                yield f"            {count:,}  {_REASONS.get(reason, reason)}"
        if self.repeated_samples:
            yield f"repeated    {self.repeated_samples:,} samples have a key that another one has too"

    def _lines_of_likeness(self) -> Iterable[str]:
        yield (
            f"compared    {self.equal_stored + self.equal_downloaded:,} equal ({self.equal_stored:,} as stored, "
            f"{self.equal_downloaded:,} by the hash of their download), "
            f"{self.kept_other + self.left_out.get('other_image', 0):,} other, {self.unknown:,} unknown: there was "
            "nothing to compare"
        )
        if self.kept_other:
            yield f"            {self.kept_other:,} other ones were kept, named in {OTHER}"
        if self.others:
            yield f"            other: {', '.join(self.others[:_NUM_OTHERS])}"
        if self.reach is not None and self.reach < _LEAST_REACH:
            yield (
                f"            the crops end at {self.reach:.0%} of the pictures on average, expected about 97%: these "
                "may be larger copies than those that were reinforced"
            )

    def _lines_of_images(self) -> Iterable[str]:
        yield (
            f"images      {self.images.images:,} in {self.images.shards:,} shards; "
            f"{self.unused_keys:,} of {self.images.keys:,} keys never asked for"
        )
        if self.images.repeated_keys:
            yield f"            {self.images.repeated_keys:,} keys more than once; the first image was taken"
        if self.images.without_field:
            yield f"            {self.images.without_field:,} without the field to join by"
        if not self.placeholders:
            return
        keys = sum(one.num_keys for one in self.placeholders)
        dropped = "left out" if "placeholder" in self.left_out else "--drop-placeholders leaves them out"
        yield f"repeating   {len(self.placeholders):,} pictures stand under many keys, {keys:,} in all ({dropped}):"
        for one in self.placeholders[:_NUM_NAMED]:
            yield (
                f"            {one.num_keys:,} keys  sha256 {one.sha256}...  {one.num_bytes:,} bytes  "
                f"such as {one.example} in {one.shard}"
            )
        yield from _and_more(len(self.placeholders), REPORT)

    def _lines_of_problems(self) -> Iterable[str]:
        if self.stopped is not None:
            sample, image = self.examples
            yield f"stopped     after {self.stopped}, of which no sample was joined; --go-on joins the others"
            if max(self.left_out, key=lambda reason: self.left_out[reason]) == "no_image":
                yield f"            a sample has the key {sample}, an image {image}: --by says what must be equal"
        elif not self.joined:
            yield "too few     nothing was joined"
        elif self.joined < self.min_share * self.samples:
            share = self.joined / self.samples
            yield (
                f"too few     {share:.1%} of the samples were joined, expected {self.min_share:.1%}; --min-share says "
                "how many will do"
            )
        for title, problems in (("unfinished", self.unfinished), ("unreadable", self.images.unreadable)):
            if problems:
                side = "reinforced" if title == "unfinished" else "image"
                yield f"{title}  {len(problems):,} {side} shards:"
                for shard, problem in list(problems.items())[:_NUM_NAMED]:
                    yield f"            {shard}: {problem}"
                yield from _and_more(len(problems), REPORT)


def _and_more(count: int, where: str) -> Iterable[str]:
    if count > _NUM_NAMED:
        yield f"            and {count - _NUM_NAMED:,} more, in {where}"


def _ledger_path(output: str, name: str, suffix: str = ".parquet") -> str:
    return storage.join(storage.join(output, LEDGER), name.removesuffix(".tar") + suffix)


def read_ledger(output: str, name: str) -> JoinedShard | None:
    """Return what an earlier run noted about a shard, None where it did not, or in another form."""
    try:
        with storage.open_read(_ledger_path(output, name)) as stream:
            content = stream.read()
    except FileNotFoundError:
        return _read_json(output, name)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read(["key", "likeness", "reason"])
        done = from_json(table.schema.metadata[_NOTE].decode(), JoinedShard)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        return None
    keys, likeness, reasons = read_keys(table["key"]), table["likeness"].to_pylist(), table["reason"].to_pylist()
    left_out = tuple((key, reason) for key, reason in zip(keys, reasons, strict=True) if reason is not None)
    other = tuple(key for key, one in zip(keys, likeness, strict=True) if one == "other")
    return attrs.evolve(done, left_out=left_out, other=other)


def _read_json(output: str, name: str) -> JoinedShard | None:
    """Return a note of before, which named what is other or left out alone."""
    try:
        with storage.open_read(_ledger_path(output, name, ".json")) as stream:
            return from_json(stream.read().decode(), JoinedShard)
    except (FileNotFoundError, ValueError):
        return None


def read_ledgers(output: str, names: Sequence[str]) -> Iterator[tuple[str, JoinedShard | None]]:
    """Yield the names of shards with what earlier runs noted about them, in order; several at once from a store."""
    if not storage.is_remote(output):
        yield from ((name, read_ledger(output, name)) for name in names)
        return
    with ThreadPoolExecutor(_NUM_CONNECTIONS, thread_name_prefix="notes") as pool:
        # No more ahead than these: a note names what was left out.
        for first in range(0, len(names), 4 * _NUM_CONNECTIONS):
            some = names[first : first + 4 * _NUM_CONNECTIONS]
            yield from zip(some, pool.map(partial(read_ledger, output), some), strict=True)


def write_ledger(output: str, name: str, done: JoinedShard, samples: Sequence[JoinedSample]) -> None:
    """Note that a shard is finished: a row for every sample, and the rest beside them."""
    import pyarrow as pa

    columns = [text_column([getattr(one, name) for one in samples]) for name in _COLUMNS]
    table = pa.Table.from_arrays(columns, _COLUMNS)
    _write_note(_ledger_path(output, name), table, attrs.evolve(done, left_out=(), other=()))


def renew_ledger(output: str, name: str, done: JoinedShard) -> None:
    """Note other fingerprints of a shard whose samples are what they were."""
    import pyarrow.parquet as pq

    path = _ledger_path(output, name)
    if not storage.exists(path):
        storage.write_text(_ledger_path(output, name, ".json"), to_json(done) + "\n")
        return
    with storage.open_read(path) as stream:
        table = pq.ParquetFile(stream).read()
    _write_note(path, table, attrs.evolve(done, left_out=(), other=()))


def _write_note(path: str, table: pa.Table, done: JoinedShard) -> None:
    import pyarrow.parquet as pq

    storage.make_directory_of(path)
    with storage.atomic_write(path) as stream:
        pq.write_table(table.replace_schema_metadata({_NOTE: to_json(done)}), stream)


def write_report(report: JoinReport, names: Sequence[str]) -> JoinReport:
    """Write `missing.txt`, `other.txt`, `manifest.jsonl` and `join.json`, and return the report with all counts.

    Args:
        report: what is known beside the notes of shards.
        names: of all shards.
    """
    output, counts, reach = report.output, Counter[str](), 0.0
    left_out, others, example = Counter[str](), list[str](), ""
    with (
        storage.atomic_write(storage.join(output, MISSING)) as missing,
        storage.atomic_write(storage.join(output, OTHER)) as other,
        storage.atomic_write(storage.join(output, MANIFEST)) as manifest,
    ):
        for name, done in read_ledgers(output, names):
            if done is None:
                continue
            counts.update(done.counts)
            left_out.update(reason for _, reason in done.left_out)
            reach += 0 if done.reach is None else done.reach * done.num_joined
            manifest.write(_manifest_line(name, done))
            missing.write("".join(f"{key}\t{name}\t{reason}\n" for key, reason in done.left_out).encode())
            other.write("".join(f"{key}\t{name}\n" for key in done.other).encode())
            if len(others) < _NUM_NAMED:
                keys = chain(done.other, (key for key, reason in done.left_out if reason == "other_image"))
                others += [f"{storage.printable(key)} in {name}" for key in islice(keys, _NUM_NAMED - len(others))]
            if name == report.stopped:
                example = storage.printable(done.left_out[0][0])
    reaching = counts.pop("reaching", 0)
    totals: Mapping[str, Any] = counts
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
        storage.remove(storage.join(output, OTHER))
    with storage.atomic_write(storage.join(output, REPORT)) as stream:
        stream.write(storage.without_secrets(to_json(report, indent=1)).encode() + b"\n")
    return report


def _manifest_line(name: str, done: JoinedShard) -> bytes:
    line = {
        "shard": name,
        "fingerprint": done.source,
        "num_samples": done.num_joined,
        "num_bytes": done.num_bytes or 0,
        "skipped": dict(sorted(Counter(reason for _, reason in done.left_out).items())),
    }
    return json.dumps(line).encode() + b"\n"
