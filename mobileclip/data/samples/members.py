"""Conversion between samples and shard members, in the layouts of the public data sets and in the compact layout.

Readers drop blank captions and the embeddings of blank captions. Readers reject a sample without real captions (reason
`no_caption`); a set of synthetic captions may become empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mobileclip.data.augmentation.policy import compress
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.data.samples.compact import CompactRecord, write_record
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.readers import EmbeddingRows, Embeddings, read_embeddings, write_npz, write_pth_gz
from mobileclip.data.samples.sample import (
    SYN_NAME,
    SYN_TEXT,
    AugmentedSample,
    ImageTextSample,
    Layout,
    ReinforcedSample,
    StoredSample,
    StoredViews,
    check_shape,
    drop_blank,
)
from mobileclip.data.skips import BadSampleError


def parse_object(text: bytes, name: str, *, limit: int) -> dict[str, Any]:
    """Parse a JSON object from the text of a member, a line or a file.

    Args:
        text: UTF-8 text, with or without byte-order mark.
        name: description of the text, for messages.
        limit: maximum size of the text, in bytes.

    Raises:
        BadSampleError: if the text exceeds the limit (reason `too_large`), is not UTF-8 (`bad_text`), or is not a JSON
            object with unique keys (`bad_json`).
    """
    if len(text) > limit:
        raise BadSampleError("too_large", f"{name} has {len(text):,} bytes, more than the limit of {limit:,}")
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise BadSampleError("bad_text", f"{name} is not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadSampleError("bad_json", f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadSampleError("bad_json", f"{name} contains {type(value).__name__}, expected an object")
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a duplicate key")
    return found


RECORD = "reinforced"

_PLAIN_MEMBERS = frozenset(("txt", "json", "url.txt", "syn.json", RECORD))
_PUBLIC_MEMBERS = frozenset(("paug.json", "npz", "pth.gz"))
# Further real captions; the public loaders read one per sample and ignore unknown members.
_MORE_TEXT = "more_text"
_JSON_CAPTIONS = ("caption", "captions", "text", "texts")


def parse_sample(key: str, members: Mapping[str, bytes], limits: SampleLimits = SAMPLE_LIMITS) -> ImageTextSample:
    """Parse an image-text sample without augmentations and teacher embeddings from its shard members.

    Args:
        key: key of the sample.
        members: content by extension, such as `jpg`, `txt`, `url.txt`, `json`, `syn.json`.
        limits: limits on the size of the sample.

    Raises:
        BadSampleError: if the caption is missing or a member is malformed.
    """
    return ImageTextSample(**_Members(key, members, limits).plain_fields())


def parse_stored_sample(key: str, members: Mapping[str, bytes], limits: SampleLimits = SAMPLE_LIMITS) -> StoredSample:
    """Parse a reinforced sample from its shard members in any layout, decoding as little as the layout allows.

    Args:
        key: key of the sample.
        members: content by extension: the members of `parse_sample`, and either `reinforced`, or `paug.json`
            with one of `npz` and `pth.gz`.
        limits: limits on the size of the sample.

    Raises:
        BadSampleError: if a member is missing or malformed, or the embeddings do not match captions and augmentations.
    """
    read = _Members(key, members, limits)
    stored = read.object("paug.json")
    augmentations = _read_augmentations(stored)
    sha256 = stored.get("image_sha256")
    if sha256 is not None and not isinstance(sha256, str):
        raise BadSampleError("bad_json", f"image_sha256 in paug.json is {type(sha256).__name__}, expected a string")
    embeddings = read.embeddings(len(augmentations))
    return StoredSample(
        **read.plain_fields(),
        augmentations=augmentations,
        image_sha256=sha256,
        embeddings=embeddings,
        places=read.places(len(augmentations), embeddings.shapes),
    )


def parse_reinforced_sample(
    key: str, members: Mapping[str, bytes], limits: SampleLimits = SAMPLE_LIMITS
) -> ReinforcedSample:
    """Parse a reinforced sample from its shard members in any layout, with all embeddings.

    Args:
        key: key of the sample.
        members: content by extension; see `parse_stored_sample`.
        limits: limits on the size of the sample.

    Raises:
        BadSampleError: if a member is missing or malformed, or the embeddings do not match captions and augmentations.
    """
    return parse_stored_sample(key, members, limits).decoded()


def sample_members(sample: ImageTextSample, layout: Layout = "npz") -> dict[str, bytes]:
    """Return a sample's members for a shard, by extension.

    In the public layouts, a sample with one real caption and only the set `syn_text` gets the arrays of the MobileCLIP
    data, with all text embeddings in `text_emb`. Any other sample gets the arrays of the MobileCLIP2 data, with one
    array `NAME_emb` per set. `paug.json` also holds the size and hash of the source image, which the public loaders
    ignore.

    Args:
        sample: a plain or a reinforced sample.
        layout: `npz` (float32 embeddings), `pth.gz` (bfloat16), `compact` (bfloat16 in the compact record) or
            `compact8` (8 bits in the compact record).

    Raises:
        BadSampleError: if the sample already has a member that the layout writes, or an embedding cannot be rounded to
            the layout's precision.
        ValueError: if the sample is too large for the compact record.
    """
    members = {"txt": sample.captions[0].encode()}
    if sample.image is not None:
        members[sample.image_extension] = sample.image
    if sample.url is not None:
        members["url.txt"] = sample.url.encode()
    if sample.metadata:
        members["json"] = _to_json(sample.metadata)
    synthetic: dict[str, Sequence[str]] = dict(sample.syn_captions)
    if len(sample.captions) > 1:
        synthetic[_MORE_TEXT] = sample.captions[1:]
    if not isinstance(sample, ReinforcedSample):
        if synthetic:
            members["syn.json"] = _to_json(synthetic)
    elif layout in ("npz", "pth.gz"):
        check_layout(sample, layout)
        if synthetic:
            members["syn.json"] = _to_json(synthetic)
        members["paug.json"] = _to_json(_stored_augmentations(sample))
        arrays = _public_arrays(sample)
        members[layout] = write_npz(arrays) if layout == "npz" else write_pth_gz(arrays)
    else:
        content = {"paug.json": _stored_augmentations(sample), "syn.json": synthetic}
        members[RECORD] = write_record(content, _named_arrays(sample), "bfloat16" if layout == "compact" else "int8")
    return members | dict(sample.others)


def check_layout(sample: ImageTextSample, layout: Layout) -> None:
    """Raise if a layout cannot store the reinforced sample together with the sample's other members.

    Raises:
        BadSampleError: if the layout is public and the sample already has a member `npz` or `pth.gz`, which readers
            would mistake for embeddings.
    """
    taken = _PUBLIC_MEMBERS.intersection(sample.others) if layout in ("npz", "pth.gz") else ()
    if taken:
        raise BadSampleError(
            "bad_member", f"{sample.key} already has a member {', '.join(sorted(taken))}; choose the compact layout"
        )


def json_captions(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the captions in a JSON object, without blanks and duplicates.

    Args:
        metadata: the JSON object, with a caption or a list of captions under `caption`, `captions`, `text` or `texts`.

    Raises:
        BadSampleError: if the value of one of the four keys is neither a string nor a list of strings.
    """
    captions: dict[str, None] = {}
    for name in _JSON_CAPTIONS:
        found = metadata.get(name)
        texts = [] if found is None else [found] if isinstance(found, str) else found
        captions |= dict.fromkeys(drop_blank(_caption_list(texts, name)))
    return tuple(captions)


