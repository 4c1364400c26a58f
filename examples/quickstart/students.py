"""Trains the students in parallel, with one process each, so that no core waits for another."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import attrs
import torch

from examples.quickstart.side_by_side import Job, side_by_side, use_threads
from examples.quickstart.spec import ROWS, QuickstartSpec, student
from examples.quickstart.stored import StoredBatches, store_samples
from mobileclip.data import read_card
from mobileclip.encoders import save_model
from mobileclip.losses import LossSpec
from mobileclip.processes import num_cores
from mobileclip.training import read_metrics, train

MODEL = "model.safetensors"
# All rows in parallel: on two cores, two rows first and one row later would leave a core idle for a third of the time.
_SIDE_BY_SIDE = len(ROWS)


@attrs.frozen(kw_only=True)
class Student:
    """One training.

    Args:
        name: name of the student's row in the table; one of `ROWS`.
        seed: seed of the weights, the order of images and the choice of captions.
        loss: loss of the training.
        folder: folder for metrics, checkpoint and the final model.
    """

    name: str
    seed: int
    loss: LossSpec
    folder: Path


def train_students(
    spec: QuickstartSpec, students: Sequence[Student], shards: tuple[str, ...], *, num_samples: int
) -> None:
    """Train every student without a finished model, from its last checkpoint on.

    Args:
        spec: settings of the quickstart.
        students: students to train.
        shards: reinforced shards.
        num_samples: number of images in the shards.

    Raises:
        FloatingPointError: if a loss is not finite; the message names the step and the images.
    """
    jobs = [
        Job(
            folder=one.folder,
            steps=spec.training(one.loss, num_samples=num_samples, seed=one.seed).total_steps,
            work=partial(_train, spec, one, shards, num_samples),
        )
        for one in students
        if not (one.folder / MODEL).exists()
    ]
    if not jobs:
        return
    names = dict.fromkeys(one.name for one in students if not (one.folder / MODEL).exists())
    trained = side_by_side(
        jobs,
        num_processes=_SIDE_BY_SIDE,
        prepare=partial(use_threads, max(1, num_cores() // _SIDE_BY_SIDE)),
        title=f"training {', '.join(names)}",
        unit="pictures",
        count_per_step=spec.batch_size,
    )
    for _ in trained:
        pass


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
    """Return the median step time in the metrics of a training."""
    return statistics.median(line["seconds"] for line in read_metrics(folder / "metrics.jsonl"))
