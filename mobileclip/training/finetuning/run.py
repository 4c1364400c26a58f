"""A fine-tuning run from options to scores; a restarted run reuses finished results."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from typing import TypeAlias

import attrs
import torch
from torch import nn

from mobileclip.data import BatchSource, ReinforcedBatch
from mobileclip.encoders import CheckpointError, DualEncoder, load_model, save_model
from mobileclip.losses import ContrastiveLossSpec, LossSpec
from mobileclip.reparam import reparameterize
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.terminal import console
from mobileclip.training.distributed import World, process_group
from mobileclip.training.finetuning.spec import FinetuneSpec
from mobileclip.training.finetuning.tasks import (
    Task,
    TrainingData,
    labelled_contrastive,
    open_task,
    split,
    with_labels,
    write_training_data,
)
from mobileclip.training.finetuning.weights import interpolate_weights
from mobileclip.training.loop import Evaluate, train
from mobileclip.training.run import refuse_other_options, reserve_output
from mobileclip.training.spec import TrainingSpec


@attrs.frozen(kw_only=True)
class Score:
    """The accuracy of a model on one task.

    Args:
        task: name of the task.
        metric: `top-1` for zero-shot accuracy, or `R@1` for the mean recall at 1 over both directions of retrieval.
        value: accuracy in per cent.
        num_images: number of test images.
        num_skipped: number of skipped images and other skipped items of the data.
        hits: score of each image, from 0 to 1; `value` is the mean of these scores in per cent.
    """

    task: str
    metric: str
    value: float
    num_images: int
    num_skipped: int = 0
    hits: tuple[float, ...] = ()


Measure: TypeAlias = Callable[[DualEncoder, Task, tuple[str, ...], tuple[str, ...]], Score]
"""Function that returns the score of a model on a task, given prompt templates and additional class names."""


@attrs.frozen(kw_only=True)
class Scores:
    """The scores of one interpolated model on the new task and on the old tasks.

    Args:
        alpha: weight of the fine-tuned model: 0 is the original model, 1 the fine-tuned model.
        new: score on the new task.
        old: scores on the old tasks, in the order of `retention_tasks`.
    """

    alpha: float
    new: Score
    old: tuple[Score, ...]

    @property
    def mean_old(self) -> float:
        """Mean accuracy over the old tasks, in per cent."""
        return sum(score.value for score in self.old) / len(self.old)


@attrs.frozen(kw_only=True)
class Results:
    """The scores of a fine-tuning run at every alpha, and the training time.

    Args:
        rows: scores at each alpha, in ascending order of alpha.
        seconds: training time of this call in seconds; the time of earlier calls is not included.
    """

    rows: tuple[Scores, ...]
    seconds: float

    @property
    def before(self) -> Scores:
        """Scores of the original model."""
        return self.rows[0]

    @property
    def after(self) -> Scores:
        """Scores of the fine-tuned model."""
        return self.rows[-1]


__all__ = ["FinetuneSpec", "finetune"]

CHOICES, TRAINED_ON = "spec.json", "trained-on.txt"
FINETUNED, INTERPOLATED = "finetuned.safetensors", "interpolated.safetensors"
RUN, SCORES = "run", "scores"
"""Subfolders of the output folder."""


def finetune(
    spec: FinetuneSpec, *, measure: Measure, on_begin: Callable[[Scores], object] = lambda _: None
) -> Results | None:
    """Fine-tune a model, or resume an earlier run; return the results (None in all processes but the first).

    Under `torchrun`, every process must call this function.

    Args:
        spec: options of the fine-tuning run.
        measure: function that scores a model on a task; only rank 0 calls it.
        on_begin: function that rank 0 calls with the original model's scores before training.

    Raises:
        ValueError: if the checkpoint or the data is missing or not valid, or if the output folder contains a run with
            different options or data.
        FloatingPointError: if the loss is not finite.
        TimeoutError: if another process is late or dead; the message names the collective operation.
    """
    if spec.checkpoint is None or spec.data is None:
        missing = "--model" if spec.checkpoint is None else "--data"
        raise ValueError(
            f"{missing} is missing: pass a checkpoint and images, or try fine-tuning on drawn shapes with `mobileclip "
            "finetune --tiny`"
        )
    refuse_other_options(spec, spec.output, CHOICES)
    train_part, test, old = _tasks(spec, spec.data)
    refuse_other_data(spec, train_part)
    original = load_model(spec.checkpoint, spec.model, fold=False)
    if not isinstance(original, DualEncoder):
        raise CheckpointError(
            f"{spec.checkpoint} has one tower only; fine-tuning needs a model with both towers", code="no_such_tower"
        )
    with process_group(spec.device, collective_seconds=spec.collective_seconds) as world:
        # The folder depends on the data, so changed data gets a new folder.
        folder = spec.output / "data" / train_part.fingerprint
        data = world.from_first(lambda: write_training_data(train_part, folder))
        names = data.class_names
        loss: LossSpec = labelled_contrastive(len(names)) if names else ContrastiveLossSpec()
        training = spec.training(loss, num_samples=data.num_samples)
        model = copy.deepcopy(original)
        torch.manual_seed(spec.seed)
        spec.finetuning.prepare(model)

        def tested(alpha: float, make: Callable[[], DualEncoder]) -> Scores:
            """Test the model at `alpha` on every task, or read the scores of an earlier run."""
            tested_on = "\0".join(task.fingerprint for task in (test, *old))
            mark = blake2b(tested_on.encode(), digest_size=6).hexdigest()
            path = spec.output / SCORES / f"{alpha:g}-{mark}.json"
            if path.exists():
                return from_json(path.read_text(encoding="utf-8"), Scores)
            folded = reparameterize(make().eval(), inplace=True).to(world.device)
            new_score = measure(folded, test, spec.templates, names)
            old_scores = tuple(measure(folded, task, spec.templates, ()) for task in old)
            scores = Scores(alpha=alpha, new=new_score, old=old_scores)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, to_json(scores))
            return scores

        def refuse() -> None:
            refuse_other_options(spec, spec.output, CHOICES)
            refuse_other_data(spec, train_part)

        def begin() -> None:
            on_begin(tested(0.0, lambda: copy.deepcopy(original)))

        def watch(model: nn.Module, _steps: int) -> Mapping[str, float]:
            """Test the model on the new task during training, for the run's metrics."""
            assert isinstance(model, DualEncoder), "the trained model"
            score = measure(model, test, spec.templates, names)
            return {f"new_task_{score.metric}": score.value}

        files = {TRAINED_ON: train_part.fingerprint, CHOICES: to_json(spec, indent=1)}
        checkpoints = f"{RUN}/checkpoints"
        with reserve_output(
            spec.output, files, world, refuse=refuse, checkpoints=checkpoints, kept=FINETUNED, made=SCORES
        ):
            world.from_first(begin)
            started = time.monotonic()
            finetuned = _finetuned(spec, model, training=training, data=data, world=world, watch=watch)
            seconds = time.monotonic() - started
    if not world.is_first:
        return None
    rows = tuple(tested(alpha, partial(interpolate_weights, original, finetuned, alpha)) for alpha in spec.alphas)
    save_model(interpolate_weights(original, finetuned, spec.keep_alpha), spec.output / INTERPOLATED)
    return Results(rows=rows, seconds=seconds)


