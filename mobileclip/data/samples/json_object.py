"""JSON objects from data, read strictly: in UTF-8, every name once, not too large and not too deep.

Numbers that JSON has not, such as NaN, are let through as `json` reads them: tables write them into metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mobileclip.data.skips import BadSampleError

# Writing what is deeper would end at Python's own limit.
MAX_DEPTH = 200


def parse_object(text: bytes, name: str, *, limit: int) -> dict[str, Any]:
    """Return the JSON object in a member, a line or a file.

    Args:
        text: UTF-8, with a byte-order mark or without.
        name: what it is, for messages.
        limit: bytes that it may have.

    Raises:
        BadSampleError: with the reason `too_large`, `bad_text` if it is not UTF-8, or `bad_json` if it is not JSON, no
            object, too deep, or names something twice.
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
    # Most objects are flat, and have fewer brackets than levels are allowed.
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and not _is_flat(value):
        raise BadSampleError("bad_json", f"{name} is nested more than {MAX_DEPTH} levels deep")
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice in an object")
    return found


def _is_flat(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for one in level
            if isinstance(one, (dict, list))
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return True
    return False
