"""The classes that a model finds least, and what it takes them for."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.encoding.features import Features
from mobileclip.evaluation.metrics.classification import ensemble_prompts
from mobileclip.evaluation.report.pictures import Picture
from mobileclip.strict import repeated

_CHUNK = 4096
_MOST_MISTAKES = 3


@attrs.frozen(kw_only=True)
class ConfusedClass:
    """A class and what its images are taken for.

    Args:
        name: of the class; with its number where several have one name.
        num_images: images of the class.
        num_right: images that are taken for what they are.
        taken_for: the most frequent mistakes and how often each is made, the most frequent first.
        num_mistakes: how many classes its images are taken for besides.
        example: an image that is taken for the most frequent mistake, as its number in the data set.
        picture: of the example, where it could be read again.
    """

    name: str
    num_images: int
    num_right: int
    taken_for: Mapping[str, int]
    num_mistakes: int
    example: int
    picture: Picture | None = None

    @property
    def recall(self) -> float:
        """Images taken for what they are, as a fraction of one."""
        return self.num_right / self.num_images


def predict(benchmark: Benchmark, features: Features) -> Tensor:
    """Return the number of the class that each image is nearest to.

    Shape:
        result: `(images,)`.

    Args:
        benchmark: a data set for classification.
        features: a model's embeddings of it.

    Raises:
        ValueError: if there are not as many texts as classes times templates.
    """
    num_classes, num_templates = len(benchmark.class_names), len(benchmark.templates)
    if len(features.text) != num_classes * num_templates:
        raise ValueError(
            f"{benchmark.name} has {num_classes} classes in {num_templates} templates, but the features hold "
            f"{len(features.text)} texts: they are of another data set"
        )
    classes = ensemble_prompts(features.text.reshape(num_classes, num_templates, -1))
    image = F.normalize(features.image.float(), dim=-1)
    starts = range(0, len(image), _CHUNK)
    return torch.cat([(image[start : start + _CHUNK] @ classes.T).argmax(dim=1) for start in starts])


def worst_classes(benchmark: Benchmark, features: Features, *, num_classes: int) -> tuple[ConfusedClass, ...]:
    """Return the classes of the lowest recall, the lowest first; of equal ones, those with more images come first.

    Classes without an image have no recall, and those without a mistake are not among the worst.

    Args:
        benchmark: a data set for classification.
        features: a model's embeddings of it.
        num_classes: at most so many.

    Raises:
        ValueError: if the features are of another data set.
    """
    if features.labels is None or len(features.labels) != len(features.image):
        raise ValueError(f"{benchmark.name} is for classification: its features need one label for each image")
    labels, predicted = features.labels, predict(benchmark, features)
    counts = torch.bincount(labels, minlength=len(benchmark.class_names))
    right = torch.bincount(labels[predicted == labels], minlength=len(benchmark.class_names))
    imperfect = (right < counts).nonzero().flatten().tolist()
    order = sorted(imperfect, key=lambda one: (int(right[one]) / int(counts[one]), -int(counts[one]), one))
    names = _distinct(benchmark.class_names)
    return tuple(_confused(one, names, labels, predicted) for one in order[:num_classes])


def _confused(index: int, names: tuple[str, ...], labels: Tensor, predicted: Tensor) -> ConfusedClass:
    said = predicted[labels == index]
    counts = torch.bincount(said[said != index], minlength=len(names))
    mistakes = sorted(counts.nonzero().flatten().tolist(), key=lambda one: (-int(counts[one]), one))
    example = ((labels == index) & (predicted == mistakes[0])).nonzero().flatten()
    return ConfusedClass(
        name=names[index],
        num_images=len(said),
        num_right=int((said == index).sum()),
        taken_for={names[one]: int(counts[one]) for one in mistakes[:_MOST_MISTAKES]},
        num_mistakes=len(mistakes),
        example=int(example[0]),
    )


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names with the number of the class behind those that several classes have."""
    several = set(repeated(names))
    return tuple(f"{name} (class {index})" if name in several else name for index, name in enumerate(names))
