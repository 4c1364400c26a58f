"""Small files that another process writes anew every now and then."""

from __future__ import annotations

import time
from typing import TypeVar

from mobileclip import storage
from mobileclip.serialization import from_json

Content = TypeVar("Content")

_NUM_LOOKS = 3
_SECONDS_BETWEEN_LOOKS = 0.1


def read_changing(path: storage.AnyPath, cls: type[Content], *, limit: int) -> Content:
    """Return what a file of JSON holds.

    A store is asked for the size of a file and then for its bytes, between which another process may have written it
    anew; so what cannot be read is looked at again.

    Args:
        path: path or address.
        cls: of what it holds.
        limit: bytes; a larger file is refused.

    Raises:
        ValueError: if it is damaged at the last look, too.
        OSError: if it cannot be read, or is larger.
    """
    for _ in range(_NUM_LOOKS - 1):
        try:
            return from_json(storage.read_bytes(path, limit=limit).decode(), cls)
        except ValueError:  # noqa: PERF203 - few looks
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return from_json(storage.read_bytes(path, limit=limit).decode(), cls)
