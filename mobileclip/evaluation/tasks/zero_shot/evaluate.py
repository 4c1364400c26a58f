"""A model on a data set, from the shards to the published metrics."""

from __future__ import annotations

import attrs

from mobileclip.data.skips import SkipReport
from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.encoding.embedding import ImageTextModel, Tokenize
from mobileclip.evaluation.encoding.features import Transform, extract_features
from mobileclip.evaluation.encoding.inference import KnownTexts
from mobileclip.evaluation.metrics.outcomes import Outcomes
from mobileclip.evaluation.results import DatasetResult
from mobileclip.evaluation.tasks.zero_shot.scoring import require_metric, score


@attrs.frozen(kw_only=True, eq=False)
class Evaluation:
    """What came out of a model on a data set.

    Args:
        result: the metrics, in the published form.
        report: how many images were used, and what was left out and why.
        absent_classes: names of classes without an image: they took part as wrong answers, and no recall counts them.
        outcomes: of the main metric, image by image.
    """

    result: DatasetResult
    report: SkipReport
    absent_classes: tuple[str, ...] = ()
    outcomes: Outcomes


def evaluate_benchmark(
    model: ImageTextModel,
    benchmark: Benchmark,
    *,
    transform: Transform,
    tokenize: Tokenize,
    batch_size: int = 64,
    num_threads: int | None = None,
    show_progress: bool = True,
    known_texts: KnownTexts | None = None,
) -> Evaluation:
    """Evaluate a model on a data set: `extract_features`, then `score`.

    Args:
        model: evaluated in evaluation mode, and left in the mode it came in.
        benchmark: the data set.
        transform: from a picture, RGB and not turned by its EXIF orientation, to the model's input.
        tokenize: from texts to the model's ids.
        batch_size: images, or texts, encoded at once.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        show_progress: whether to show how far it is, and, where the number of images is known, how long it takes: on
            disk and in the suite.
        known_texts: embeddings that this model gave of texts with this `tokenize`: they are not encoded again, and
            those of new texts come to them. One dictionary for several data sets, which often ask the same.

    Raises:
        ValueError: if no image can be used; the message says why. If a shard is missing, see `Benchmark.samples`. If
            the data set's main metric cannot be computed.
    """
    require_metric(benchmark)
    report = SkipReport()
    features = extract_features(
        model,
        benchmark,
        report,
        transform=transform,
        tokenize=tokenize,
        batch_size=batch_size,
        num_threads=num_threads,
        show_progress=show_progress,
        known_texts=known_texts,
    )
    scored = score(benchmark, features, num_skipped=report.num_skipped)
    return Evaluation(
        result=scored.result, report=report, absent_classes=scored.absent_classes, outcomes=scored.outcomes
    )