class _Members:
    """The parsed members of one sample; the captions include blank captions, which also have embeddings."""

    def __init__(self, key: str, members: Mapping[str, bytes], limits: SampleLimits) -> None:
        self._key, self._members, self._limits = key, members, limits
        self._record = CompactRecord(members[RECORD]) if RECORD in members else None
        there = self._record is not None or "syn.json" in members
        synthetic: Mapping[str, Any] = self.object("syn.json") if there else {}
        self._metadata = _json_object(members, "json", limits) if "json" in members else {}
        self._first = json_captions(self._metadata) if "txt" not in members else (_text(members, "txt", limits),)
        if not self._first:
            raise BadSampleError("missing_member", f"{key}.txt is missing, and {key}.json has no caption")
        self._more = _caption_list(synthetic.get(_MORE_TEXT, []), _MORE_TEXT)
        self._sets = {name: _caption_list(texts, name) for name, texts in synthetic.items() if SYN_NAME.fullmatch(name)}

    def object(self, name: str) -> Mapping[str, Any]:
        """Return a JSON object from the compact record or, without a record, from a member."""
        if self._record is None:
            return _json_object(self._members, name, self._limits)
        value = self._record.content.get(name)
        if not isinstance(value, dict):
            raise BadSampleError("bad_json", f"{name} in the compact record is {type(value).__name__}, not an object")
        return value

    def plain_fields(self) -> dict[str, Any]:
        """Return the fields of an `ImageTextSample`."""
        members = self._members
        extension = next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)
        known = {extension} | _PLAIN_MEMBERS | (_PUBLIC_MEMBERS if "paug.json" in members else frozenset())
        return {
            "key": self._key,
            "captions": drop_blank((*self._first, *self._more)),
            "syn_captions": {name: drop_blank(texts) for name, texts in self._sets.items()},
            "image": None if extension is None else members[extension],
            "image_extension": extension or "jpg",
            "url": _text(members, "url.txt", self._limits) if "url.txt" in members else None,
            "metadata": self._metadata,
            "others": {name: content for name, content in members.items() if name and name not in known},
        }

    def embeddings(self, num_augmentations: int) -> EmbeddingRows:
        """Return the embeddings of any layout; the counts of augmentations and captions limit the decompressed size."""
        if self._record is not None:
            return self._record
        num_captions = len(self._first) + len(self._more) + sum(map(len, self._sets.values()))
        limit = self._limits.inflated_bytes(num_augmentations + num_captions)
        for extension in ("npz", "pth.gz"):
            if extension in self._members:
                return read_embeddings(f"{self._key}.{extension}", self._members[extension], limit=limit)
        raise BadSampleError(
            "missing_member", f"neither {self._key}.npz nor {self._key}.pth.gz exists, so the embeddings are missing"
        )

    def places(
        self, num_augmentations: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, tuple[tuple[str, int], ...]]:
        """Check all shapes, and return the location of every row except the rows of blank captions."""
        names = {name: f"{name}_emb" for name in self._sets}
        counts = {"image_emb": num_augmentations, "text_emb": len(self._first)}
        starts = dict.fromkeys(names, 0)
        if len(names) == 1 and not shapes.keys() & names.values():
            # The first release has one array for the caption and the set.
            (name,) = names
            names[name], starts[name] = "text_emb", len(self._first)
            counts["text_emb"] += len(self._sets[name])
        else:
            counts |= {names[name]: len(texts) for name, texts in self._sets.items()}
        if self._more:
            counts[f"{_MORE_TEXT}_emb"] = len(self._more)
        for array in counts:
            if array not in shapes:
                raise BadSampleError(
                    "missing_member", f"the embeddings {array} are missing; the sample has {sorted(shapes)}"
                )
        dim = shapes["image_emb"][-1] if len(shapes["image_emb"]) == 2 else 0
        for array, count in counts.items():
            check_shape(array, shapes[array], count, dim)
        num_bytes, most = 4 * sum(counts.values()) * dim, self._limits.embedding_bytes
        if num_bytes > most:
            raise BadSampleError("too_large", f"the embeddings take {num_bytes:,} bytes, more than {most:,}")
        more = _rows_of(self._more, f"{_MORE_TEXT}_emb", 0)
        return {
            "image_emb": _all_rows("image_emb", num_augmentations),
            "text_emb": _rows_of(self._first, "text_emb", 0) + more,
            **{f"{name}_emb": _rows_of(self._sets[name], names[name], starts[name]) for name in names},
        }


