"""What threads decode beside the model, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from mobileclip.data.skips import BadSampleError
from mobileclip.processes import num_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

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
        items: drawn from in the caller's thread.
        decode: called in several threads at once; a `BadSampleError` is a result, other errors are raised here.
        ahead: weight of the items that may wait for the caller; one item may, whatever it weighs.
        weigh: how much memory a result takes, in any unit; by default every item weighs 1.
        num_threads: by default one per core, eight at most.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    source = iter(items)
    weight = 0
    with ThreadPoolExecutor(num_threads or min(_MOST_THREADS, num_cores())) as pool:
        try:
            while True:
                while weight < ahead and (item := next(source, None)) is not None:
                    waiting.append((item, pool.submit(decode, item)))
                    weight += weigh(item)
                if not waiting:
                    return
                item, future = waiting.popleft()
                weight -= weigh(item)
                outcome: Result | BadSampleError
                try:
                    outcome = future.result()
                except BadSampleError as error:
                    outcome = error
                yield item, outcome
        finally:
            for _, future in waiting:
                future.cancel()
