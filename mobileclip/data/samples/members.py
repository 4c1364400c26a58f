"""Samples as the members of a shard, in the layouts of the public reinforced data sets and in the compact one.

A caption that is blank is left out when a sample is read, together with its embedding. The sample is refused, with the
reason no_caption, where no real caption is left; a set of synthetic captions may end up empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import attrs
import numpy as np

from mobileclip.data.augmentation.replay import compress
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
    """Return the JSON object in a member, a line or a file.

    Args:
        text: UTF-8, with a byte-order mark or without.
        name: what it is, for messages.
        limit: bytes that it may have.

    Raises:
        BadSampleError: with the reason `too_large`, `bad_text` if it is not UTF-8, or `bad_json` if it is not JSON, no
            object, or names something twice.
    """
    if len(text) > limit:
        raise BadSampleError("too_large", f"{name} has {len(text):,} bytes, more than the {limit:,} that it may")
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise BadSampleError("bad_text", f"{name} is not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadSampleError("bad_json", f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadSampleError("bad_json", f"{name} holds {type(value).__name__}, expected an object")
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice in an object")
    return found


RECORD = "reinforced"

_PLAIN_MEMBERS = frozenset(("txt", "json", "url.txt", "syn.json", RECORD))
_PUBLIC_MEMBERS = frozenset(("paug.json", "npz", "pth.gz"))
# Further real captions; the public loaders know one per sample and ignore what they do not know.
_MORE_TEXT = "more_text"
_JSON_CAPTIONS = ("caption", "captions", "text", "texts")


def parse_sample(key: str, members: Mapping[str, bytes], limits: SampleLimits = SAMPLE_LIMITS) -> ImageTextSample:
    """Return the image-text sample of a shard's members, without augmentations and teachers' embeddings.

    Args:
        key: the sample's key.
        members: extension to content, such as `jpg`, `txt`, `url.txt`, `json`, `syn.json`.
        limits: of what is read.

    Raises:
        BadSampleError: if the caption is missing or a member is malformed.
    """
    record = CompactRecord(members[RECORD]) if RECORD in members else None
    return ImageTextSample(**_plain_fields(key, members, _read_captions(key, members, record, limits), limits))


def parse_stored_sample(key: str, members: Mapping[str, bytes], limits: SampleLimits = SAMPLE_LIMITS) -> StoredSample:
    """Return a reinforced sample from the members of a shard, of any layout, decoding as little as the layout allows.

    Args:
        key: the sample's key.
        members: extension to content: those of `parse_sample`, and either `reinforced` or `paug.json` with `npz` or
            `pth.gz`.
        limits: of what is read.

    Raises:
        BadSampleError: if a member is missing or malformed, or the members disagree.
    """
    record = CompactRecord(members[RECORD]) if RECORD in members else None
    captions = _read_captions(key, members, record, limits)
    stored = _json_object(members, "paug.json", limits) if record is None else _record_object(record, "paug.json")
    augmentations = _read_augmentations(stored)
    num_rows = len(augmentations) + captions.count
    limit = limits.inflated_bytes(num_rows)
    embeddings = _public_embeddings(key, members, limit) if record is None else record
    return StoredSample(
        **_plain_fields(key, members, captions, limits),
        augmentations=augmentations,
        image_sha256=_read_hash(stored),
        embeddings=embeddings,
        places=_places(captions, len(augmentations), embeddings, limits),
    )


def parse_reinforced_sample(
    key: str, members: Mapping[str, bytes], limits: SampleLimits = SAMPLE_LIMITS
) -> ReinforcedSample:
    """Return a reinforced sample from the members of a shard, of any layout, with all its embeddings.

    Args:
        key: the sample's key.
        members: extension to content, as `parse_stored_sample` takes them.
        limits: of what is read.

    Raises:
        BadSampleError: if a member is missing or malformed, or the members disagree.
    """
    return parse_stored_sample(key, members, limits).decoded()


def sample_members(sample: ImageTextSample, layout: Layout = "npz") -> dict[str, bytes]:
    """Return the members of a shard that hold a sample, by extension.

    In the public layouts, one real caption and one unnamed set of synthetic captions are stored as the first release
    does, with all text embeddings in `text_emb`; named sets as the second one does, with `NAME_emb` beside. The source
    image's size and hash go into `paug.json`, where the public loaders ignore them.

    Args:
        sample: a plain or a reinforced sample.
        layout: `npz` for float32 embeddings, `pth.gz` for bfloat16 ones, `compact` for bfloat16 and `compact8` for
            8-bit ones in the compact record.

    Raises:
        BadSampleError: if the sample brings a member along that the layout writes, or an embedding cannot be rounded.
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
    """Raise unless the sample, once it is reinforced, can be stored in a layout beside the members it brings along.

    Raises:
        BadSampleError: if it has an `npz` or a `pth.gz` of its own, which a reader of a public layout would confuse.
    """
    taken = _PUBLIC_MEMBERS.intersection(sample.others) if layout in ("npz", "pth.gz") else ()
    if taken:
        raise BadSampleError(
            "bad_member", f"{sample.key} has a member {', '.join(sorted(taken))} of its own; choose the compact layout"
        )


