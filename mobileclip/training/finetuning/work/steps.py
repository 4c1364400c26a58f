"""What a run does with its models: train one, and test it and others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b

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
from mobileclip.training import TrainingSpec, World, train
from mobileclip.training.finetuning.labels import labelled_contrastive, with_labels
from mobileclip.training.finetuning.run_spec import FinetuneSpec
from mobileclip.training.finetuning.work.report import Scores
from mobileclip.training.finetuning.work.scoring import evaluate_task
from mobileclip.training.finetuning.work.tasks import Task, TrainingData

FINETUNED = "finetuned.safetensors"
RUN, SCORES = "run", "scores"
"""Folders of an output."""


@attrs.frozen(kw_only=True)
class Steps:
    """The steps of one run.

    Args:
        spec: its choices.
        data: what is trained on.
        test: what the new task is tested on.
        old: tasks of before.
    """

    spec: FinetuneSpec
    data: TrainingData
    test: Task
    old: tuple[Task, ...]

    def training(self) -> TrainingSpec:
        """Return how the run trains.

        Raises:
            ValueError: if the pictures do not fill a batch, or are all of one class.
        """
        if self.data.class_names:
            loss: LossSpec = labelled_contrastive(len(self.data.class_names))
        else:
            loss = ContrastiveLossSpec()
        return self.spec.training(loss, num_samples=self.data.num_samples)

    def prepare(self) -> DualEncoder:
        """Return a copy of the original that is ready to be trained.

        Raises:
            ValueError: if batch norms cannot be synchronised here, or the adapters do not fit the model.
        """
        model = load(self.spec)
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
        batch_size = _share(spec.batch_of(self.data.num_samples, world.size), world)
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

    def scores(self, alpha: float, model: Callable[[], DualEncoder], device: torch.device) -> Scores:
        """Return how well the model at `alpha` does every task; what an earlier run found is read."""
        tested_on = "\0".join(task.fingerprint for task in (self.test, *self.old))
        mark = blake2b(tested_on.encode(), digest_size=6).hexdigest()
        path = self.spec.output / SCORES / f"{alpha:g}-{mark}.json"
        if path.exists():
            return from_json(path.read_text(encoding="utf-8"), Scores)
        folded = reparameterize(model().eval()).to(device)
        templates = self.spec.templates
        scores = Scores(
            alpha=alpha,
            new=evaluate_task(folded, self.test, templates, self.data.class_names),
            old=tuple(evaluate_task(folded, task, templates) for task in self.old),
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

    def _watch(self, model: nn.Module, steps: int) -> Mapping[str, float]:
        """Test the new task while training; the number goes to the run's metrics."""
        del steps
        assert isinstance(model, DualEncoder), "what is trained"
        score = evaluate_task(model, self.test, self.spec.templates, self.data.class_names)
        return {f"new_task_{score.metric}": score.value}


def load(spec: FinetuneSpec) -> DualEncoder:
    """Return the original, in training form.

    Raises:
        CheckpointError: if the file is folded or holds no whole model.
    """
    assert spec.checkpoint is not None, "checked at the beginning"
    model = load_model(spec.checkpoint, spec.model, fold=False)
    if not isinstance(model, DualEncoder):
        raise CheckpointError(f"{spec.checkpoint} holds one tower alone; fine-tuning needs a model with both")
    return model


def _share(batch_size: int, world: World) -> int:
    if batch_size % world.size:
        raise ValueError(f"a batch of {batch_size} cannot be dealt out evenly to {world.size} processes")
    return batch_size // world.size
