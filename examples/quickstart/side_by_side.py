"""Trains several models in parallel: each has its own process, so that no core waits, and all share a progress bar."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path

import attrs
import torch

from mobileclip.progress import Progress
from mobileclip.terminal import console
from mobileclip.terminal.interruption import ending, save_for_parent
from mobileclip.training import last_metrics

_SECONDS_BETWEEN_LOOKS = 1.0


@attrs.frozen(kw_only=True)
class Job:
    """One training.

    Args:
        folder: folder of the training's metrics.
        steps: total number of steps.
        work: picklable function that trains, in a prepared process.
    """

    folder: Path
    steps: int
    work: Callable[[], object]


def side_by_side(
    jobs: Sequence[Job],
    *,
    num_processes: int,
    prepare: Callable[[], None],
    title: str,
    unit: str = "steps",
    count_per_step: int = 1,
    steps_before: int = 0,
) -> Iterator[object]:
    """Yield the result of each training as soon as the training ends; trainings resume from their last checkpoints.

    Args:
        jobs: the trainings, in order.
        num_processes: number of parallel trainings.
        prepare: picklable function that each process calls once.
        title: title of the bar.
        unit: unit of the bar, in the plural.
        count_per_step: number of units per step.
        steps_before: total number of steps of trainings from earlier runs.

    Raises:
        FloatingPointError: if a loss is not finite; the message names the step and the images.
    """
    done = {job.folder: _steps_done(job.folder) for job in jobs}
    total = steps_before + sum(job.steps for job in jobs)
    before = steps_before + sum(done.values())
    context = multiprocessing.get_context("spawn")
    with (
        Progress(title, total=total, done=before, unit=unit, console=console()) as progress,
        ProcessPoolExecutor(
            min(num_processes, len(jobs)), mp_context=context, initializer=partial(_begin, prepare)
        ) as pool,
        ending(pool) as submit,
    ):

        def advance(num_steps: int) -> None:
            if num_steps > 0:
                progress.advance(num_steps, count=num_steps * count_per_step)

        running = {submit(job.work): job for job in jobs}
        while running:
            for future in wait(running, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                result = future.result()
                advance(job.steps - done.pop(job.folder))
                yield result
            for folder, known in done.items():
                # A resumed run restarts at the last checkpoint, before the last counted step.
                done[folder] = max(known, _steps_done(folder))
                advance(done[folder] - known)


def _begin(prepare: Callable[[], None]) -> None:
    save_for_parent()
    prepare()


def use_threads(count: int) -> None:
    """Set the number of threads of this process; small networks do not benefit from more threads."""
    torch.set_num_threads(count)


def _steps_done(folder: Path) -> int:
    last = last_metrics(folder / "metrics.jsonl")
    return 0 if last is None else int(last["step"]) + 1
