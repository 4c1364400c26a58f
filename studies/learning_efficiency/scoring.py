"""Scores a model, or teachers, on held-out drawings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from examples.quickstart.emoji.on_disk import DataSplit, DrawnDataset
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation import rank
from mobileclip.evaluation.metrics import classification_hits, mean_hits
from mobileclip.inference import ensemble_prompts, fill_templates
from mobileclip.inputs import ImageInput
from mobileclip.reinforce import TeacherEnsemble
from studies.learning_efficiency.finetune import PROMPTS

_BATCH = 64
_HALF = 0.5


@attrs.frozen(kw_only=True)
class Hits:
    """The correctly classified images: one bit per image, in the order of the part, packed as hexadecimal digits.

    Args:
        num_pictures: number of images.
        top1: whether the image's name has the highest score; for a tie, whether this is more likely than not.
        top5: whether the image's name is among the five highest scores.
    """

    num_pictures: int
    top1: str
    top5: str

    def bits(self, metric: str) -> npt.NDArray[np.bool_]:
        """Return a metric's bits.

        Shape:
            (pictures,).
        """
        return unpack_bits(getattr(self, metric), self.num_pictures)


def pack_bits(bits: npt.ArrayLike) -> str:
    """Return bits as hexadecimal digits, the first bit highest."""
    return np.packbits(np.asarray(bits, dtype=bool)).tobytes().hex()


def unpack_bits(digits: str, count: int) -> npt.NDArray[np.bool_]:
    """Return what `pack_bits` packed."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=count).astype(bool)


@attrs.frozen(kw_only=True)
class Scores:
    """The scores of a model on one part of the held-out drawings, in per cent.

    Args:
        top1: images whose name has the highest score of all.
        top5: images whose name is among the five highest scores.
        retrieval: names for which the image with the highest score shows the name.
        hits: hits per image; missing in old lines.
    """

    top1: float
    top5: float
    retrieval: float
    hits: Hits | None = None


@attrs.frozen(kw_only=True, eq=False)
class HeldOut:
    """A part of the held-out drawings.

    Shape:
        pixels: (samples, 3, size, size) uint8 by contract; labels: (samples,).

    Args:
        pixels: images preprocessed by contract.
        labels: classes of the images.
        class_names: classes for zero-shot classification.
    """

    pixels: Mapping[ImageInput, Tensor]
    labels: Tensor
    class_names: tuple[str, ...]


def held_out(dataset: DrawnDataset, contracts: Iterable[ImageInput]) -> dict[str, HeldOut]:
    """Return the held-out parts by name, with images preprocessed for each contract."""
    transforms = [ImageTransform(contract) for contract in dict.fromkeys(contracts)]
    return {split.name: _held_out(split, transforms) for split in dataset.tests if split.num_samples}


def pixels_of(images: Iterable[bytes], transform: ImageTransform) -> Tensor:
    """Decode and preprocess images for a model, without normalisation.

    Shape:
        (images, 3, size, size) uint8.
    """
    return torch.from_numpy(np.stack([transform.pixels(image) for image in images])).movedim(-1, 1)


def _held_out(split: DataSplit, transforms: Sequence[ImageTransform]) -> HeldOut:
    samples = list(split.samples())
    images = [sample.image for sample in samples if sample.image is not None]
    pixels = {transform.image_input: pixels_of(images, transform) for transform in transforms}
    return HeldOut(pixels=pixels, labels=torch.tensor(split.class_indices(samples)), class_names=split.class_names)


@torch.inference_mode()
def score_student(model: DualEncoder, parts: Mapping[str, HeldOut]) -> dict[str, Scores]:
    """Return a student's classification and retrieval scores on held-out drawings.

    Args:
        model: model in evaluation mode.
        parts: drawings by the name of the part, preprocessed by the student's contract.
    """
    transform, tokenizer = ImageTransform(model.spec.image.input), Tokenizer(model.spec.text.input)
    encode_text = partial(model.encode_text, normalize=True)

    def classes(names: tuple[str, ...]) -> Tensor:
        prompts = fill_templates(names, PROMPTS)
        rows = torch.cat([encode_text(ids) for ids in torch.split(tokenizer(prompts), _BATCH)])
        return ensemble_prompts(rows.reshape(len(names), -1, rows.shape[-1]))

    known = {names: classes(names) for names in {part.class_names for part in parts.values()}}
    return {
        name: score_embeddings(
            torch.cat(
                [
                    model.encode_image(transform.normalize(pixels.permute(0, 2, 3, 1)), normalize=True)
                    for pixels in torch.split(part.pixels[model.spec.image.input], _BATCH)
                ]
            ),
            known[part.class_names],
            part.labels,
        )
        for name, part in parts.items()
    }


def score_teachers(ensemble: TeacherEnsemble, parts: Mapping[str, HeldOut]) -> dict[str, Scores]:
    """Return the scores of an ensemble, whose similarity is the mean of its members' similarities.

    Args:
        ensemble: the teachers.
        parts: drawings by the name of the part, preprocessed by the teachers' contracts.
    """

    def classes(names: tuple[str, ...]) -> Tensor:
        prompts = fill_templates(names, PROMPTS)
        # Prompts are averaged teacher by teacher, so that each has the same say.
        rows = torch.split(ensemble.encode_texts(prompts), list(ensemble.dims), dim=-1)
        return torch.cat([ensemble_prompts(part.reshape(len(names), -1, part.shape[-1])) for part in rows], dim=-1)

    known = {names: classes(names) for names in {part.class_names for part in parts.values()}}
    return {
        name: score_embeddings(
            ensemble.encode_images({one.image.size: part.pixels[one.image] for one in ensemble.teachers}),
            known[part.class_names],
            part.labels,
        )
        for name, part in parts.items()
    }


def score_embeddings(image: Tensor, classes: Tensor, labels: Tensor) -> Scores:
    """Return the scores for embeddings of images and classes.

    Shape:
        image: (images, dim); classes: (classes, dim); labels: (images,).
    """
    found = classification_hits(image, classes, labels)
    accuracy = mean_hits(found, labels, num_classes=len(classes))
    present = torch.unique(labels)
    recall = rank(image, classes[present], image_ids=labels, text_ids=present).recall
    return Scores(
        top1=100 * accuracy.top1,
        top5=100 * accuracy.top5,
        retrieval=100 * recall.text_to_image.at1,
        hits=Hits(
            num_pictures=len(labels),
            top1=pack_bits(found.top1.numpy() > _HALF),
            top5=pack_bits(found.top5.numpy() > _HALF),
        ),
    )