@lru_cache(maxsize=64)  # samples of a data set have the same number of augmentations
def _all_rows(array: str, count: int) -> tuple[tuple[str, int], ...]:
    return tuple((array, index) for index in range(count))


def _rows_of(texts: Sequence[str], array: str, start: int) -> tuple[tuple[str, int], ...]:
    return tuple((array, start + index) for index, text in enumerate(texts) if text.strip())


def _stored_augmentations(sample: AugmentedSample) -> dict[str, Any]:
    stored: dict[str, Any] = {"param_aug": [compress(params) for params in sample.augmentations]}
    if sample.image_size is not None:
        stored["image_size"] = sample.image_size
    if sample.image_sha256 is not None:
        stored["image_sha256"] = sample.image_sha256
    return stored


def _named_arrays(sample: ReinforcedSample) -> dict[str, Embeddings]:
    """Return the embeddings under the array names of MobileCLIP2's data, where the first caption has its own array."""
    arrays = {"image_emb": sample.image_emb, "text_emb": sample.text_emb[:1]}
    if len(sample.captions) > 1:
        arrays[f"{_MORE_TEXT}_emb"] = sample.text_emb[1:]
    return arrays | {f"{name}_emb": emb for name, emb in sample.syn_text_emb.items()}


def _public_arrays(sample: ReinforcedSample) -> dict[str, Embeddings]:
    if len(sample.captions) > 1 or set(sample.syn_captions) != {SYN_TEXT}:
        return _named_arrays(sample)
    return {
        "image_emb": sample.image_emb,
        "text_emb": np.concatenate([sample.text_emb, sample.syn_text_emb[SYN_TEXT]]),
    }


