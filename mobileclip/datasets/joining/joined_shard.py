"""Joins one reinforced shard with its images, in any worker process.

The JSON of a published sample has the SHA-256 of the original download. A resized or re-encoded image file has a
different hash; `img2dataset` then stores the hash of the download in the image's JSON.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import chain, groupby, islice
from pathlib import Path
from typing import IO, Any

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.buckets import Records
from mobileclip.data.images.limits import IMAGE_EXTENSIONS, ImageError
from mobileclip.data.images.opening import open_image
from mobileclip.data.images.transform import LIMITS
from mobileclip.data.samples.compact import CompactRecord
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.samples.members import RECORD, json_captions, parse_object
from mobileclip.data.samples.sample import check_key, decode_image, hash_image, is_showable
from mobileclip.data.shards.files import RawSample, read_shard, write_shard_members
from mobileclip.data.shards.tar import read_up_to
from mobileclip.data.skips import BadSampleError, Skip, attempt
from mobileclip.datasets.joining.index import json_member, name_hash, sample_name
from mobileclip.datasets.joining.matching import read_matches
from mobileclip.datasets.joining.report import (
    JoinedSample,
    JoinedShard,
    Likeness,
    read_ledger,
    update_ledger,
    write_ledger,
)
from mobileclip.datasets.joining.spec import JoinSpec

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIZE, _ORIGINAL_SIZE = ("width", "height"), ("original_width", "original_height")
_UID = "uid"
# Maximum number of samples, and maximum bytes of images, per batch. A batch is read in the order of the image shards.
_SAMPLES_AT_ONCE = 256
_BYTES_AT_ONCE = 64 * 2**20
_DIGESTED = ("order", "high", "low", "start", "size", "text_start", "text_size", "json_start", "json_size")


@attrs.frozen(kw_only=True)
class JoinUnit:
    """A reinforced shard to join.

    Args:
        name: name of the joined shard.
        source: path or URL of the reinforced shard.
        fingerprint: fingerprint of the reinforced shard.
        problem: error that stopped the reading of sample names; samples after the error get no image. None without an
            error.
        captions: path or URL of the shard of captions; None without captions.
        captions_print: fingerprint of the shard of captions; empty without captions.
        matches: start and end of the shard's matches in the file of all matches, in records.
    """

    name: str
    source: str
    fingerprint: str
    problem: str | None
    captions: str | None
    captions_print: str
    matches: tuple[int, int]


@attrs.frozen(kw_only=True)
class ShardJoin:
    """Joins one reinforced shard per call, in any worker process.

    Args:
        spec: the options.
        images: fingerprint of the image index.
        matches: path of the file with the matches of all shards.
        shards: path and fingerprint of every image shard, in the order of the index.
        dropped: first 8 bytes of the SHA-256 of each image to skip, as integers.
    """

    spec: JoinSpec
    images: str
    matches: Path
    shards: Sequence[tuple[str, str]]
    dropped: frozenset[int]

    def __call__(self, unit: JoinUnit) -> int:
        """Write a joined shard and its record, and return the number of reinforced samples.

        Raises:
            ValueError: if the shard is truncated; the function writes the samples before the truncation.
            StorageError: if a store has a temporary error; the function writes the samples before the error.
            OSError: if an image shard can no longer be read, or the output cannot be written.
        """
        matches = read_matches(self.matches, unit.matches)
        path = storage.join(self.spec.output, unit.name)
        done = JoinedShard(
            source=unit.fingerprint,
            images=self.images,
            matches=self._digest(matches),
            captions=unit.captions_print,
            choices=self.spec.choices,
        )
        before = read_ledger(self.spec.output, unit.name)
        if (
            before is not None
            and before.input_fingerprints == done.input_fingerprints
            and before.num_bytes == _bytes_of(path)
        ):
            update_ledger(self.spec.output, unit.name, attrs.evolve(before, images=self.images))
            return before.num_samples
        problems: list[Skip] = []
        joined = _Shard(
            spec=self.spec,
            dropped=self.dropped,
            matches=matches,
            paths=[path for path, _ in self.shards],
            captions=read_captions(unit.captions, problems.append, self.spec.sample_limits),
        )
        storage.make_directory_of(path)
        samples = joined.samples(read_shard(unit.source, problems.append, self.spec.sample_limits))
        first = next(samples, None)
        if first is None:
            storage.remove(path)
        else:
            write_shard_members(path, chain([first], samples))
        # A connection error may have truncated the shard: the next run tries again.
        source = "" if problems or unit.problem else done.source
        reach = sum(joined.reaches) / len(joined.reaches) if joined.reaches else None
        done = attrs.evolve(done, source=source, num_bytes=_bytes_of(path), reach=reach, counts=joined.counts)
        write_ledger(self.spec.output, unit.name, done, joined.rows)
        if problems:
            raise problems[0].error(f"{problems[0].reason}, {problems[0].detail}")
        if unit.problem is not None:
            raise ValueError(unit.problem)
        return len(joined.rows)

    def _digest(self, matches: Records) -> str:
        """Return a hash of the matched image positions and of the images to skip."""
        numbers, places = np.unique(matches["shard"], return_inverse=True)
        digest = blake2b(repr([self.shards[number] for number in numbers.tolist()]).encode(), digest_size=16)
        digest.update(places.astype(np.uint32).tobytes())
        for name in _DIGESTED:
            digest.update(matches[name].tobytes())
        digest.update(bytes(sha256 in self.dropped for sha256 in matches["sha256"].tolist()))
        return digest.hexdigest()


@attrs.define(kw_only=True, eq=False)
class _Shard:
    """The state of one reinforced shard during the join."""

    spec: JoinSpec
    dropped: frozenset[int]
    matches: Records
    paths: Sequence[str]
    captions: Mapping[str, Captioned]
    counts: Counter[str] = attrs.field(factory=Counter)
    rows: list[JoinedSample] = attrs.field(factory=list)
    reaches: list[float] = attrs.field(factory=list)
    keys: set[str] = attrs.field(factory=set)

    def samples(self, samples: Iterator[RawSample]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield the key and the members of every joined sample, in order."""
        rows = {order: row for row, order in enumerate(self.matches["order"].tolist())}
        numbered = ((sample, rows.get(order)) for order, sample in enumerate(samples))
        for batch in iter(lambda: list(islice(numbered, _SAMPLES_AT_ONCE)), []):
            pairs = [(sample, row if self._is_match(sample, row) else None) for sample, row in batch]
            sizes = np.cumsum([0 if row is None else int(self.matches["size"][row]) for _, row in pairs])
            for _, some in groupby(zip(sizes // _BYTES_AT_ONCE, pairs, strict=True), lambda one: one[0]):
                portion = [pair for _, pair in some]
                found = self._images([row for _, row in portion if row is not None])
                for sample, row in portion:
                    members = attempt(
                        partial(self._members, sample, row, found),
                        key=sample.key,
                        shard=sample.shard,
                        on_skip=lambda skip: self.rows.append(JoinedSample(skip.key, reason=skip.reason)),
                    )
                    if members is not None:
                        yield sample.key, members

    def _is_match(self, sample: RawSample, row: int | None) -> bool:
        """Return whether a sample needs an image and has the name of the match."""
        if row is None or not _lacks_image(sample):
            return False
        name = sample_name(sample.key, sample.members, by=self.spec.by, limits=self.spec.sample_limits)
        return name_hash(name) == (int(self.matches["high"][row]), int(self.matches["low"][row]))

    def _images(self, rows: list[int]) -> dict[int, list[bytes | None]]:
        """Return the image, caption and JSON of each match, by row of the match; None for a missing member.

        Raises:
            ValueError: if an image shard became shorter after indexing.
        """
        found = {}
        ordered = sorted(rows, key=lambda row: (int(self.matches["shard"][row]), int(self.matches["start"][row])))
        for shard, some in groupby(ordered, lambda row: int(self.matches["shard"][row])):
            with storage.open_read(self.paths[shard]) as stream:
                for row in some:
                    places = [
                        (int(self.matches[f"{name}start"][row]), int(self.matches[f"{name}size"][row]))
                        for name in ("", "text_", "json_")
                    ]
                    found[row] = [_read(stream, self.paths[shard], *place) for place in places]
        return found

    def _members(self, sample: RawSample, row: int | None, found: Mapping[int, list[bytes | None]]) -> dict[str, bytes]:
        self._enter(sample)
        if not _lacks_image(sample):
            self.rows.append(JoinedSample(sample.key))
            return sample.members
        if row is None:
            raise BadSampleError("no_image", "no image has the sample's key")
        if int(self.matches["sha256"][row]) in self.dropped:
            raise BadSampleError("placeholder", "the sample's image has many keys")
        image, beside, told = found[row]
        known = find_caption(
            self.captions, sample.key, json_member(sample.members.get("json"), self.spec.sample_limits)
        )
        likeness, reach = check_joined(
            sample.members,
            image or b"",
            stated={} if known is None else known.stated,
            beside=told,
            keep_other=self.spec.keep_other,
            decode=self.spec.check_images,
            limits=self.spec.sample_limits,
        )
        members = {**sample.members, IMAGE_EXTENSIONS[self.matches["extension"][row]]: image or b""}
        if not has_caption(members, self.spec.sample_limits):
            text = beside if known is None else known.text
            if text is None:
                raise BadSampleError("no_caption", "the sample has no caption")
            members["txt"] = text
            self.counts["captions" if known is None else "set_captions"] += 1
        shard = storage.printable(storage.without_secrets(self.paths[self.matches["shard"][row]]))
        self.rows.append(JoinedSample(sample.key, image=shard, likeness=likeness))
        self.reaches += [] if reach is None else [reach]
        return members

    def _enter(self, sample: RawSample) -> None:
        """Record a sample's key; raise an error if the sample cannot be written to a shard."""
        if sample.problem is not None:
            raise sample.problem
        check_key(sample.key)
        if not all(map(is_showable, sample.members)):
            raise BadSampleError("bad_member", "the name of a member has control characters")
        if sample.key in self.keys:
            raise BadSampleError("repeated_key", "an earlier sample of the shard has the same key")
        self.keys.add(sample.key)


def _read(stream: IO[bytes], shard: str, start: int, size: int) -> bytes | None:
    """Return the bytes at a position; None for start 0, which marks a missing member."""
    if not start:
        return None
    try:
        stream.seek(start)
        content = read_up_to(stream, size)
    except OverflowError:  # an offset beyond any file
        content = b""
    if len(content) < size:
        raise ValueError(
            f"{shard} has changed since the join indexed its images; run the join again to index the shard"
        )
    return content


def _lacks_image(sample: RawSample) -> bool:
    return not any(extension in sample.members for extension in IMAGE_EXTENSIONS)


def _bytes_of(path: str) -> int | None:
    """Return the size of a file; None if the file does not exist."""
    try:
        return storage.size(path)
    except FileNotFoundError:
        return None


def compare(stated: Mapping[str, Any], sha256: str, beside: Mapping[str, Any]) -> Likeness:
    """Compare the hash and size of an image with the values stated by a sample.

    Args:
        stated: JSON of the sample, with `sha256` and the original size of the download, if any.
        sha256: SHA-256 of the stored image.
        beside: JSON of the image, with `sha256` and sizes of the download, if any.
    """
    expected, download = _sha256(stated), _sha256(beside)
    if sha256 == expected:
        return "stored"
    if expected is not None and download is not None:
        return "downloaded" if download == expected else "other"
    stored, original = _size(beside, _SIZE), _size(beside, _ORIGINAL_SIZE)
    if _differ(_size(stated, _ORIGINAL_SIZE), original):
        return "other"
    # The hash of a resized file says nothing about the download.
    return "unknown" if expected is None or _differ(stored, original) else "other"


def _sha256(stated: Mapping[str, Any]) -> str | None:
    value = stated.get("sha256")
    return value.lower() if isinstance(value, str) and _SHA256.fullmatch(value.lower()) else None


def _size(stated: Mapping[str, Any], names: tuple[str, str]) -> tuple[int, int] | None:
    width, height = (_pixels(stated.get(name)) for name in names)
    return None if width is None or height is None else (width, height)


def _pixels(value: object) -> int | None:
    # Tables write integers as 640.0 if a row has no value.
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if isinstance(value, (int, float)) and is_whole and not isinstance(value, bool) else None


def _differ(one: tuple[int, int] | None, other: tuple[int, int] | None) -> bool:
    return one is not None and other is not None and one != other


def check_joined(
    members: Mapping[str, bytes],
    image: bytes,
    *,
    stated: Mapping[str, Any],
    beside: bytes | None,
    keep_other: bool,
    decode: bool,
    limits: SampleLimits,
) -> tuple[Likeness, float | None]:
    """Compare an image with the reinforced image; raise an error if the two differ.

    The image must match the hash and size stored with the augmentations (if any) and the hash of the download (unless
    `keep_other`), and contain every crop.

    Args:
        members: members of the reinforced sample.
        image: the encoded image.
        stated: metadata of the download, stated in a data set of captions; the sample's own JSON takes precedence.
        beside: JSON of the image; None for an image without JSON.
        keep_other: whether to accept an image whose download has a different hash or size.
        decode: whether to decode the entire image, not only its header.
        limits: size limits for reading.

    Returns:
        The result of the comparison, and the reach of the crops: the farthest right or bottom edge of a crop, as a
        fraction of the image's width or height. The reach is about 1 for the reinforced image, one half for a copy with
        twice the width and height, and None without crops.

    Raises:
        BadSampleError: if the images differ (reason `wrong_image` or `other_image`), the image cannot be decoded, or a
            member is malformed.
    """
    stored, sha256, told = _augmentations(members, limits), hash_image(image), json_member(beside, limits)
    expected = stored.get("image_sha256")
    if expected not in (None, sha256):
        raise BadSampleError("wrong_image", f"the SHA-256 of the image differs from the stated {str(expected)[:12]}...")
    likeness: Likeness = "stored"
    if expected is None:
        likeness = compare({**stated, **json_member(members.get("json"), limits)}, sha256, told)
    if likeness == "other" and not keep_other:
        raise BadSampleError("other_image", "neither the image nor its download has the stated hash and size")
    width, height = decode_image(image, orient=False).size if decode else _image_size(image)
    size, right, bottom = _needed(stored)
    if size not in (None, (width, height)):
        detail = f"the image has {width}x{height} pixels, but the reinforced image has {size[0]}x{size[1]}"
        raise BadSampleError("wrong_image", detail)
    if likeness == "downloaded" and not keep_other and _differ(_size(told, _SIZE), (width, height)):
        detail = f"the image has {width}x{height} pixels, but its JSON states a different size"
        raise BadSampleError("other_image", detail)
    if right > width or bottom > height:
        raise BadSampleError("wrong_image", f"a crop exceeds the {width}x{height} pixels of the image")
    return likeness, max(right / width, bottom / height) if right else None


def has_caption(members: Mapping[str, bytes], limits: SampleLimits) -> bool:
    """Return whether a sample has a real caption."""
    if "txt" in members:
        return True
    try:
        return bool(json_captions(parse_object(members.get("json", b"{}"), "json", limit=limits.text_bytes)))
    except BadSampleError:
        return False


def _augmentations(members: Mapping[str, bytes], limits: SampleLimits) -> Mapping[str, Any]:
    if RECORD not in members:
        return parse_object(members.get("paug.json", b"{}"), "paug.json", limit=limits.text_bytes)
    stored = CompactRecord(members[RECORD]).content.get("paug.json")
    if not isinstance(stored, dict):
        raise BadSampleError("bad_json", f"paug.json holds {type(stored).__name__}, expected an object")
    return stored


def _needed(stored: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, int, int]:
    """Return the stated image size (None if not stated), and the right and bottom limits of the crops."""
    try:
        stated = stored.get("image_size")
        augmentations = stored.get("param_aug", [])
        # The public data on the Hugging Face hub stores the list as a string.
        augmentations = json.loads(augmentations) if isinstance(augmentations, str) else augmentations
        crops = [crop for crop, *_ in augmentations]
        right = max((int(left + width) for _, left, _, width in crops), default=0)
        bottom = max((int(top + height) for top, _, height, _ in crops), default=0)
        return None if stated is None else tuple(stated), right, bottom
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadSampleError("bad_augmentation", f"paug.json: {error}") from None


def _image_size(image: bytes) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return open_image(image, LIMITS).image.size
    except ImageError as error:
        raise BadSampleError(f"image_{error.reason}", error.message) from None


@attrs.frozen(kw_only=True)
class Captioned:
    """Caption and JSON of a sample in a shard of captions.

    Args:
        text: content of the `.txt` member.
        stated: JSON of the sample.
    """

    text: bytes
    stated: Mapping[str, Any]


def read_captions(shard: str | None, on_skip: Callable[[Skip], None], limits: SampleLimits) -> dict[str, Captioned]:
    """Return the captions of one shard, each by key and by uid; for a repeated key or uid, return the first caption.

    Args:
        shard: path or URL of the shard; None for no captions.
        on_skip: callback that receives the error of an unreadable shard.
        limits: size limits for reading.
    """
    known: dict[str, Captioned] = {}
    for sample in () if shard is None else read_shard(shard, on_skip, limits):
        if sample.problem is None and sample.members.get("txt", b"").strip():
            stated = json_member(sample.members.get("json"), limits)
            for name in (sample.key, stated.get(_UID)):
                if isinstance(name, str):
                    known.setdefault(name, Captioned(text=sample.members["txt"], stated=stated))
    return known


def find_caption(known: Mapping[str, Captioned], key: str, stated: Mapping[str, Any]) -> Captioned | None:
    """Return the caption and JSON for a sample; None if there is no caption.

    Args:
        known: captions from `read_captions`.
        key: key of the sample.
        stated: JSON of the sample; its `uid` takes precedence over the key.

    Raises:
        BadSampleError: if the caption belongs to a different image (reason `other_caption`).
    """
    uid = stated.get(_UID)
    found = (known.get(uid) if isinstance(uid, str) else None) or known.get(key)
    if found is not None and "sha256" in stated and found.stated.get("sha256", stated["sha256"]) != stated["sha256"]:
        raise BadSampleError(
            "other_caption", "the caption with the sample's uid belongs to an image with a different hash"
        )
    return found
