"""What a report shows of one model on one data set beyond its metrics: mistakes and examples."""

from __future__ import annotations

import attrs

from mobileclip.evaluation.datasets.benchmark import Benchmark, Kind
from mobileclip.evaluation.encoding.features import Features
from mobileclip.evaluation.report.confusion import ConfusedClass, worst_classes
from mobileclip.evaluation.report.examples import (
    ImageQuery,
    TextQuery,
    image_queries,
    rank_examples,
    text_queries,
)
from mobileclip.evaluation.report.pictures import find_images
from mobileclip.evaluation.suite import key_and_title
from mobileclip.evaluation.tasks.zero_shot.scoring import absent_classes


@attrs.frozen(kw_only=True)
class DatasetDetails:
    """One model on one data set, up close.

    Args:
        model: its name in the report.
        key: of the data set, as in results.
        dataset: its name in tables.
        kind: what its samples have beside the image.
        num_images: images evaluated.
        num_classes: classes to choose from; zero for retrieval.
        absent_classes: names of classes without an image.
        confused: the classes of the lowest recall.
        text_queries: images found for texts.
        image_queries: captions found for images.
        num_lost: queries and pictures that could not be read again for the report.
    """

    model: str
    key: str
    dataset: str
    kind: Kind
    num_images: int
    num_classes: int = 0
    absent_classes: tuple[str, ...] = ()
    confused: tuple[ConfusedClass, ...] = ()
    text_queries: tuple[TextQuery, ...] = ()
    image_queries: tuple[ImageQuery, ...] = ()
    num_lost: int = 0


def dataset_details(
    benchmark: Benchmark,
    features: Features,
    *,
    model: str,
    num_classes: int = 8,
    num_queries: int = 6,
    num_answers: int = 5,
) -> DatasetDetails:
    """Return what a report shows of a model on a data set; afterwards the features are not needed.

    The images that are shown are read from the shards again, those of a remote data set over the network.

    Args:
        benchmark: the data set.
        features: the model's embeddings of it, see `extract_features`.
        model: its name in the report.
        num_classes: at most so many of the worst classes.
        num_queries: at most so many examples of texts, and of images.
        num_answers: at most so many answers to each.

    Raises:
        ValueError: if the features are of another data set, or a number is below one.
    """
    for name, number in (("num_classes", num_classes), ("num_queries", num_queries), ("num_answers", num_answers)):
        if number < 1:
            raise ValueError(f"{name} is {number}, expected at least 1")
    key, dataset = key_and_title(benchmark.name)
    empty = DatasetDetails(model=model, key=key, dataset=dataset, kind=benchmark.kind, num_images=len(features.image))
    if benchmark.kind == "classification":
        return _classification(empty, benchmark, features, num_classes)
    return _retrieval(empty, benchmark, features, num_queries, num_answers)


def _classification(
    empty: DatasetDetails, benchmark: Benchmark, features: Features, num_classes: int
) -> DatasetDetails:
    worst = worst_classes(benchmark, features, num_classes=num_classes)
    found = find_images(benchmark, features.keys, pictures=[one.example for one in worst])
    confused = tuple(attrs.evolve(one, picture=found.pictures.get(one.example)) for one in worst)
    return attrs.evolve(
        empty,
        num_classes=len(benchmark.class_names),
        absent_classes=absent_classes(benchmark, features),
        confused=confused,
        num_lost=sum(one.picture is None for one in confused),
    )


def _retrieval(
    empty: DatasetDetails, benchmark: Benchmark, features: Features, num_queries: int, num_answers: int
) -> DatasetDetails:
    rankings = rank_examples(benchmark, features, num_queries=num_queries, num_answers=num_answers)
    shown = rankings.shown_images()
    found = find_images(benchmark, features.keys, pictures=shown, captions=rankings.wanted_images())
    texts, images = text_queries(rankings, found), image_queries(rankings, found)
    lost_queries = len(rankings.texts) + len(rankings.images) - len(texts) - len(images)
    return attrs.evolve(
        empty,
        text_queries=texts,
        image_queries=images,
        num_lost=lost_queries + len(shown - found.pictures.keys()),
    )
