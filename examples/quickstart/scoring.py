"""Scores students and teachers on images that training never saw, and estimates the errors of differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from examples.quickstart.emoji.on_disk import DataSplit
from examples.quickstart.emoji.teachers import PROMPTS
from examples.quickstart.emoji.trunks import encoding_threads
from mobileclip import ImageTextModel
from mobileclip.data import decode_image
from mobileclip.evaluation import rank
from mobileclip.evaluation.metrics import classification_hits, mean_hits
from mobileclip.inference import ensemble_prompts, fill_templates
from mobileclip.processes import num_cores
from mobileclip.progress import track
from mobileclip.reinforce import TeacherEnsemble
from mobileclip.reinforce.encoding import plain_augmentation, plain_views

_BATCH = 32
ALL = "all unseen pictures"
# Rows of the table for the differences: later row minus earlier row.
COMPARED = (("reinforced", "plain"), ("reinforced", "captions"), ("captions", "plain"))
_SURE = 1.96


@attrs.frozen(kw_only=True)
class Scores:
    """The reported scores of one split, in per cent.

    Args:
        top1: share of images whose concept has the highest score.
        top5: share of images whose concept is among the five highest scores.
        text_to_image: share of captions for which the first image shows the concept.
        image_to_text: share of images for which the first caption belongs to the concept.
    """

    top1: float
    top5: float
    text_to_image: float
    image_to_text: float


@attrs.frozen(kw_only=True)
class SplitResults:
    """The detailed results on one split.

    Args:
        scores: scores over all images of the split.
        answers: predicted concept, by the image's key.
        top5: whether the image's concept is among the five best, by the image's key.
    """

    scores: Scores
    answers: Mapping[str, str]
    top5: Mapping[str, bool]


def score_student(model: ImageTextModel, splits: Iterable[DataSplit]) -> dict[str, SplitResults]:
    """Return a student's results, by split."""
    encode_images = partial(model.encode_image, batch_size=_BATCH)
    return {split.name: _findings(split, encode_images, model.encode_text) for split in splits}


def score_teachers(teachers: TeacherEnsemble, splits: Iterable[DataSplit]) -> dict[str, SplitResults]:
    """Return the ensemble's results, by split; the ensemble's similarity is the mean over the teachers."""
    plain = {size: plain_augmentation(size) for size in teachers.image_sizes}

    def encode_batch(images: Sequence[Image.Image]) -> Tensor:
        return teachers.encode_images({size: plain_views(images, policy) for size, policy in plain.items()})

    def encode_images(images: Sequence[Image.Image]) -> Tensor:
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        with encoding_threads(num_cores()) as pool:
            shown = track(pool.map(encode_batch, batches), total=len(batches), title="teachers", unit="batches")
            return torch.cat(list(shown))

    return {split.name: _findings(split, encode_images, teachers.encode_texts) for split in splits}


def _findings(
    split: DataSplit,
    encode_images: Callable[[Sequence[Image.Image]], Tensor],
    encode_texts: Callable[[Sequence[str]], Tensor],
) -> SplitResults:
    """Classify every image, and rank captions and images; all captions and images of the same concept match."""
    samples = list(split.samples())
    labels = torch.tensor(split.class_indices(samples))
    image = encode_images([decode_image(one.image) for one in samples if one.image is not None])
    prompts = encode_texts(fill_templates(split.class_names, PROMPTS))
    classes = ensemble_prompts(prompts.reshape(len(split.class_names), len(PROMPTS), -1))
    hits = classification_hits(image, classes, labels)
    accuracy = mean_hits(hits, labels, num_classes=len(classes))
    captions = dict(zip(labels.tolist(), (one.captions for one in samples), strict=True))
    texts = [text for group in captions.values() for text in group]
    ids = torch.tensor([label for label, group in captions.items() for _ in group])
    recall = rank(image, encode_texts(texts), image_ids=labels, text_ids=ids).recall
    keys = [one.key for one in samples]
    best = (image @ classes.T).argmax(1).tolist()
    return SplitResults(
        scores=Scores(
            top1=100 * accuracy.top1,
            top5=100 * accuracy.top5,
            text_to_image=100 * recall.text_to_image.at1,
            image_to_text=100 * recall.image_to_text.at1,
        ),
        answers={key: split.class_names[index] for key, index in zip(keys, best, strict=True)},
        # For a tie: whether success is more likely than not.
        top5=dict(zip(keys, (hits.top5 > 1 / 2).tolist(), strict=True)),
    )


@attrs.frozen(kw_only=True)
class Difference:
    """The top-5 of two rows of the table on the same images.

    Args:
        num_pictures: number of images.
        earlier: top-5 of the earlier row, in per cent.
        later: top-5 of the later row.
        error: standard error of the difference, in points.
    """

    num_pictures: int
    earlier: float
    later: float
    error: float

    def __str__(self) -> str:
        sure = abs(self.later - self.earlier) > _SURE * self.error
        return f"{self.later - self.earlier:+.1f} ± {self.error:.1f}{'' if sure else ', not significant'}"


def differences(found: Mapping[str, Sequence[Mapping[str, SplitResults]]]) -> dict[str, dict[str, Difference]]:
    """Return the differences of top-5 by comparison, and by split or `ALL`.

    Args:
        found: results by row of the table, seed and split.
    """
    return {
        f"{later} - {earlier}": {
            name: _difference(found[earlier], found[later], name) for name in (*found[later][0], ALL)
        }
        for later, earlier in COMPARED
    }


def _difference(
    earlier: Sequence[Mapping[str, SplitResults]], later: Sequence[Mapping[str, SplitResults]], name: str
) -> Difference:
    """Return the difference of two rows, with an error that sums the variances over seeds and over images."""
    one, two = (np.array([_by_picture(seed, name) for seed in row]) for row in (earlier, later))
    less = two - one
    variance = less.mean(0).var(ddof=1) / less.shape[1]
    if len(less) > 1:
        variance += less.mean(1).var(ddof=1) / len(less)
    return Difference(
        num_pictures=less.shape[1],
        earlier=100 * float(one.mean()),
        later=100 * float(two.mean()),
        error=100 * math.sqrt(variance),
    )


def _by_picture(found: Mapping[str, SplitResults], name: str) -> npt.NDArray[np.float64]:
    """Return one number per image; an image in several splits has the mean over its splits and counts once."""
    hits: dict[str, list[bool]] = {}
    for split, of_split in found.items():
        for key, hit in of_split.top5.items() if name in (split, ALL) else ():
            hits.setdefault(key, []).append(hit)
    return np.array([sum(hits[key]) / len(hits[key]) for key in sorted(hits)])
