"""Which samples of a data set are used: those whose uids a list has, as DataComp and DFN publish their subsets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

Keep = Callable[[str, Mapping[str, bytes]], bool]
"""From key and members of a sample, as bytes by extension, to whether it is used."""

_UID = re.compile(rb'"uid"\s*:\s*"([0-9a-f]{32})"')
_HEX = re.compile(r"[0-9a-f]{32}")
_PAIR = np.dtype("u8,u8")
# Sorting this many takes a few seconds and 2 GB.
_MOST_SORTED = 2**27
_NUM_LOOKS = 1000


@attrs.frozen(eq=False, slots=False)
class UidList:
    """The uids of the samples that are used; a `Keep`.

    A sample's uid is `uid` in its `.json`, 32 hexadecimal digits, else its key.

    Args:
        path: a `.npy` file of pairs of unsigned 64-bit numbers, the upper and the lower half of each uid, as DataComp
            has them; or a text with a uid a line. Large `.npy` files must be sorted: they are not loaded.

    Raises:
        ValueError: if it is neither, or large and not sorted.
        OSError: if it cannot be read.
    """

    path: Path

    def __attrs_post_init__(self) -> None:
        _ = self._pairs  # what is wrong with it is said at the start

    def __len__(self) -> int:
        """Return the number of uids."""
        return len(self._pairs)

    def __call__(self, key: str, members: Mapping[str, bytes]) -> bool:
        """Return whether the list has the sample's uid."""
        found = _UID.search(members.get("json", b""))
        uid = found[1].decode() if found is not None else key
        if not _HEX.fullmatch(uid):
            return False
        wanted = np.array((int(uid[:16], 16), int(uid[16:], 16)), dtype=self._pairs.dtype)
        place = int(np.searchsorted(self._pairs["f0"], wanted["f0"]))
        # Uids with equal upper halves lie side by side; there are hardly any.
        while place < len(self._pairs) and self._pairs["f0"][place] == wanted["f0"]:
            if self._pairs["f1"][place] == wanted["f1"]:
                return True
            place += 1
        return False

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        object.__setattr__(self, "path", path)

    @cached_property
    def _pairs(self) -> npt.NDArray[Any]:
        pairs = _mapped(self.path) if self.path.suffix == ".npy" else _of_text(self.path)
        if not len(pairs):
            raise ValueError(f"{self.path} has no uid")
        if len(pairs) <= _MOST_SORTED:
            return np.sort(pairs)
        places = np.linspace(0, len(pairs) - 1, _NUM_LOOKS).astype(np.int64)
        if np.any(np.diff(pairs["f0"][places].astype(np.float64)) < 0):
            raise ValueError(f"{self.path} has {len(pairs):,} uids that are not sorted; save np.sort of it")
        return pairs


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        pairs: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is no array of uids: {error}") from None
    if pairs.dtype != _PAIR or pairs.ndim != 1:
        raise ValueError(
            f"{path} holds {pairs.dtype} in {pairs.ndim} dimensions, expected pairs of 64-bit numbers, u8,u8"
        )
    return pairs


def _of_text(path: Path) -> npt.NDArray[Any]:
    uids = path.read_text(encoding="utf-8").split()
    wrong = next((uid for uid in uids if not _HEX.fullmatch(uid)), None)
    if wrong is not None:
        raise ValueError(f"{path} holds {wrong[:80]!r}, expected uids of 32 hexadecimal digits, one a line")
    return np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], dtype=_PAIR)
