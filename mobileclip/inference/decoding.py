"""Decodes images in threads, in order, while the model encodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from mobileclip.data.skips import BadSampleError
from mobileclip.data.workers import submitted_ahead
from mobileclip.inference.batching import encode_in_batches
from mobileclip.processes import num_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
Input = TypeVar("Input")
Row = TypeVar("Row")

_MOST_THREADS = 8


def decode_ahead(
    items: Iterable[Item],
    decode: Callable[[Item], Result],
    *,
    ahead: int,
    weigh: Callable[[Item], int] = lambda _: 1,
    num_threads: int | None = None,
) -> Iterator[tuple[Item, Result | BadSampleError]]:
    """Yield items, in order, with what `decode` makes of them in threads, or with what is wrong with them.

    Args:
        items: see `submitted_ahead`.
        decode: called in several threads at once; a `BadSampleError` is a result, other errors are raised here.
        ahead: see `submitted_ahead`.
        weigh: see `submitted_ahead`.
        num_threads: by default one per core, eight at most.
    """
    with ThreadPoolExecutor(num_threads or min(_MOST_THREADS, num_cores())) as pool:
        for item, future, _ in submitted_ahead(partial(pool.submit, decode), items, ahead=ahead, weigh=weigh):
            outcome: Result | BadSampleError
            try:
                outcome = future.result()
            except BadSampleError as error:
                outcome = error
            yield item, outcome


def encode_ahead(
    items: Iterable[Item],
    decode: Callable[[Item], Sequence[Input | None]],
    encode: Callable[[list[Input]], Iterable[Row]],
    *,
    batch_size: int,
    weigh: Callable[[Item], int] = lambda _: 1,
    num_threads: int | None = None,
) -> Iterator[tuple[Item, list[Row | None] | BadSampleError]]:
    """Yield items, in order, with a row for each of their inputs, or with what is wrong with them.

    Args:
        items: see `decode_ahead`.
        decode: from an item to inputs, None for one that is not there and has no row; see `decode_ahead`.
        encode: from up to `batch_size` inputs to as many rows, in the caller's thread.
        batch_size: at least 1.
        weigh: how many inputs an item has, about.
        num_threads: see `decode_ahead`.
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
