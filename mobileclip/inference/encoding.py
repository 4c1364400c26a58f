"""Encodes batches while other threads decode the next items, and splits a batch between several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from mobileclip.data.skips import BadSampleError
from mobileclip.data.workers import submitted_ahead
from mobileclip.hardware import torch_threads
from mobileclip.processes import num_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
Input = TypeVar("Input")
Row = TypeVar("Row")


def encode_in_batches(
    items: Iterable[tuple[Item, Sequence[Input]]],
    encode: Callable[[list[Input]], Iterable[Row]],
    *,
    batch_size: int,
) -> Iterator[tuple[Item, list[Row]]]:
    """Yield each item, in order, with its encoded rows, one per input.

    Args:
        items: pairs of an item and any number of inputs; the function reads items until a batch is full.
        encode: function from up to `batch_size` inputs to one row per input.
        batch_size: number of inputs per batch, at least 1.

    Raises:
        ValueError: if `batch_size` is less than 1.

    >>> list(encode_in_batches([("a", [1]), ("b", []), ("c", [2, 3])], lambda several: several, batch_size=2))
    [('a', [1]), ('b', []), ('c', [2, 3])]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    waiting: list[tuple[Item, Sequence[Input]]] = []
    num_inputs = 0
    for item, inputs in items:
        waiting.append((item, inputs))
        num_inputs += len(inputs)
        if num_inputs >= batch_size:
            yield from _encoded(waiting, encode, batch_size)
            waiting, num_inputs = [], 0
    yield from _encoded(waiting, encode, batch_size)


def encode_each(
    inputs: Iterable[Input], encode: Callable[[list[Input]], Iterable[Row]], *, batch_size: int
) -> Iterator[Row]:
    """Yield a row for each input, in order; see `encode_in_batches`."""
    return (row for _, (row,) in encode_in_batches(((None, [one]) for one in inputs), encode, batch_size=batch_size))


def _encoded(
    waiting: list[tuple[Item, Sequence[Input]]], encode: Callable[[list[Input]], Iterable[Row]], batch_size: int
) -> Iterator[tuple[Item, list[Row]]]:
    inputs = [one for _, several in waiting for one in several]
    batches = (inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size))
    rows = (row for batch in batches for row in encode(batch))
    for item, several in waiting:
        yield item, [next(rows) for _ in several]


_MOST_THREADS = 8


def decode_ahead(
    items: Iterable[Item],
    decode: Callable[[Item], Result],
    *,
    ahead: int,
    weigh: Callable[[Item], int] = lambda _: 1,
    num_threads: int | None = None,
) -> Iterator[tuple[Item, Result | BadSampleError]]:
    """Decode items in threads, and yield each item, in order, with the decoded result or the `BadSampleError`.

    Args:
        items: items to decode, read in the caller's thread, see `submitted_ahead`.
        decode: function that the threads call; a `BadSampleError` becomes a result, and the caller's thread raises
            other errors.
        ahead: no further item starts while the total weight of the started items is at least `ahead`, see
            `submitted_ahead`.
        weigh: function that returns the weight of an item; by default 1.
        num_threads: number of decoding threads; None for one per core, eight at most.
    """
    with ThreadPoolExecutor(num_threads or min(_MOST_THREADS, num_cores())) as pool:

        def submit(item: Item) -> Future[Result]:
            return pool.submit(decode, item)

        try:
            for item, future, _ in submitted_ahead(submit, items, ahead=ahead, weigh=weigh):
                outcome: Result | BadSampleError
                try:
                    outcome = future.result()
                except BadSampleError as error:
                    outcome = error
                yield item, outcome
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def encode_ahead(
    items: Iterable[Item],
    decode: Callable[[Item], Sequence[Input | None]],
    encode: Callable[[list[Input]], Iterable[Row]],
    *,
    batch_size: int,
    weigh: Callable[[Item], int] = lambda _: 1,
    num_threads: int | None = None,
) -> Iterator[tuple[Item, list[Row | None] | BadSampleError]]:
    """Yield items, in order, each with one row per input of the item, or with the item's error.

    Args:
        items: items to decode and encode, read in the caller's thread.
        decode: function from an item to the item's inputs, called in threads; None marks a missing input, which gets no
            row.
        encode: function from up to `batch_size` inputs to one row per input, called in the caller's thread.
        batch_size: number of inputs per batch, at least 1.
        weigh: function that returns the approximate number of inputs of an item.
        num_threads: number of decoding threads; None for one per core, eight at most.
    """
    decoded = decode_ahead(items, decode, ahead=2 * batch_size, weigh=weigh, num_threads=num_threads)
    inputs = (
        (one, () if isinstance(one[1], BadSampleError) else [each for each in one[1] if each is not None])
        for one in decoded
    )
    for (item, found), rows in encode_in_batches(inputs, encode, batch_size=batch_size):
        if isinstance(found, BadSampleError):
            yield item, found
        else:
            remaining = iter(rows)
            yield item, [None if each is None else next(remaining) for each in found]


class EncodingThreads:
    """A thread pool for encoding, with one PyTorch thread per worker; the pool starts on first use.

    PyTorch's intra-op threads wait for the slowest thread after every layer, and spin meanwhile; the threads of this
    pool are independent. After unpickling or a fork, the pool starts again on first use.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._of = (0, 0)

    def __reduce__(self) -> tuple[type[EncodingThreads], tuple[()]]:
        """Pickle the pool without threads."""
        return type(self), ()

    def map(self, encode: Callable[[Tensor], Tensor], parts: Iterable[Tensor], *, count: int) -> list[Tensor]:
        """Apply `encode` to the parts in threads, without gradients, and return the results in order."""

        @torch.inference_mode()
        def encoded(part: Tensor) -> Tensor:
            return encode(part)

        with torch_threads(1):
            return list(self._started(count).map(encoded, parts))

    def _started(self, count: int) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._of != (os.getpid(), count):
                self._of = os.getpid(), count
                self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
            return self._pool