def json_captions(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the captions in a JSON object, without blank and repeated ones.

    Args:
        metadata: may have a caption or a list of captions under each of `caption`, `captions`, `text` and `texts`.

    Raises:
        BadSampleError: if one of them is neither.
    """
    captions: dict[str, None] = {}
    for name in _JSON_CAPTIONS:
        found = metadata.get(name)
        texts = [] if found is None else [found] if isinstance(found, str) else found
        captions |= dict.fromkeys(drop_blank(_caption_list(texts, name)))
    return tuple(captions)


@attrs.frozen(kw_only=True)
class _Captions:
    """The captions of a sample as they are stored, blank ones included: each has a row in the embeddings."""

    first: tuple[str, ...]
    more: tuple[str, ...]
    sets: Mapping[str, tuple[str, ...]]

    @property
    def count(self) -> int:
        """Number of captions, and so of rows."""
        return len(self.first) + len(self.more) + sum(map(len, self.sets.values()))


def _read_captions(
    key: str, members: Mapping[str, bytes], record: CompactRecord | None, limits: SampleLimits
) -> _Captions:
    synthetic: Mapping[str, Any] = {}
    if record is not None:
        synthetic = _record_object(record, "syn.json")
    elif "syn.json" in members:
        synthetic = _json_object(members, "syn.json", limits)
    if "txt" in members:
        first: tuple[str, ...] = (_text(members, "txt", limits),)
    else:
        first = json_captions(_json_object(members, "json", limits)) if "json" in members else ()
        if not first:
            raise BadSampleError("missing_member", f"{key}.txt is missing, the caption, and {key}.json has none")
    return _Captions(
        first=first,
        more=_caption_list(synthetic.get(_MORE_TEXT, []), _MORE_TEXT),
        sets={name: _caption_list(texts, name) for name, texts in synthetic.items() if SYN_NAME.fullmatch(name)},
    )


def _plain_fields(key: str, members: Mapping[str, bytes], captions: _Captions, limits: SampleLimits) -> dict[str, Any]:
    """Return the fields of an `ImageTextSample`."""
    extension = next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)
    known = {extension} | _PLAIN_MEMBERS | (_PUBLIC_MEMBERS if "paug.json" in members else frozenset())
    return {
        "key": key,
        "captions": drop_blank((*captions.first, *captions.more)),
        "syn_captions": {name: drop_blank(texts) for name, texts in captions.sets.items()},
        "image": None if extension is None else members[extension],
        "image_extension": extension or "jpg",
        "url": _text(members, "url.txt", limits) if "url.txt" in members else None,
        "metadata": _json_object(members, "json", limits) if "json" in members else {},
        "others": {name: content for name, content in members.items() if name and name not in known},
    }


def _places(
    captions: _Captions, num_augmentations: int, embeddings: EmbeddingRows, limits: SampleLimits
) -> dict[str, tuple[tuple[str, int], ...]]:
    """Return where every row that is not of a blank caption is stored, having compared all shapes."""
    shapes = embeddings.shapes
    names = {name: f"{name}_emb" for name in captions.sets}
    counts = {"image_emb": num_augmentations, "text_emb": len(captions.first)}
    starts = dict.fromkeys(names, 0)
    if len(names) == 1 and not shapes.keys() & names.values():
        # The first release has one array for the caption and the set.
        (name,) = names
        names[name], starts[name] = "text_emb", len(captions.first)
        counts["text_emb"] += len(captions.sets[name])
    else:
        counts |= {names[name]: len(texts) for name, texts in captions.sets.items()}
    if captions.more:
        counts[f"{_MORE_TEXT}_emb"] = len(captions.more)
    for array in counts:
        if array not in shapes:
            raise BadSampleError("missing_member", f"the embeddings {array} are missing, there are {sorted(shapes)}")
    dim = shapes["image_emb"][-1] if len(shapes["image_emb"]) == 2 else 0
    for array, count in counts.items():
        check_shape(array, shapes[array], count, dim)
    num_bytes = sum(counts.values()) * dim * np.dtype(np.float32).itemsize
    if num_bytes > limits.embedding_bytes:
        raise BadSampleError(
            "too_large", f"the embeddings take {num_bytes:,} bytes, more than {limits.embedding_bytes:,}"
        )
    more = _rows_of(captions.more, f"{_MORE_TEXT}_emb", 0)
    return {
        "image_emb": _all_rows("image_emb", num_augmentations),
        "text_emb": _rows_of(captions.first, "text_emb", 0) + more,
        **{f"{name}_emb": _rows_of(captions.sets[name], names[name], starts[name]) for name in names},
    }


@lru_cache(maxsize=64)  # samples of a data set have as many augmentations each
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
    """Return the embeddings by name, as the second release has them: the first caption's apart from all others."""
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


def _record_object(record: CompactRecord, name: str) -> Mapping[str, Any]:
    value = record.content.get(name)
    if not isinstance(value, dict):
        raise BadSampleError("bad_json", f"{name} in the compact record is {type(value).__name__}, expected an object")
    return value


def _caption_list(texts: Any, name: str) -> tuple[str, ...]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadSampleError("bad_json", f"{name} is not a list of captions")
    return tuple(texts)


def _read_augmentations(stored: Mapping[str, Any]) -> StoredViews:
    try:
        compressed = stored["param_aug"]
        # The copy of the public data on its hub holds the list as a string.
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


def _read_hash(stored: Mapping[str, Any]) -> str | None:
    value = stored.get("image_sha256")
    if value is not None and not isinstance(value, str):
        raise BadSampleError("bad_json", f"image_sha256 in paug.json is {type(value).__name__}, expected a string")
    return value


def _public_embeddings(key: str, members: Mapping[str, bytes], limit: int) -> EmbeddingRows:
    for extension in ("npz", "pth.gz"):
        if extension in members:
            return read_embeddings(f"{key}.{extension}", members[extension], limit=limit)
    raise BadSampleError("missing_member", f"neither {key}.npz nor {key}.pth.gz is there, the embeddings")


def _to_json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        return json.dumps(value).encode()
