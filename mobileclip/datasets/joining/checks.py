"""Whether an image is the one that a reinforced sample was made of, as far as its members tell."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import attrs

from mobileclip.data.images.opening import open_image
from mobileclip.data.images.transform import LIMITS, ImageError
from mobileclip.data.samples.compact import CompactRecord
from mobileclip.data.samples.members import RECORD, json_captions, parse_object
from mobileclip.data.samples.sample import SampleLimits, decode_image, hash_image
from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.joining.comparison import Likeness, compare, is_of, stated_of


@attrs.frozen(kw_only=True)
class Checked:
    """The result of comparing an image with what a reinforced sample states about it.

    Args:
        likeness: whether it is the image that the sample states.
        reach: how far the crops reach to the right or down, as a share of the image; about 1 in the image that was
            reinforced, and one half in a copy of twice its width and height. None where there is no crop.
    """

    likeness: Likeness
    reach: float | None


def check_joined(
    members: Mapping[str, bytes],
    image: bytes,
    *,
    stated: Mapping[str, Any],
    beside: bytes | None,
    keep_other: bool,
    decode: bool,
    limits: SampleLimits,
) -> Checked:
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

    Raises:
        BadSampleError: with the reason `wrong_image`, `other_image`, that of the decoder, or that of a malformed
            member.
    """
    stored, sha256 = _augmentations(members, limits), hash_image(image)
    expected = stored.get("image_sha256")
    if expected is not None and sha256 != expected:
        raise BadSampleError("wrong_image", f"its SHA-256 is not {str(expected)[:12]}")
    likeness: Likeness = "stored"
    if expected is None:
        own = stated_of(members.get("json"), limits)
        likeness = compare({**stated, **own}, sha256, stated_of(beside, limits))
    if likeness == "other" and not keep_other:
        raise BadSampleError("other_image", "neither it nor its download has the hash and size that are stated")
    width, height = decode_image(image, orient=False).size if decode else _size(image)
    size, right, bottom = _needed(stored)
    if size not in (None, (width, height)):
        raise BadSampleError("wrong_image", f"it has {width}x{height} pixels, not {size}")
    if likeness == "downloaded" and not keep_other and not is_of(stated_of(beside, limits), (width, height)):
        raise BadSampleError(
            "other_image", f"it has {width}x{height} pixels, and the JSON beside it is of another file"
        )
    if right > width or bottom > height:
        raise BadSampleError("wrong_image", f"a crop leaves its {width}x{height} pixels")
    return Checked(likeness=likeness, reach=max(right / width, bottom / height) if right else None)


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


def _size(image: bytes) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return open_image(image, LIMITS).image.size
    except ImageError as error:
        raise BadSampleError(f"image_{error.reason}", error.message) from None
