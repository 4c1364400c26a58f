"""One training: its pictures and captions in memory, its student, and how good that is on held-out drawings."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import Tensor

from examples.learning_efficiency.data import Roles
from examples.learning_efficiency.spec import VARIANTS, EfficiencySpec, Variant
from examples.quickstart.emoji.teachers import PROMPTS
from examples.quickstart.stored import StoredBatches, StoredSamples, store_samples
from mobileclip.data import (
    ImageTextSample,
    ImageTransform,
    Tokenizer,
    load_image,
    read_card,
)
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import classification_accuracy, ensemble_prompts, retrieval_recall
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.training import train

RESULT = "result.json"
_BATCH = 64


@attrs.frozen(kw_only=True)
class Scores:
    """How good a model is on one part of the held-out drawings, in per cent.

    Args:
        top1: pictures whose name is the best-scored of all.
        top5: pictures whose name is among the five best.
        retrieval: names for which the best-scored picture is one of the concept.
    """

    top1: float
    top5: float
    retrieval: float


@attrs.frozen(kw_only=True)
class RunResult:
    """One finished training.

    Args:
        variant: how it was trained.
        budget: its steps.
        seed: of its weights, its order of pictures and its choices of captions.
        validation: scores that settings may be chosen by.
        test: scores that are reported.
        seconds: how long this process took for it; less than the whole where it was resumed.
    """

    variant: str
    budget: int
    seed: int
    validation: Scores
    test: Scores
    seconds: float


@attrs.frozen(kw_only=True)
class Run:
    """A training that is to be done.

    Args:
        variant: name of a variant.
        budget: number of steps.
        seed: of everything random.
        folder: where its metrics, its checkpoint and its result are.
    """

    variant: str
    budget: int
    seed: int
    folder: Path

    @property
    def result(self) -> RunResult | None:
        """What came out; None if it is not finished."""
        path = self.folder / RESULT
        return from_json(path.read_text(encoding="utf-8"), RunResult) if path.exists() else None


@attrs.frozen(kw_only=True, eq=False)
class HeldOut:
    """Held-out drawings at the student's size.

    Shape:
        pixels: (samples, size, size, 3) uint8; labels: (samples,).

    Args:
        pixels: the whole pictures.
        labels: their classes.
    """

    pixels: Tensor
    labels: Tensor


@attrs.frozen(kw_only=True, eq=False)
class Material:
    """What every training reads, in memory.

    Args:
        stored: the student's samples, by whether they are strongly augmented.
        dims: the teachers', in the order of the stored embeddings.
        logit_scales: the teachers'.
        class_names: what classification chooses from.
        validation: held-out drawings to choose settings on.
        test: held-out drawings to report.
    """

    stored: Mapping[bool, StoredSamples]
    dims: tuple[int, ...]
    logit_scales: tuple[float, ...]
    class_names: tuple[str, ...]
    validation: HeldOut
    test: HeldOut


def load_material(spec: EfficiencySpec, roles: Roles, directories: Mapping[bool, Path]) -> Material:
    """Return the reinforced samples of both policies and the held-out drawings, at the student's size.

    Args:
        spec: the choices.
        roles: who sees which pictures.
        directories: the reinforced shards, by whether they are strongly augmented.
    """
    card = read_card(directories[True])
    stored = {
        strong: store_samples(
            sorted(map(str, directory.glob("*.tar"))),
            augmentation=spec.policy(strong=strong, size=spec.image_size),
            student=spec.student,
        )
        for strong, directory in directories.items()
    }
    return Material(
        stored=stored,
        dims=card.teacher_dims,
        logit_scales=card.teacher_logit_scales,
        class_names=roles.class_names,
        validation=_held_out(spec, roles, roles.validation),
        test=_held_out(spec, roles, roles.test),
    )


def _held_out(spec: EfficiencySpec, roles: Roles, samples: Sequence[ImageTextSample]) -> HeldOut:
    transform = ImageTransform(spec.student.image.input)
    pixels = [transform.pixels(load_image(picture(sample))) for sample in samples]
    return HeldOut(pixels=torch.from_numpy(np.stack(pixels)), labels=torch.tensor(roles.labels(samples)))


def train_one(spec: EfficiencySpec, run: Run, material: Material) -> RunResult:
    """Train a student, or go on from its last checkpoint, and store how good it is.

    Args:
        spec: the choices.
        run: which training.
        material: what it reads.

    Raises:
        FloatingPointError: if the loss is not finite; the message has the step and the pictures.
    """
    started = time.monotonic()
    variant = VARIANTS[run.variant]
    loss = spec.loss(variant, dims=material.dims, logit_scales=material.logit_scales)
    torch.manual_seed(run.seed)
    model = spec.student.build()
    trained = train(
        spec.training(loss, budget=run.budget, seed=run.seed),
        model=model,
        batches=variant_batches(variant, material, batch_size=spec.batch_size, seed=run.seed),
        output=run.folder,
    ).model
    assert isinstance(trained, DualEncoder), "the average of a dual encoder is one"
    result = RunResult(
        variant=run.variant,
        budget=run.budget,
        seed=run.seed,
        validation=score(trained, material.validation, material.class_names),
        test=score(trained, material.test, material.class_names),
        seconds=round(time.monotonic() - started, 1),
    )
    replace_text(run.folder / RESULT, to_json(result, indent=1))
    # A hundred finished trainings would otherwise hold gigabytes of optimiser states that nobody resumes.
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    return result


def variant_batches(variant: Variant, material: Material, *, batch_size: int, seed: int) -> StoredBatches:
    """Return the batches of one training; variants of one seed see the same pictures in the same order."""
    return StoredBatches(
        samples=material.stored[variant.strong_augmentation],
        batch_size=batch_size,
        seed=seed,
        synthetic_captions=variant.synthetic_captions,
        num_columns=sum(material.dims[: variant.num_teachers]),
    )


@torch.inference_mode()
def score(model: DualEncoder, held_out: HeldOut, class_names: Sequence[str]) -> Scores:
    """Return how well a student names held-out drawings, and finds them by name.

    Args:
        model: in evaluation mode.
        held_out: the drawings.
        class_names: what to choose from.
    """
    transform, tokenizer = ImageTransform(model.spec.image.input), Tokenizer(model.spec.text.input)
    prompts = [prompt.format(name) for name in class_names for prompt in PROMPTS]
    texts = torch.cat([model.encode_text(ids, normalize=True) for ids in torch.split(tokenizer(prompts), _BATCH)])
    pictures = [
        model.encode_image(transform.normalize(part), normalize=True) for part in torch.split(held_out.pixels, _BATCH)
    ]
    classes = ensemble_prompts(texts.reshape(len(class_names), len(PROMPTS), -1))
    return score_embeddings(torch.cat(pictures), classes, held_out.labels)


def score_embeddings(image: Tensor, classes: Tensor, labels: Tensor) -> Scores:
    """Return the scores of pictures' and classes' embeddings.

    Shape:
        image: (pictures, dim); classes: (classes, dim); labels: (pictures,).
    """
    accuracy = classification_accuracy(image, classes, labels, allow_absent=True)
    present = torch.unique(labels)
    recall = retrieval_recall(image, classes[present], image_ids=labels, text_ids=present)
    return Scores(top1=100 * accuracy.top1, top5=100 * accuracy.top5, retrieval=100 * recall.text_to_image.at1)


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")


def picture(sample: ImageTextSample) -> bytes:
    """Return a sample's encoded picture, which the emoji data set always has."""
    assert sample.image is not None, "the data set stores every picture"
    return sample.image
