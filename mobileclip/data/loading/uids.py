"""128-bit sample uids, and uid lists that select samples, in the format of DataComp's and DFN's subsets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
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

    The uid is the value of `uid` in the sample's `.json`; otherwise the sample's key, if made of 32 hexadecimal digits;
    otherwise the first half of the key's SHA-256.

    Args:
        key: key of the sample.
        members: content of each member by extension.
    """
    found = _UID.search(members.get("json", b""))
    digits = found[1].decode() if found is not None else key
    if not HEX.fullmatch(digits):
        digits = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
    return int(digits[:16], 16), int(digits[16:], 16)


def sorted_uids(uids: Uids) -> Uids:
    """Return the unique uids in ascending order."""
    ordered = uids[np.lexsort((uids["f1"], uids["f0"]))]
    is_new = np.ones(len(ordered), dtype=bool)
    is_new[1:] = (ordered["f0"][1:] != ordered["f0"][:-1]) | (ordered["f1"][1:] != ordered["f1"][:-1])
    return ordered[is_new]


def write_uids(path: Path, parts: Iterable[Uids]) -> int:
    """Write the sorted unique uids in DataComp's format, and return the number of unique uids.

    The function sorts 1/256 of the uids at a time, so a billion uids need about 100 MB of memory, and 16 GB of disk in
    addition to the file.

    Args:
        path: a `.npy` file; an existing file is replaced atomically.
        parts: arrays of uids in any order.
    """
    with Buckets(PAIR, _NUM_BUCKETS, folder=path.parent) as buckets:
        for part in parts:
            buckets.add(part, leading_bits(part["f0"], _NUM_BUCKETS))
        # The header has the number of unique uids and comes first: read the buckets once to count and once to write.
        num_uids = sum(len(sorted_uids(bucket)) for bucket in buckets)
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:  # noqa: PTH123 - a path as a string
            header = {"descr": np.lib.format.dtype_to_descr(PAIR), "fortran_order": False, "shape": (num_uids,)}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.writelines(sorted_uids(bucket).tobytes() for bucket in buckets)
    return num_uids


Keep = Callable[[str, Mapping[str, bytes]], bool]
"""Function `(key, members) -> bool` that returns whether to use a sample; members are bytes by extension."""

# Sorting this number of uids takes a few seconds and 2 GB.
_MOST_SORTED = 2**27
_NUM_LOOKS = 1000


@attrs.frozen(eq=False, slots=False)
class UidList:
    """The uids (see `uid_of`) of the samples to use; a `UidList` is a `Keep` function.

    Args:
        path: a `.npy` file of pairs of unsigned 64-bit numbers, the upper and the lower half of each uid, as in
            DataComp; or a text file with a uid per line. Large `.npy` files must be sorted, because `UidList` does
            not load large files into memory.

    Raises:
        ValueError: if the file is not a uid list, contains no uids, or is large and not sorted.
        OSError: if the file cannot be read.
    """

    path: Path

    def __attrs_post_init__(self) -> None:
        _ = self._pairs  # raises an error for a wrong file at the start

    def __len__(self) -> int:
        """Return the number of uids."""
        return len(self._pairs)

    def __call__(self, key: str, members: Mapping[str, bytes]) -> bool:
        """Return whether the list contains the sample's uid."""
        return bool(self.contains(np.array([uid_of(key, members)], dtype=PAIR))[0])

    def contains(self, uids: Uids) -> npt.NDArray[np.bool_]:
        """Return a boolean mask over the given uids, true where the list contains the uid.

        Args:
            uids: uids in any order.
        """
        upper, lower = self._pairs["f0"], self._pairs["f1"]
        places = np.searchsorted(upper, uids["f0"])
        found = np.zeros(len(uids), dtype=bool)
        # Uids with equal upper halves are adjacent, and rare.
        waiting = np.flatnonzero(places < len(upper))
        while len(waiting):
            waiting = waiting[upper[places[waiting]] == uids["f0"][waiting]]
            found[waiting] |= lower[places[waiting]] == uids["f1"][waiting]
            places[waiting] += 1
            waiting = waiting[(places[waiting] < len(upper)) & ~found[waiting]]
        return found

    def __reduce__(self) -> tuple[type[UidList], tuple[Path]]:
        return type(self), (self.path,)

    @cached_property
    def _pairs(self) -> Uids:
        pairs = _mapped(self.path) if self.path.suffix == ".npy" else _of_text(self.path)
        if not len(pairs):
            raise ValueError(f"{self.path} contains no uids")
        if len(pairs) <= _MOST_SORTED:
            return sorted_uids(pairs)
        places = np.linspace(0, len(pairs) - 1, _NUM_LOOKS).astype(np.int64)
        if np.any(np.diff(pairs["f0"][places].astype(np.float64)) < 0):
            raise ValueError(
                f"{self.path} has {len(pairs):,} uids that are not sorted; sort the array with np.sort and "
                "save the file again"
            )
        return pairs


def _mapped(path: Path) -> Uids:
    try:
        pairs: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is not an array of uids: {error}") from None
    if pairs.dtype != PAIR or pairs.ndim != 1:
        raise ValueError(
            f"{path} contains a {pairs.dtype} array of {pairs.ndim} dimensions, expected a 1-d array of dtype u8,u8"
        )
    return pairs


def _of_text(path: Path) -> Uids:
    uids = path.read_text(encoding="utf-8").split()
    wrong = next((uid for uid in uids if not HEX.fullmatch(uid)), None)
    if wrong is not None:
        raise ValueError(f"{path} contains {wrong[:80]!r}, expected uids of 32 hexadecimal digits, one per line")
    return np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], dtype=PAIR)
