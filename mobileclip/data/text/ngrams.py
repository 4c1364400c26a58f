"""Sets of character n-grams, to choose the tower that suits the language of a query.

The n-grams are stored in a Bloom filter. The emoji names and keywords of 27 languages have 220,000 n-grams, which take
330 kB.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SIZES = (2, 3)
_BITS_EACH, _NUM_PLACES = 12, 6
"""The false positive rate of the filter is below one percent."""
_MOST_BYTES = 500_000
_END = "\n"  # occurs in no word
_GOLDEN, _ODD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


def pack_ngrams(texts: Iterable[str]) -> Tensor:
    """Pack the n-grams of texts into a Bloom filter, for the checkpoint of a text tower.

    The n-grams of a word are the word itself and all runs of two and three characters, including markers for the ends
    of the word. Case, Unicode compatibility forms and punctuation are ignored.

    Shape:
        `(bytes,)`, uint8, at most 500,000.

    Args:
        texts: texts of a tower's training data.

    Examples:
        >>> known = KnownNgrams(pack_ngrams(["red arrow", "blue heart"]))
        >>> known.share("Red heart!"), known.share("coeur bleu") < 0.5
        (1.0, True)
    """
    hashes = np.unique(_hashes({word for text in texts for word in _words(text)}))
    num_bytes = min(max(1, -(-len(hashes) * _BITS_EACH // 8)), _MOST_BYTES)
    bits = np.zeros(8 * num_bytes, dtype=np.uint8)
    bits[_places(hashes, len(bits))] = 1
    return torch.from_numpy(np.packbits(bits))


class KnownNgrams:
    """The n-grams of a tower's training data.

    Args:
        packed: return value of `pack_ngrams`.

    Raises:
        ValueError: if `packed` is not a uint8 vector of 1 to 500,000 bytes.
    """

    def __init__(self, packed: Tensor) -> None:
        if packed.dtype != torch.uint8 or packed.ndim != 1 or not 1 <= len(packed) <= _MOST_BYTES:
            raise ValueError(
                f"n-grams must be a vector of 1 to {_MOST_BYTES:,} bytes, not {packed.dtype} of shape "
                f"{tuple(packed.shape)}; the file is damaged, or from a different version"
            )
        self._bits = np.unpackbits(packed.numpy())

    def share(self, text: str) -> float:
        """Return the share of a text's n-grams that are known, from 0 to 1; 0 for a text without words."""
        hashes = np.unique(_hashes(set(_words(text))))
        return float(self._bits[_places(hashes, len(self._bits))].all(axis=1).mean()) if len(hashes) else 0.0


def _words(text: str) -> list[str]:
    """Return the runs of letters, marks and digits of a text."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(one if _is_of_word(one) else " " for one in folded).split()


@lru_cache(maxsize=1 << 16)
def _is_of_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _hashes(words: set[str]) -> NDArray[np.uint64]:
    """Return a hash of every n-gram of the words."""
    if not words:
        return np.zeros(0, dtype=np.uint64)
    line = _END + _END.join(sorted(words)) + _END
    codes = np.frombuffer(line.encode("utf-32-le", errors="replace"), dtype=np.uint32).astype(np.uint64)
    is_end = codes == ord(_END)
    ends = np.flatnonzero(is_end)
    at = np.arange(len(codes)) - np.repeat(ends, np.diff(ends, append=len(codes)))
    whole = np.add.reduceat(_mixed(codes, at, size=0), ends)[:-1]
    found = [whole]
    for size in _SIZES:
        windows = np.lib.stride_tricks.sliding_window_view(np.arange(len(codes)), size)
        # No n-gram has the end of a word inside, so none spans two words.
        inner = windows[:, 1:-1] if size > 2 else windows[:, :0]
        usable = windows[~is_end[inner].any(axis=1)]
        found.append(_mixed(codes[usable], np.arange(size), size=size).sum(axis=1, dtype=np.uint64))
    return np.concatenate(found)


def _mixed(codes: NDArray[np.uint64], at: NDArray[np.int64], *, size: int) -> NDArray[np.uint64]:
    """Return pseudo-random numbers that depend on the characters and their positions."""
    mixed = codes * _GOLDEN + (at.astype(np.uint64) + np.uint64(1024 * size + 1)) * _ODD
    for shift in (np.uint64(32), np.uint64(29)):
        mixed = (mixed ^ (mixed >> shift)) * _ODD
    result: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(32))
    return result


def _places(hashes: NDArray[np.uint64], num_bits: int) -> NDArray[np.uint64]:
    """Return the bit positions of every hash, `(hashes, positions)`."""
    first, step = hashes & np.uint64(0xFFFFFFFF), (hashes >> np.uint64(32)) | np.uint64(1)
    places: NDArray[np.uint64] = (first[:, None] + np.arange(_NUM_PLACES, dtype=np.uint64) * step[:, None]) % np.uint64(
        num_bits
    )
    return places
