"""Random numbers that depend only on their purpose, not on the worker, the order of the calls or the machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def seeded_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Return a generator for one purpose: equal arguments give equal numbers on every machine.

    The generator's seed is the SHA-256 hash of the arguments. Of numpy's methods, only `Generator.random` (53
    bits from PCG64) returns the same numbers in every version, so `random_index` and `uniform` call no other method.

    Args:
        seed: the run's seed.
        names: strings and integers that identify the purpose, such as a sample's key and an augmentation index.
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def derived_seed(seed: int, *names: str | int) -> int:
    """Return a seed for one purpose, from 0 to `2**63 - 1`; adjacent values of `seed` give unrelated results.

    Args:
        seed: the run's seed.
        names: strings and integers that identify the purpose, such as `training` and the process index.
    """
    return random_index(seeded_rng(seed, *names), 2**63)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a uniformly distributed number from `[low, high)`."""
    return low + (high - low) * float(rng.random())


def random_index(rng: np.random.Generator, count: int) -> int:
    """Return a random integer from 0 to `count - 1`, uniform to within `count / 2**53`."""
    return min(int(rng.random() * count), count - 1)


def shuffled(items: Iterable[T], buffer_size: int, rng: np.random.Generator) -> Iterator[T]:
    """Yield every item once, shuffled with a buffer of `buffer_size` items."""
    buffer: list[T] = []
    for item in items:
        if len(buffer) < buffer_size:
            buffer.append(item)
            continue
        place = random_index(rng, buffer_size)
        yield buffer[place]
        buffer[place] = item
    while buffer:
        yield _drawn(buffer, rng)


def shuffled_at_once(items: Iterable[T], buffer_size: int, rng: np.random.Generator) -> Iterator[T]:
    """Shuffle like `shuffled`, but start immediately: the buffer grows by one item per yielded item.

    The order is not uniform: item `i` comes at position `i / 2` at the earliest, and earlier items come earlier on
    average.
    """
    buffer: list[T] = []
    rest = iter(items)
    while True:
        buffer.extend(islice(rest, min(2, buffer_size - len(buffer))))
        if not buffer:
            return
        yield _drawn(buffer, rng)


def _drawn(buffer: list[T], rng: np.random.Generator) -> T:
    """Remove a random item from a buffer and move the last item to the free position."""
    place = random_index(rng, len(buffer))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer.pop()