def _tasks(spec: FinetuneSpec, data: str) -> tuple[Task, Task, tuple[Task, ...]]:
    """Return the training data, the test data of the new task, and the old tasks."""
    new = open_task(data, spec.kind, spec.templates, spec.rows)
    parts = (
        split(new, spec.held_out)
        if spec.test is None
        else (new, open_task(spec.test, spec.kind, spec.templates, spec.rows))
    )
    return *parts, tuple(open_task(path, "auto", spec.templates, spec.rows) for path in spec.retention_tasks)


def _finetuned(
    spec: FinetuneSpec, model: DualEncoder, *, training: TrainingSpec, data: TrainingData, world: World, watch: Evaluate
) -> DualEncoder:
    """Return the fine-tuned model with merged adapters: train the model, or read the result of an earlier run."""
    path = spec.output / FINETUNED
    if path.exists():
        finished = load_model(path, model.spec, fold=False)
        assert isinstance(finished, DualEncoder), "saved as a dual encoder"
        return finished
    batch_size = world.share(spec.batch_of(data.num_samples, world.size))
    pipeline = spec.pipeline(data.shards, model.spec, num_samples=data.num_samples, batch_size=batch_size)
    batches: BatchSource[ReinforcedBatch] = pipeline.build()
    if data.class_names:
        batches = with_labels(batches, data.labels, num_classes=len(data.class_names))
    with world.awaited():
        result = train(
            training,
            model=model,
            batches=batches,
            output=spec.output / RUN,
            world=world,
            evaluate=watch if spec.evaluate_every_steps is not None else None,
            title="fine-tuning",
            console=console(),
        )
        assert result.model is model, "without an average, `train` returns the same model"
        spec.finetuning.finish(model)
        world.from_first(lambda: save_model(model, path))
    return model


def refuse_other_data(spec: FinetuneSpec, task: Task) -> None:
    """Raise an error if the output folder contains a run on images other than the images of `task`.

    Raises:
        ValueError: if the output folder contains a run on different images.
    """
    path = spec.output / TRAINED_ON
    if path.exists() and path.read_text(encoding="utf-8") != task.fingerprint:
        raise ValueError(
            f"{spec.output} contains a run on different images, or {task.name} has changed since; delete the folder to "
            "start over, or choose a different `--output`"
        )
