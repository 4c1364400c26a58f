"""What a join did: a note on every finished shard, from which the report is made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip import storage
from mobileclip.data.joining.image_index import ImageIndex, IndexCounts, Placeholder
from mobileclip.data.shards.counts import MANIFEST
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict

LEDGER = "join"
REPORT = "join.json"
MISSING = "missing.txt"
# One line per shard, as reinforcement writes it, which verification compares the shards with.

_NUM_NAMED = 10
_REASONS = {
    "no_image": "no image under their key",
    "wrong_image": "the image is another one: its hash, its size or a crop disagrees",
    "placeholder": "the image is a placeholder",
    "no_caption": "neither side has a caption",
}
_BITS = np.array([value.bit_count() for value in range(256)], np.uint8)


@attrs.frozen(kw_only=True, field_transformer=strict)
class JoinedShard:
    """One finished shard.

    Args:
        source: fingerprint of the reinforced shard.
        images: fingerprint of the images.
        choices: as `JoinSpec.choices`.
        num_bytes: size of the joined shard; None where nothing could be joined, and there is none.
        num_joined: samples in it.
        num_captions: samples whose caption came with the image.
        left_out: key and reason of every sample that is not in it.
        numbers: of the images that were asked for.
    """

    source: str
    images: str
    choices: str
    num_bytes: int | None
    num_joined: int
    num_captions: int
    left_out: tuple[tuple[str, str], ...]
    numbers: tuple[int, ...]


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
        captions: joined samples whose caption came with the image.
        repeated_samples: samples that asked for an image that another one had asked for.
        images: what was found on the images' side.
        unused_keys: image keys that no sample asked for.
        placeholders: pictures that stand under many keys, the most frequent first.
        unfinished: what is wrong with a reinforced shard, by its path; the next run tries it again.
    """

    output: str
    shards: int
    samples: int
    joined: int
    num_bytes: int
    left_out: Mapping[str, int]
    captions: int
    repeated_samples: int
    images: IndexCounts
    unused_keys: int
    placeholders: tuple[Placeholder, ...]
    unfinished: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether all shards could be read."""
        return not self.unfinished and not self.images.unreadable

    def __str__(self) -> str:
        return "\n".join((*self._lines_of_samples(), *self._lines_of_images(), *self._lines_of_problems()))

    def _lines_of_samples(self) -> Iterable[str]:
        share = f"{self.joined / self.samples:.1%}" if self.samples else "none"
        yield (
            f"joined      {self.joined:,} of {self.samples:,} samples ({share}), {self.num_bytes / 1e9:,.2f} GB in "
            f"{self.shards:,} shards of {self.output}"
        )
        if self.captions:
            yield f"            {self.captions:,} had no caption of their own; theirs came with the image"
        if self.left_out:
            yield f"left out    {sum(self.left_out.values()):,} samples, named in {MISSING}:"
            for reason, count in sorted(self.left_out.items(), key=lambda item: -item[1]):
                yield f"            {count:,}  {_REASONS.get(reason, reason)}"
        if self.repeated_samples:
            yield f"repeated    {self.repeated_samples:,} samples have a key that another one has too"

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
        dropped = "left out" if "placeholder" in self.left_out else "kept unless dropped"
        yield f"repeating   {len(self.placeholders):,} pictures stand under many keys, {keys:,} in all ({dropped}):"
        for one in self.placeholders[:_NUM_NAMED]:
            yield (
                f"            {one.num_keys:,} keys  sha256 {one.sha256}...  {one.num_bytes:,} bytes  "
                f"such as {one.example} in {one.shard}"
            )
        yield from _and_more(len(self.placeholders), REPORT)

    def _lines_of_problems(self) -> Iterable[str]:
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


def _ledger_path(output: str, name: str) -> str:
    return storage.join(storage.join(output, LEDGER), f"{name.removesuffix('.tar')}.json")


def read_ledger(output: str, name: str) -> JoinedShard | None:
    """Return what an earlier run noted about a shard, None where it did not, or in another form."""
    try:
        with storage.open_read(_ledger_path(output, name)) as stream:
            return from_json(stream.read().decode(), JoinedShard)
    except (FileNotFoundError, ValueError):
        return None


def write_ledger(output: str, name: str, done: JoinedShard) -> None:
    """Note that a shard is finished."""
    with storage.atomic_write(_ledger_path(output, name)) as stream:
        stream.write(to_json(done).encode() + b"\n")


def make_report(
    output: str,
    names: Sequence[str],
    index: ImageIndex,
    placeholders: tuple[Placeholder, ...],
    unfinished: Mapping[str, str],
) -> JoinReport:
    """Write `missing.txt`, `manifest.jsonl` and `join.json`, and return the report.

    Args:
        output: of the join.
        names: of all its shards.
        index: of the images.
        placeholders: among them.
        unfinished: problems by reinforced shard.
    """
    used = np.zeros(index.last_number // 8 + 1, np.uint8)
    reasons: Counter[str] = Counter()
    num_joined = num_bytes = num_captions = num_asked = num_shards = 0
    with (
        storage.atomic_write(storage.join(output, MISSING)) as missing,
        storage.atomic_write(storage.join(output, MANIFEST)) as manifest,
    ):
        for name in names:
            done = read_ledger(output, name)
            if done is None:
                continue
            num_shards += done.num_bytes is not None
            num_joined += done.num_joined
            num_bytes += done.num_bytes or 0
            num_captions += done.num_captions
            num_asked += len(done.numbers)
            skipped = Counter(reason for _, reason in done.left_out)
            reasons.update(skipped)
            manifest.write(_manifest_line(name, done, skipped))
            missing.write("".join(f"{key}\t{name}\t{reason}\n" for key, reason in done.left_out).encode())
            _mark(used, np.array(done.numbers, np.int64))
    num_used = int(_BITS[used].sum(dtype=np.int64))
    counts = index.counts()
    report = JoinReport(
        output=output,
        shards=num_shards,
        samples=num_joined + reasons.total(),
        joined=num_joined,
        num_bytes=num_bytes,
        left_out=dict(sorted(reasons.items())),
        captions=num_captions,
        repeated_samples=num_asked - num_used,
        images=counts,
        unused_keys=counts.keys - num_used,
        placeholders=placeholders,
        unfinished=unfinished,
    )
    with storage.atomic_write(storage.join(output, REPORT)) as stream:
        stream.write(storage.without_secrets(to_json(report, indent=1)).encode() + b"\n")
    return report


def _manifest_line(name: str, done: JoinedShard, skipped: Mapping[str, int]) -> bytes:
    line = {
        "shard": name,
        "fingerprint": done.source,
        "num_samples": done.num_joined,
        "num_bytes": done.num_bytes or 0,
        "skipped": dict(sorted(skipped.items())),
    }
    return json.dumps(line).encode() + b"\n"


def _mark(bits: npt.NDArray[np.uint8], numbers: npt.NDArray[np.int64]) -> None:
    np.bitwise_or.at(bits, numbers >> 3, (1 << (numbers & 7)).astype(np.uint8))
