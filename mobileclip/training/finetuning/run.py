"""A fine-tuning run from its choices to its scores; what an earlier run finished is read, not done again."""

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
from mobileclip.training.distributed import World, connected
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
from mobileclip.training.loop import train
from mobileclip.training.run import claimed
from mobileclip.training.spec import TrainingSpec


@attrs.frozen(kw_only=True)
class Score:
    """The accuracy of a model on one task.

    Args:
        task: its name.
        metric: `top-1`, zero-shot, or `R@1`, the mean of both directions of retrieval.
        value: in per cent.
        num_images: pictures that it was tested on.
        num_skipped: pictures, or parts of the data, that could not be used.
        hits: how right the model was, from 0 to 1, by picture; their mean is the value.
    """

    task: str
    metric: str
    value: float
    num_images: int
    num_skipped: int = 0
    hits: tuple[float, ...] = ()


Measure: TypeAlias = Callable[[DualEncoder, Task, tuple[str, ...], tuple[str, ...]], Score]
"""From a model, a task, templates, and classes to choose from beside those of the pictures, to the score."""


@attrs.frozen(kw_only=True)
class Scores:
    """The accuracy of one interpolated model on the new task and on the old ones.

    Args:
        alpha: the model: 0 the original, 1 the fine-tuned one, between them an interpolation.
        new: the new task.
        old: the old ones.
    """

    alpha: float
    new: Score
    old: tuple[Score, ...]

    @property
    def mean_old(self) -> float:
        """Mean over the old tasks."""
        return sum(score.value for score in self.old) / len(self.old)


