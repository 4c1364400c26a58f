"""Random numbers that depend on what they are for, and not on the worker, the order or the machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def seeded_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Return a generator for one purpose: equal arguments give equal numbers, everywhere.

    The state is the SHA-256 of the arguments. Only `Generator.random` is promised to be the same in every version of
    numpy that draws 53 bits from PCG64, so `random_index` and uniform draws are made of it.

    Args:
        seed: the run's seed.
        names: what the numbers are for, such as a sample's key and the index of its augmentation.
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def derived_seed(seed: int, *names: str | int) -> int:
    """Return a seed for one purpose, from 0 to `2**63 - 1`: seeds that differ by one share no stream by it.

    Args:
        seed: the run's seed.
        names: what the stream is for, such as `training` and the number of the process.
    """
    return random_index(seeded_rng(seed, *names), 2**63)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number from `[low, high)`."""
    return low + (high - low) * float(rng.random())


def random_index(rng: np.random.Generator, count: int) -> int:
    """Return one of `0 ... count - 1`, each as likely as the others to within `count / 2**53`."""
    return min(int(rng.random() * count), count - 1)


def shuffled(items: Iterable[T], buffer_size: int, rng: np.random.Generator) -> Iterator[T]:
    """Yield the items in random order, as far as a buffer of that size allows; all of them, once."""
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
    """Yield as `shuffled` does, from a buffer that grows by one with each item: to fill it first would take minutes.

    So the order is not uniform: item `i` is the `i / 2`-th at the earliest, and earlier items come earlier in the mean.
    """
    buffer: list[T] = []
    rest = iter(items)
    while True:
        buffer.extend(islice(rest, min(2, buffer_size - len(buffer))))
        if not buffer:
            return
        yield _drawn(buffer, rng)


def _drawn(buffer: list[T], rng: np.random.Generator) -> T:
    """Take any item out of a buffer, whose last one takes its place."""
    place = random_index(rng, len(buffer))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer.pop()
