"""Times of several functions, called in turn, and how far their results are apart."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mobileclip.hardware.devices import in_float64
from mobileclip.hardware.precision import Precision

LEAST_COSINE: dict[Precision, float] = {
    "float32": 0.99999,
    "float16": 0.9995,
    "bfloat16": 0.9995,
    "int8": 0.98,
    "int8-weights": 0.99,
}
"""Of any embedding with the model's own in float32."""

LARGEST_ERROR: dict[Precision, float] = {"float32": 1e-5}
"""Of any embedding, of the model's own in the same precision: all that a faster form may differ."""

LEAST_AGREEMENT = 0.99
"""Part of the queries that have the same first result as in float32, where there are enough of them to tell."""

_CHANCE = 0.025

# Milliseconds.
_SHORT = 500


def times_in_turn(functions: Sequence[Callable[[], object]], *, rounds: int) -> list[list[float]]:
    """Return the milliseconds of every function's calls: as many as there are rounds, after one to warm up.

    Args:
        functions: what to call.
        rounds: at least 1.
    """
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for order in orders(len(functions), rounds=rounds):
        for which in order:
            times[which].append(turn(functions[which])[0])
    return times


def orders(count: int, *, rounds: int) -> Iterator[list[int]]:
    """Yield in which order so many take their turns in each round: drawn anew, the same in every process.

    A machine that slows down for a while slows all of them down, and nobody has his turns in a row more often than
    others, which takes a quarter off a small model's time. Back and forth, the first and the last would.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        yield torch.randperm(count, generator=generator).tolist()


def turn(call: Callable[[], object]) -> tuple[float, float]:
    """Return the milliseconds of a call, and the seconds that processors computed for it.

    A short one is called twice, and the second counts: in the first, threads of the last computation may still spin,
    waiting for more work, and weights are no longer in the cache.
    """
    measured = _timed(call)
    return _timed(call) if measured[0] < _SHORT else measured


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    start, processors = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - start), time.process_time() - processors


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of neighbouring calls."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def smallest_cosine(embeddings: Tensor, expected: Tensor) -> float:
    """Return the smallest cosine between two embeddings of one input; NaN where one is not finite."""
    return float(torch.cosine_similarity(in_float64(embeddings), in_float64(expected), dim=-1).min())


def largest_error(embeddings: Tensor, expected: Tensor) -> float:
    """Return the largest norm of an embedding's difference over the norm of the expected one."""
    difference = (in_float64(embeddings) - in_float64(expected)).norm(dim=-1)
    return float((difference / in_float64(expected).norm(dim=-1)).max())


def least_agreement(num_queries: int) -> float:
    """Return the least part of so many queries whose 95 % interval (Clopper and Pearson's) reaches `LEAST_AGREEMENT`.

    Of 36 queries two may change: three would by a chance of 0.6 % alone.

    Args:
        num_queries: at least 1.
    """
    # What `scipy.stats.binom.ppf` asks, without the most of a second that importing the distributions takes.
    from scipy.special import bdtrik

    most = float(bdtrik(1 - _CHANCE, num_queries, 1 - LEAST_AGREEMENT))
    return 1 - math.ceil(most) / num_queries


def first_results(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the index of the key of the highest cosine for each query; of one set, without the query itself."""
    one, other = (torch.nn.functional.normalize(tensor.double(), dim=1) for tensor in (queries, keys))
    similarity = one @ other.T
    if queries is keys:
        similarity.fill_diagonal_(-torch.inf)
    return similarity.argmax(dim=1)
