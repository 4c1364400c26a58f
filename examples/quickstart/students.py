"""Train the students side by side: one process each, so that no core waits for another."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path

import attrs
import torch

from examples.quickstart.spec import ROWS, QuickstartSpec, student
from examples.quickstart.stored import StoredBatches, store_samples
from mobileclip.data import read_card
from mobileclip.encoders import save_model
from mobileclip.losses import LossSpec
from mobileclip.processes import num_cores
from mobileclip.progress import Progress
from mobileclip.terminal import console
from mobileclip.terminal.interruption import ending, save_for_parent
from mobileclip.training import last_metrics, read_metrics, train

MODEL = "model.safetensors"
# All rows at once: on two cores, two after one another and one alone would leave a core idle for a third of the time.
_SIDE_BY_SIDE = len(ROWS)
_SECONDS_BETWEEN_LOOKS = 1.0


@attrs.frozen(kw_only=True)
class Student:
    """One training.

    Args:
        name: of its row in the table; one of `ROWS`.
        seed: of its weights, its order of pictures and its choices of captions.
        loss: what it minimises.
        folder: where its metrics, its checkpoint and in the end its model are.
    """

    name: str
    seed: int
    loss: LossSpec
    folder: Path


def train_students(
    spec: QuickstartSpec, students: Sequence[Student], shards: tuple[str, ...], *, num_samples: int
) -> None:
    """Train every student whose model is not there yet, from its last checkpoint on.

    Args:
        spec: the quickstart.
        students: what to train.
        shards: reinforced shards.
        num_samples: pictures in them.

    Raises:
        FloatingPointError: if a loss is not finite; the message has the step and the pictures.
    """
    waiting = [one for one in students if not (one.folder / MODEL).exists()]
    if not waiting:
        return
    steps = {one.folder: spec.training(one.loss, num_samples=num_samples, seed=one.seed).total_steps for one in waiting}
    done = {one.folder: _steps_done(one.folder) for one in waiting}
    threads = max(1, num_cores() // _SIDE_BY_SIDE)
    context = multiprocessing.get_context("spawn")
    title = "training " + ", ".join(dict.fromkeys(one.name for one in waiting))
    with (
        ProcessPoolExecutor(_SIDE_BY_SIDE, mp_context=context, initializer=_use, initargs=(threads,)) as pool,
        Progress(
            title, total=sum(steps.values()), done=sum(done.values()), unit="pictures", console=console()
        ) as progress,
        ending(pool) as submit,
    ):
        futures = [submit(_train, spec, one, shards, num_samples) for one in waiting]
        running = set(futures)
        while running:
            finished, running = wait(running, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            for folder, before in done.items():
                # A resumed run first goes back to its last checkpoint, behind what was counted.
                done[folder] = max(before, _steps_done(folder))
                if done[folder] > before:
                    progress.advance(done[folder] - before, count=(done[folder] - before) * spec.batch_size)


def _use(threads: int) -> None:
    save_for_parent()
    torch.set_num_threads(threads)


def _train(spec: QuickstartSpec, one: Student, shards: tuple[str, ...], num_samples: int) -> None:
    training = spec.training(one.loss, num_samples=num_samples, seed=one.seed)
    torch.manual_seed(one.seed)
    model = student().build()
    augmentation = spec.augmentation(model.spec.image.input.size)
    card = read_card(Path(shards[0]).parent)
    batches = StoredBatches(
        samples=store_samples(shards, augmentation=augmentation, student=model.spec),
        batch_size=spec.batch_size,
        seed=one.seed,
        synthetic_captions=ROWS[one.name].synthetic_captions,
        teachers=(0,) if ROWS[one.name].teachers else (),
    )
    result = train(training, model=model, batches=batches, output=one.folder, card=card)
    save_model(result.model, one.folder / MODEL)


def seconds_per_step(folder: Path) -> float:
    """Return the median time of the steps of a training that its metrics know."""
    return statistics.median(line["seconds"] for line in read_metrics(folder / "metrics.jsonl"))


def _steps_done(folder: Path) -> int:
    last = last_metrics(folder / "metrics.jsonl")
    return 0 if last is None else int(last["step"]) + 1
