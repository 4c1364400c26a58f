"""Whether an image is the one that a reinforced sample was made of, as far as members and other data sets tell.

A published sample states the SHA-256 of the bytes that were once downloaded. What was downloaded again may have been
resized or encoded anew, so that the file in a shard has another hash; then the JSON beside the image, which
`img2dataset` writes, has the hash of the download.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs

from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.opening import open_image
from mobileclip.data.images.transform import LIMITS
from mobileclip.data.samples.compact import CompactRecord
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.samples.members import RECORD, json_captions, parse_object
from mobileclip.data.samples.sample import decode_image, hash_image
from mobileclip.data.shards.files import read_shard
from mobileclip.data.skips import BadSampleError, Skip

Likeness = Literal["stored", "downloaded", "other", "unknown"]
"""`stored`: the file has the stated hash. `downloaded`: its download had, as stands beside it. `other`: neither has, or
the download had another size. `unknown`: there is nothing to compare."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIZE, _ORIGINAL_SIZE = ("width", "height"), ("original_width", "original_height")
_UID = "uid"


def compare(stated: Mapping[str, Any], sha256: str, beside: Mapping[str, Any]) -> Likeness:
    """Return whether an image is the one that a sample states.

    Args:
        stated: the sample's JSON: `sha256` and the original size of the download, as far as they are there.
        sha256: of the image, as it is stored.
        beside: the JSON beside the image: `sha256` and sizes, as far as they are there.
    """
    expected, download = _sha256(stated), _sha256(beside)
    if sha256 == expected:
        return "stored"
    if expected is not None and download is not None:
        return "downloaded" if download == expected else "other"
    stored, original = _size(beside, _SIZE), _size(beside, _ORIGINAL_SIZE)
    if _differ(_size(stated, _ORIGINAL_SIZE), original):
        return "other"
    # The hash of a file that was made smaller says nothing about its download.
    return "unknown" if expected is None or _differ(stored, original) else "other"


def stated_of(content: bytes | None, limits: SampleLimits) -> Mapping[str, Any]:
    """Return the object in a `.json` member; an empty one where there is none, or none that can be read.

    Args:
        content: of the member.
        limits: of what is read.
    """
    try:
        return parse_object(content or b"{}", "json", limit=limits.text_bytes)
    except BadSampleError:
        return {}


def _sha256(stated: Mapping[str, Any]) -> str | None:
    value = stated.get("sha256")
    return value.lower() if isinstance(value, str) and _SHA256.fullmatch(value.lower()) else None


def _size(stated: Mapping[str, Any], names: tuple[str, str]) -> tuple[int, int] | None:
    width, height = (_pixels(stated.get(name)) for name in names)
    return None if width is None or height is None else (width, height)


def _pixels(value: object) -> int | None:
    # Tables write whole numbers as 640.0 where a row lacks one.
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
    """Return what is known of an image, or raise where it is not the one that was reinforced.

    The hash and the size of the file, where the augmentations state them, and every crop must fit. The hash of the
    download must too, unless others are kept.

    Args:
        members: of the reinforced sample.
        image: the encoded image.
        stated: what a data set of captions says of the download; the sample's own JSON comes first.
        beside: the JSON beside the image, where there is one.
        keep_other: whether an image whose download had another hash, or another size, will do.
        decode: whether to decode it to its end, and not its header alone.
        limits: of what is read.

    Returns:
        Whether it is the image that the sample states; and how far the crops reach to the right or down, as a share of
        the image: about 1 in the image that was reinforced, one half in a copy of twice its width and height, None
        where there is no crop.

    Raises:
        BadSampleError: with the reason `wrong_image`, `other_image`, that of the decoder, or that of a malformed
            member.
    """
    stored, sha256, told = _augmentations(members, limits), hash_image(image), stated_of(beside, limits)
    expected = stored.get("image_sha256")
    if expected not in (None, sha256):
        raise BadSampleError("wrong_image", f"its SHA-256 is not {str(expected)[:12]}")
    likeness: Likeness = "stored"
    if expected is None:
        likeness = compare({**stated, **stated_of(members.get("json"), limits)}, sha256, told)
    if likeness == "other" and not keep_other:
        raise BadSampleError("other_image", "neither it nor its download has the hash and size that are stated")
    width, height = decode_image(image, orient=False).size if decode else _image_size(image)
    size, right, bottom = _needed(stored)
    if size not in (None, (width, height)):
        raise BadSampleError("wrong_image", f"it has {width}x{height} pixels, not {size}")
    if likeness == "downloaded" and not keep_other and _differ(_size(told, _SIZE), (width, height)):
        detail = f"it has {width}x{height} pixels, and the JSON beside it is of another file"
        raise BadSampleError("other_image", detail)
    if right > width or bottom > height:
        raise BadSampleError("wrong_image", f"a crop leaves its {width}x{height} pixels")
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
    """Return the image's size, where it is stated, and how far its crops reach to the right and down."""
    try:
        stated = stored.get("image_size")
        augmentations = stored.get("param_aug", [])
        # The copy of the public data on its hub holds the list as a string.
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
    """A sample in the data set of captions: its caption and the JSON beside it.

    Args:
        text: the caption.
        stated: the JSON beside it.
    """

    text: bytes
    stated: Mapping[str, Any]


def read_captions(shard: str | None, on_skip: Callable[[Skip], None], limits: SampleLimits) -> dict[str, Captioned]:
    """Return the captions of one shard, by key and by uid, of which the first counts.

    Args:
        shard: its path or URL; None for no captions at all.
        on_skip: called with what was wrong with the shard.
        limits: of what is read.
    """
    known: dict[str, Captioned] = {}
    for sample in () if shard is None else read_shard(shard, on_skip, limits):
        if sample.problem is None and sample.members.get("txt", b"").strip():
            stated = stated_of(sample.members.get("json"), limits)
            for name in (sample.key, stated.get(_UID)):
                if isinstance(name, str):
                    known.setdefault(name, Captioned(text=sample.members["txt"], stated=stated))
    return known


def find_caption(known: Mapping[str, Captioned], key: str, stated: Mapping[str, Any]) -> Captioned | None:
    """Return what is known of a sample, None where there is nothing.

    Args:
        known: see `read_captions`.
        key: of the sample.
        stated: its JSON, whose `uid` comes before the key.

    Raises:
        BadSampleError: with the reason `other_caption`, if the caption is one of another picture.
    """
    uid = stated.get(_UID)
    found = (known.get(uid) if isinstance(uid, str) else None) or known.get(key)
    if found is not None and "sha256" in stated and found.stated.get("sha256", stated["sha256"]) != stated["sha256"]:
        raise BadSampleError("other_caption", "the caption under its uid is one of a picture with another hash")
    return found
