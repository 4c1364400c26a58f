"""One case, measured in a process of its own: all sides take their turns on the same inputs."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.apart import in_own_process
from benchmarks.latency.memory import keep_memory
from benchmarks.latency.spec import LatencyBenchSpec
from benchmarks.latency.ways import Case, Latency, Side, sides
from benchmarks.rivals import PUBLISHED, example, randomize, rivals
from mobileclip.encoders import DualEncoderSpec
from mobileclip.inference.comparison.measuring import largest_error, median_ratio, orders, smallest_cosine, turn

_SHORT_CAPTION = 10
_FEWEST_ROUNDS = 5


def measure_apart(spec: LatencyBenchSpec, case: Case) -> list[Latency]:
    """Return what every side took, measured in a process of its own: what programs leave in memory is gone with it.

    Raises:
        RuntimeError: if that process was ended, for want of memory for example.
    """
    try:
        return in_own_process(measure, spec, case)
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"the process that measured {case}, {case.batch_size} at once, was ended, most likely because memory "
            "ran out; what was measured before is kept, and the same command goes on from there. Fewer --runtimes "
            "and --no-compiled take less"
        ) from error


def measure(spec: LatencyBenchSpec, case: Case) -> list[Latency]:
    """Return what every side took; the process keeps the memory, the threads and the seed that this sets."""
    keep_memory()
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that it built a model without pretrained weights
    torch.manual_seed(spec.seed)
    published = PUBLISHED[case.model]
    model = published.spec().build().eval()
    randomize(model)
    release = next(module for _, tower, module in rivals(published, model, ("open_clip",)) if tower == case.tower)
    if case.texts == "short":
        inputs = captions(model.spec, batch_size=case.batch_size)
    else:
        inputs = example(model.spec, case.tower, batch_size=case.batch_size, channels_last=False)
    rounds = spec.rounds if case.batch_size == 1 else max(min(_FEWEST_ROUNDS, spec.rounds), spec.rounds // 3)
    with TemporaryDirectory() as folder:
        contestants = sides(
            model,
            release,
            inputs,
            case.tower,
            precisions=spec.precision,
            compiled=spec.compiled,
            runtimes=spec.runtimes,
            rounds=rounds,
            folder=Path(folder),
        )
        return list(compare(case, list(contestants), inputs, rounds=rounds))


def captions(spec: DualEncoderSpec, *, batch_size: int) -> Tensor:
    """Return random texts of ten ids, start and end included."""
    contract = spec.text.input
    start = contract.vocab_size - 2
    tokens = torch.full((batch_size, contract.context_length), contract.pad_id)
    tokens[:, :_SHORT_CAPTION] = torch.randint(1, start, (batch_size, _SHORT_CAPTION))
    tokens[:, 0], tokens[:, _SHORT_CAPTION - 1] = start, contract.end_id
    return tokens


@torch.inference_mode()
def compare(case: Case, contestants: list[Side], inputs: Tensor, *, rounds: int) -> Iterator[Latency]:
    """Yield what every side took for `inputs`, called in turn; the first is what the others are compared with."""
    embeddings = [side.encode(inputs).float() for side in contestants]
    wall: list[list[float]] = [[] for _ in contestants]
    cpu = [0.0 for _ in contestants]
    for order in orders(len(contestants), rounds=rounds):
        for which in order:
            milliseconds, seconds = turn(partial(contestants[which].encode, inputs))
            wall[which].append(milliseconds)
            cpu[which] += seconds
    by_way = dict(zip((side.way for side in contestants), wall, strict=True))
    for side, embedding, times, seconds in zip(contestants, embeddings, wall, cpu, strict=True):
        ratios = [one / release for one, release in zip(times, wall[0], strict=True)]
        same_runtime = by_way.get(f"release_{side.way}")  # type: ignore[call-overload]  # not all of these are ways
        low, _, high = statistics.quantiles(ratios, n=4)
        yield Latency(
            case=case,
            way=side.way,
            form=side.form,
            milliseconds=statistics.median(times),
            ratio=statistics.median(ratios),
            ratio_quartiles=(low, high),
            cpu_ratio=seconds / cpu[0],
            cosine=smallest_cosine(embedding, embeddings[0]),
            error=largest_error(embedding, embeddings[0]),
            runtime_ratio=None if same_runtime is None else median_ratio(times, same_runtime),
        )
