"""A cache of words' token ids with a budget in bytes, so that untrusted texts cannot fill the memory."""

from __future__ import annotations

import sys
from collections.abc import Callable

Ids = tuple[int, ...]

# An entry of a dictionary with its share of what is left free, and the garbage collector's head of the ids.
_ENTRY_BYTES = 128
_NUMBER_BYTES = 28
# Longer ones hardly come again.
_MOST_ENTRY_BYTES = 2**12


class WordMemory(dict[str, Ids]):
    """The ids of words: `memory[word]` makes them where they are not known.

    When half of its bytes are full, those that were asked for since are kept, and the others are forgotten the next
    time. It may be used by several threads, which may make the same ids twice.

    Args:
        make: from a word to its ids.
        max_bytes: of all words and ids.
    """

    def __init__(self, make: Callable[[str], Ids], *, max_bytes: int) -> None:
        super().__init__()
        self._make = make
        self._most = max_bytes // 2
        self._num_bytes = 0
        self._before: dict[str, Ids] = {}

    def __missing__(self, word: str) -> Ids:
        """Return the ids of a word that was not asked for lately, and keep them."""
        ids = self._before.get(word)
        if ids is None:
            ids = self._make(word)
        num_bytes = sys.getsizeof(word) + sys.getsizeof(ids) + _NUMBER_BYTES * len(ids) + _ENTRY_BYTES
        if num_bytes > _MOST_ENTRY_BYTES:
            return ids
        if self._num_bytes + num_bytes > self._most:
            self._before = dict(self)
            self.clear()
            self._num_bytes = 0
        self._num_bytes += num_bytes
        self[word] = ids
        return ids
