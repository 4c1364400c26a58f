"""A sample's uid: 128 bits, as DataComp and DFN name samples in their lists of subsets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobileclip.data.buckets import Buckets, leading_bits
from mobileclip.storage import atomic_path

Uids = npt.NDArray[Any]
"""Pairs of unsigned 64-bit numbers, the upper and the lower half of each uid."""

PAIR = np.dtype("u8,u8")
HEX = re.compile(r"[0-9a-f]{32}")

_UID = re.compile(rb'"uid"\s*:\s*"([0-9a-f]{32})"')
_NUM_BUCKETS = 256


def uid_of(key: str, members: Mapping[str, bytes]) -> tuple[int, int]:
    """Return the upper and the lower half of a sample's uid.

    It is `uid` in the sample's `.json`, else its key if that has 32 hexadecimal digits, else the first half of its
    key's SHA-256.

    Args:
        key: of the sample.
        members: content by extension.
    """
    found = _UID.search(members.get("json", b""))
    digits = found[1].decode() if found is not None else key
    if not HEX.fullmatch(digits):
        digits = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
    return int(digits[:16], 16), int(digits[16:], 16)


def sorted_uids(uids: Uids) -> Uids:
    """Return uids in ascending order, each once."""
    ordered = uids[np.lexsort((uids["f1"], uids["f0"]))]
    is_new = np.ones(len(ordered), dtype=bool)
    is_new[1:] = (ordered["f0"][1:] != ordered["f0"][:-1]) | (ordered["f1"][1:] != ordered["f1"][:-1])
    return ordered[is_new]


def write_uids(path: Path, parts: Iterable[Uids]) -> int:
    """Write a list of uids as DataComp publishes its own, sorted, each once; return how many there are.

    They are sorted a 256th at a time, so that a billion need some 100 MB of memory, and 16 GB beside the file.

    Args:
        path: a `.npy` file; what is there is replaced when the new one is complete.
        parts: the uids, in any order.
    """
    with Buckets(PAIR, _NUM_BUCKETS, folder=path.parent) as buckets:
        for part in parts:
            buckets.add(part, leading_bits(part["f0"], _NUM_BUCKETS))
        # As many as there are with repeats, until they are sorted: the header comes first.
        num_uids = sum(len(sorted_uids(bucket)) for bucket in buckets)
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:  # noqa: PTH123 - a path as text
            header = {"descr": np.lib.format.dtype_to_descr(PAIR), "fortran_order": False, "shape": (num_uids,)}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.writelines(sorted_uids(bucket).tobytes() for bucket in buckets)
    return num_uids
