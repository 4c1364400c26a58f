"""Evaluation of a model while it trains, which leaves no trace in the training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from mobileclip.data.skips import SkipReport
from mobileclip.datasets.sources import RowOptions
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation.benchmark import Benchmark, open_benchmark, require_different_names
from mobileclip.evaluation.results import MAIN_METRIC
from mobileclip.evaluation.session import Session
from mobileclip.evaluation.tasks.scoring import require_metric
from mobileclip.evaluation.tasks.zero_shot import evaluate_benchmark
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

ModelType = TypeVar("ModelType", bound=nn.Module)


def evaluation_hook(
    benchmarks: Sequence[Benchmark | str | os.PathLike[str]],
    *,
    batch_size: int = 64,
    num_threads: int | None = None,
    allow_missing: bool = False,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """Return a callback for `mobileclip.training.train` that evaluates an image-text model.

    It gives every metric of every data set as `NAME/METRIC`, such as `vtab-pets/acc1` or `flickr30k/mean_recall@1`, and
    `NAME/num_skipped`, how many samples were left out. Pictures are decoded and prompts are encoded each time. The
    model's weights and modes, and torch's random numbers, are afterwards as they were: a run that is looked at has the
    same weights, to the bit, as one that is not.

    What is wrong with the data is said here, before the training starts. What goes wrong later, such as a shard that is
    damaged meanwhile, is logged; its data set is then missing from that step's numbers, and the training goes on.

    Args:
        benchmarks: data sets of any kind that `open_benchmark` takes: opened ones, paths, or URLs. At least one;
            each with a name of its own.
        batch_size: images, or texts, encoded at once.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        allow_missing: of those that are opened here, see `Benchmark`.
        rows: of those that are opened here, how rows of `.jsonl` files and of tables are read.

    Raises:
        ValueError: if there is no data set, two have one name, or one cannot be evaluated: its files are missing or
            malformed, a shard is missing or breaks off, or not one sample can be used.
        OSError: if a store cannot be reached.
    """
    opened = tuple(
        one if isinstance(one, Benchmark) else open_benchmark(one, allow_missing=allow_missing, rows=rows)
        for one in benchmarks
    )
    if not opened:
        raise ValueError("there is no data set to evaluate on; give at least one")
    require_different_names(benchmark.name for benchmark in opened)
    for benchmark in opened:
        _require_data(benchmark)

    measures = [
        (benchmark.name, partial(_measured, benchmark, batch_size=batch_size, num_threads=num_threads))
        for benchmark in opened
    ]
    return hook_of(measures, DualEncoder)


def _measured(
    benchmark: Benchmark, model: DualEncoder, *, batch_size: int, num_threads: int | None
) -> dict[str, float]:
    session = Session(
        model,
        batch_size=batch_size,
        num_threads=num_threads,
        show_progress=False,
    )
    evaluation = evaluate_benchmark(session, benchmark)
    values = {name: value for name, value in evaluation.result.metrics.items() if name != MAIN_METRIC}
    return {**values, "num_skipped": evaluation.report.num_skipped}


def hook_of(
    measures: Sequence[tuple[str, Callable[[ModelType], Mapping[str, float]]]], kind: type[ModelType]
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """Return a training callback of several measures, which leaves torch's random numbers as they were.

    A measure that fails is logged, and its numbers are missing.

    Args:
        measures: name of each data set, and what gives its metrics by name; the hook gives them as `NAME/METRIC`.
        kind: of model that they measure.
    """

    def evaluate(model: nn.Module, num_steps: int) -> Mapping[str, float]:
        assert isinstance(model, kind), f"the run trains a {type(model).__name__}, and the hook is for {kind.__name__}"
        metrics: dict[str, float] = {}
        for name, measure in measures:
            with _same_random_numbers(model):
                values = _unless_it_fails(partial(measure, model), name, num_steps)
            metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
        return metrics

    return evaluate


def _unless_it_fails(measure: Callable[[], Mapping[str, float]], name: str, num_steps: int) -> Mapping[str, float]:
    """Return the metrics, or none: days of training are worth more than one evaluation, whatever is wrong with it.

    Args:
        measure: called once.
        name: of the data set, for the log.
        num_steps: steps of the training that are done.
    """
    try:
        return measure()
    except Exception as error:
        logger.warning(
            "%s could not be evaluated after %d steps, and the training goes on: %s: %s",
            name,
            num_steps,
            type(error).__name__,
            error,
            exc_info=not isinstance(error, (ValueError, OSError)),
        )
        return {}


def _require_data(benchmark: Benchmark) -> None:
    """Refuse a data set that cannot be evaluated, as far as that shows without reading all of it."""
    require_metric(benchmark)
    report = SkipReport(log=False)
    if next(benchmark.samples(report), None) is None:
        raise ValueError(f"not one sample of {benchmark.name} can be used: {report}")
    if not benchmark.allow_missing:
        benchmark.num_samples()


@contextmanager
def _same_random_numbers(model: nn.Module) -> Iterator[None]:
    """Give torch's random numbers back as they were: a block of someone else's may draw some whenever it is called."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
