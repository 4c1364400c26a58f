"""Whether an image is the one that a reinforced sample was made of, as far as its members tell."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from mobileclip.data.images.opening import open_image
from mobileclip.data.images.transform import LIMITS, ImageError
from mobileclip.data.samples.compact import CompactRecord
from mobileclip.data.samples.json_object import parse_object
from mobileclip.data.samples.limits import SampleLimits
from mobileclip.data.samples.members import RECORD, json_captions
from mobileclip.data.samples.sample import decode_image, hash_image
from mobileclip.data.skips import BadSampleError


def check_joined(members: Mapping[str, bytes], image: bytes, *, decode: bool, limits: SampleLimits) -> None:
    """Raise unless the image fits the augmentations: its hash and size where they are stated, and every crop inside.

    Args:
        members: of the reinforced sample.
        image: the encoded image.
        decode: whether to decode it to its end, and not its header alone.
        limits: of what is read.

    Raises:
        BadSampleError: with the reason `wrong_image`, that of the decoder, or that of a malformed member.
    """
    stored = _augmentations(members, limits)
    expected = stored.get("image_sha256")
    if expected is not None and hash_image(image) != expected:
        raise BadSampleError("wrong_image", f"its SHA-256 is not {str(expected)[:12]}")
    width, height = decode_image(image).size if decode else _size(image)
    stated, right, bottom = _needed(stored)
    if stated not in (None, (width, height)):
        raise BadSampleError("wrong_image", f"it has {width}x{height} pixels, not {stated}")
    if right > width or bottom > height:
        raise BadSampleError("wrong_image", f"a crop leaves its {width}x{height} pixels")


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
