"""How good a model, or the teachers, are on one split that training never saw."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np
import torch
from emoji import EmojiSplit
from torch import Tensor

from mobileclip.data import ImageTextSample, augmentation_rng, decode_image
from mobileclip.data.augmentation import AugmentationSpec
from mobileclip.evaluation import classification_accuracy, ensemble_prompts, retrieval_recall
from mobileclip.pipeline import ImageTextModel
from mobileclip.progress import track
from mobileclip.reinforce import TeacherEnsemble

PROMPTS = ("{}", "an emoji of {}")
_BATCH = 32


@attrs.frozen(kw_only=True)
class Scores:
    """What is reported of one split, in per cent.

    Args:
        top1: pictures whose concept is the best-scored of all.
        top5: pictures whose concept is among the five best.
        text_to_image: captions for which the first picture is one of the concept.
        image_to_text: pictures for which the first caption is one of the concept.
    """

    top1: float
    top5: float
    text_to_image: float
    image_to_text: float


def evaluate_model(model: ImageTextModel, split: EmojiSplit, title: str) -> Scores:
    """Return the scores of a student."""

    def encode_images(samples: Sequence[ImageTextSample]) -> Tensor:
        return model.encode_image([decode_image(_image(sample)) for sample in samples])

    return _scores(encode_images, model.encode_text, split, title)


def evaluate_teachers(teachers: TeacherEnsemble, split: EmojiSplit, title: str) -> Scores:
    """Return the scores of the ensemble, whose similarity is the mean over its members."""
    plain = {
        size: AugmentationSpec(size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), num_operations=0)
        for size in teachers.image_sizes
    }

    def encode_images(samples: Sequence[ImageTextSample]) -> Tensor:
        images = [decode_image(_image(sample)) for sample in samples]
        pixels = {
            size: torch.from_numpy(
                np.stack(
                    [
                        np.asarray(one.apply(image, one.sample(augmentation_rng(0, "", 0), image.size)))
                        for image in images
                    ]
                )
            ).permute(0, 3, 1, 2)
            for size, one in plain.items()
        }
        return teachers.encode_images(pixels)

    return _scores(encode_images, teachers.encode_texts, split, title)


def _scores(
    encode_images: Callable[[Sequence[ImageTextSample]], Tensor],
    encode_texts: Callable[[Sequence[str]], Tensor],
    split: EmojiSplit,
    title: str,
) -> Scores:
    samples = list(split.samples())
    batches = [samples[start : start + _BATCH] for start in range(0, len(samples), _BATCH)]
    # One thread for a batch and several batches at once: small networks do not fill the cores any other way.
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        encoded = pool.map(encode_images, batches)
        image = torch.cat(
            list(track(encoded, total=len(batches), title=f"{title}: {split.title}", unit=f"x {_BATCH} pictures"))
        )
    labels = torch.tensor(split.class_indices(samples))
    prompts = [prompt.format(name) for name in split.class_names for prompt in PROMPTS]
    classes = ensemble_prompts(encode_texts(prompts).reshape(len(split.class_names), len(PROMPTS), -1))
    accuracy = classification_accuracy(image, classes, labels, allow_absent=True)

    captions = {index: sample.captions for index, sample in zip(labels.tolist(), samples, strict=True)}
    texts = [text for group in captions.values() for text in group]
    ids = torch.tensor([index for index, group in captions.items() for _ in group])
    recall = retrieval_recall(image, encode_texts(texts), image_ids=labels, text_ids=ids)
    return Scores(
        top1=100 * accuracy.top1,
        top5=100 * accuracy.top5,
        text_to_image=100 * recall.text_to_image.at1,
        image_to_text=100 * recall.image_to_text.at1,
    )


def _image(sample: ImageTextSample) -> bytes:
    assert sample.image is not None, "the data set stores every picture"
    return sample.image