def _text(members: Mapping[str, bytes], name: str, limits: SampleLimits) -> str:
    if len(members[name]) > limits.text_bytes:
        raise BadSampleError("too_large", f"{name} has more than {limits.text_bytes:,} bytes")
    try:
        return members[name].decode()
    except UnicodeDecodeError as error:
        raise BadSampleError("bad_text", f"{name} is not UTF-8: {error}") from None


def _json_object(members: Mapping[str, bytes], name: str, limits: SampleLimits) -> dict[str, Any]:
    if name not in members:
        raise BadSampleError("missing_member", f"{name} is missing")
    return parse_object(members[name], name, limit=limits.text_bytes)


def _caption_list(texts: Any, name: str) -> tuple[str, ...]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadSampleError("bad_json", f"{name} is not a list of captions")
    return tuple(texts)


def _read_augmentations(stored: Mapping[str, Any]) -> StoredViews:
    try:
        compressed = stored["param_aug"]
        # The copy of the public data on the Hugging Face hub stores the list as a string.
        compressed = json.loads(compressed) if isinstance(compressed, str) else compressed
        found = stored.get("image_size")
        size = None if found is None else (int(found[0]), int(found[1]))
        augmentations = StoredViews(compressed if isinstance(compressed, list) else tuple(compressed), size)
    except KeyError:
        raise BadSampleError("bad_json", "paug.json has no param_aug") from None
    except (TypeError, ValueError, IndexError, RecursionError, OverflowError) as error:
        raise BadSampleError("bad_augmentation", f"paug.json: {error}") from None
    if not augmentations:
        raise BadSampleError("bad_augmentation", "param_aug in paug.json is empty")
    return augmentations


def _to_json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # an unpaired surrogate, which JSON can represent and UTF-8 cannot
        return json.dumps(value).encode()
