"""Encodes any iterable of inputs batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Input = TypeVar("Input")
Row = TypeVar("Row")


def encode_in_batches(
    items: Iterable[tuple[Item, Sequence[Input]]],
    encode: Callable[[list[Input]], Iterable[Row]],
    *,
    batch_size: int,
) -> Iterator[tuple[Item, list[Row]]]:
    """Yield items, in order, with a row for each of their inputs.

    Args:
        items: with what is to be encoded of each: nothing, one input or several. They are drawn from until there is a
            batch.
        encode: from up to `batch_size` inputs to as many rows.
        batch_size: at least 1.

    Raises:
        ValueError: if the batch size is less.

    >>> list(encode_in_batches([("a", [1]), ("b", []), ("c", [2, 3])], lambda several: several, batch_size=2))
    [('a', [1]), ('b', []), ('c', [2, 3])]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, not {batch_size}")
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
