"""What is stated about the image of a sample, held against the image that was found: equal, other, or unknown.

A published sample states the SHA-256 of the bytes that were once downloaded. What was downloaded again may have been
resized or encoded anew, so that the file in a shard has another hash; then the JSON beside the image, which
`img2dataset` writes, has the hash of the download.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from mobileclip.data.samples.members import parse_object
from mobileclip.data.samples.sample import SampleLimits
from mobileclip.data.skips import BadSampleError

Likeness = Literal["stored", "downloaded", "other", "unknown"]
"""`stored`: the file has the stated hash. `downloaded`: its download had, as stands beside it. `other`: neither has, or
the download had another size. `unknown`: there is nothing to compare."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ORIGINAL_SIZE = ("original_width", "original_height")


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
    sizes = _size(stated, _ORIGINAL_SIZE), _size(beside, _ORIGINAL_SIZE)
    if None not in sizes and sizes[0] != sizes[1]:
        return "other"
    # The hash of a file that was made smaller says nothing about its download.
    return "unknown" if expected is None or _was_resized(beside) else "other"


def is_of(beside: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Return whether the size that the JSON beside an image states, if any, is the image's.

    Args:
        beside: the JSON.
        size: width and height of the image as it is stored.
    """
    return _size(beside, ("width", "height")) in (None, size)


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
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Tables write whole numbers as 640.0 where a row lacks one.
    return int(value) if isinstance(value, int) or value.is_integer() else None


def _was_resized(beside: Mapping[str, Any]) -> bool:
    sizes = _size(beside, ("width", "height")), _size(beside, _ORIGINAL_SIZE)
    return None not in sizes and sizes[0] != sizes[1]