@attrs.frozen(kw_only=True)
class Results:
    """The results of a fine-tuning run for every alpha, with its training time.

    Args:
        rows: of every alpha.
        seconds: what training took; of this run alone where it resumed.
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
"""Folders of an output."""


def finetune(
    spec: FinetuneSpec, *, measure: Measure, on_begin: Callable[[Scores], object] = lambda _: None
) -> Results | None:
    """Fine-tune a model or resume; return the results in the first process, None in the others.

    Under `torchrun`, every process calls this.

    Args:
        spec: the choices.
        measure: how well a model does a task; called in the first process.
        on_begin: called there with the original's scores, before anything is trained.

    Raises:
        ValueError: if something is missing or does not fit; the output folder holds a run with other choices; or a step
            says why it cannot go on.
        FloatingPointError: if the loss is not finite.
        TimeoutError: if the other processes did not come in time, or are gone; the message names them.
    """
    if spec.checkpoint is None or spec.data is None:
        missing = "--model" if spec.checkpoint is None else "--data"
        raise ValueError(
            f"{missing} is missing: what to fine-tune, and the pictures to do it on; try it on drawn shapes: "
            "`mobileclip finetune --tiny`"
        )
    _refuse_other_choices(spec)
    train_part = new = open_task(spec.data, spec.kind, spec.templates, spec.rows)
    if spec.test is None:
        train_part, test = split(new, spec.held_out)
    else:
        test = open_task(spec.test, spec.kind, spec.templates, spec.rows)
    refuse_other_data(spec, train_part)
    old = tuple(open_task(path, "auto", spec.templates, spec.rows) for path in spec.old_tasks)
    original = _load(spec)
    with connected(spec.device, collective_seconds=spec.collective_seconds) as world:
        # Changed data goes elsewhere.
        folder = spec.output / "data" / train_part.fingerprint
        data = world.from_first(lambda: write_training_data(train_part, folder))
        steps = _Steps(spec=spec, data=data, test=test, old=old, measure=measure, device=world.device)
        training, model = steps.training(), steps.prepared(original)
        files = {TRAINED_ON: train_part.fingerprint, CHOICES: to_json(spec, indent=1)}

        def refuse() -> None:
            _refuse_other_choices(spec)
            refuse_other_data(spec, train_part)

        def begin() -> None:
            on_begin(steps.scores(0.0, lambda: copy.deepcopy(original)))

        checkpoints = f"{RUN}/checkpoints"
        with claimed(spec.output, files, world, refuse=refuse, checkpoints=checkpoints, kept=FINETUNED, made=SCORES):
            world.from_first(begin)
            started = time.monotonic()
            finetuned = steps.finetune(model, training, world)
            seconds = time.monotonic() - started
    if not world.is_first:
        return None
    rows = tuple(steps.scores(alpha, partial(interpolate_weights, original, finetuned, alpha)) for alpha in spec.alphas)
    save_model(interpolate_weights(original, finetuned, spec.keep_alpha), spec.output / INTERPOLATED)
    return Results(rows=rows, seconds=seconds)


def _refuse_other_choices(spec: FinetuneSpec) -> None:
    path = spec.output / CHOICES
    if path.exists() and from_json(path.read_text(encoding="utf-8"), FinetuneSpec) != spec:
        raise ValueError(
            f"{spec.output} holds a run with other choices; delete it to start over, go on with these by "
            f"giving `{path}` before the flags, or keep it and choose another `--output`"
        )


def refuse_other_data(spec: FinetuneSpec, task: Task) -> None:
    """Refuse an output that was trained on other pictures than those of a task.

    Raises:
        ValueError: if it was.
    """
    path = spec.output / TRAINED_ON
    if path.exists() and path.read_text(encoding="utf-8") != task.fingerprint:
        raise ValueError(
            f"{spec.output} holds a run on other pictures, or on what {task.name} was before it changed; delete it to "
            "start over, or keep it and choose another `--output`"
        )


def _load(spec: FinetuneSpec) -> DualEncoder:
    """Return the original, in training form.

    Raises:
        CheckpointError: if the file is folded or holds no whole model.
    """
    assert spec.checkpoint is not None, "checked at the beginning"
    model = load_model(spec.checkpoint, spec.model, fold=False)
    if not isinstance(model, DualEncoder):
        raise CheckpointError(f"{spec.checkpoint} holds one tower alone; fine-tuning needs a model with both")
    return model


@attrs.frozen(kw_only=True)
class _Steps:
    """What a run does with its models: train one, and test it and others.

    Args:
        spec: its choices.
        data: what is trained on.
        test: what the new task is tested on.
        old: tasks of before.
        measure: how well a model does a task.
        device: where models are tested.
    """

    spec: FinetuneSpec
    data: TrainingData
    test: Task
    old: tuple[Task, ...]
    measure: Measure
    device: torch.device

    def training(self) -> TrainingSpec:
        """Return how the run trains.

        Raises:
            ValueError: if the pictures do not fill a batch, or are all of one class.
        """
        names = self.data.class_names
        loss: LossSpec = labelled_contrastive(len(names)) if names else ContrastiveLossSpec()
        return self.spec.training(loss, num_samples=self.data.num_samples)

    def prepared(self, original: DualEncoder) -> DualEncoder:
        """Return a copy of the original that is ready to be trained.

        Args:
            original: in training form; not changed.

        Raises:
            ValueError: if batch norms cannot be synchronised here, or the adapters do not fit the model.
        """
        model = copy.deepcopy(original)
        torch.manual_seed(self.spec.seed)
        self.spec.finetuning.prepare(model)
        return model

    def finetune(self, model: DualEncoder, training: TrainingSpec, world: World) -> DualEncoder:
        """Return the fine-tuned model, an ordinary one again: trained now, or read where an earlier run trained it."""
        path, spec = self.spec.output / FINETUNED, self.spec
        if path.exists():
            finished = load_model(path, model.spec, fold=False)
            assert isinstance(finished, DualEncoder), "it was saved as one"
            return finished
        batch_size = world.share(spec.batch_of(self.data.num_samples, world.size))
        with world.awaited():
            result = train(
                training,
                model=model,
                batches=self._batches(model, batch_size=batch_size),
                output=spec.output / RUN,
                world=world,
                evaluate=self._watch if spec.evaluate_every_steps is not None else None,
                title="fine-tuning",
                console=console(),
            )
            assert result.model is model, "without an average, what was trained is what comes back"
            spec.finetuning.finish(model)
            world.from_first(lambda: save_model(model, path))
        return model

    def scores(self, alpha: float, model: Callable[[], DualEncoder]) -> Scores:
        """Return how well the model at `alpha` does every task; what an earlier run found is read.

        Args:
            alpha: between the original, 0, and the fine-tuned model, 1.
            model: makes the model, which nobody else uses: it is folded as it is.
        """
        tested_on = "\0".join(task.fingerprint for task in (self.test, *self.old))
        mark = blake2b(tested_on.encode(), digest_size=6).hexdigest()
        path = self.spec.output / SCORES / f"{alpha:g}-{mark}.json"
        if path.exists():
            return from_json(path.read_text(encoding="utf-8"), Scores)
        folded = reparameterize(model().eval(), inplace=True).to(self.device)
        templates = self.spec.templates
        scores = Scores(
            alpha=alpha,
            new=self.measure(folded, self.test, templates, self.data.class_names),
            old=tuple(self.measure(folded, task, templates, ()) for task in self.old),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, to_json(scores))
        return scores

    def _batches(self, model: DualEncoder, *, batch_size: int) -> BatchSource[ReinforcedBatch]:
        data = self.data
        spec = self.spec.pipeline(data.shards, model.spec, num_samples=data.num_samples, batch_size=batch_size)
        if not data.class_names:
            return spec.build()
        return with_labels(spec.build(), data.labels, num_classes=len(data.class_names))

    def _watch(self, model: nn.Module, _steps: int) -> Mapping[str, float]:
        """Test the new task while training; the number goes to the run's metrics."""
        assert isinstance(model, DualEncoder), "what is trained"
        score = self.measure(model, self.test, self.spec.templates, self.data.class_names)
        return {f"new_task_{score.metric}": score.value}
