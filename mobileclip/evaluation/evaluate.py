"""A model on a data set: images are decoded while others are encoded, and the metrics are those that are published."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import attrs
import torch
from PIL import Image
from torch import Tensor

from mobileclip import storage
from mobileclip.data.sample import decode_image
from mobileclip.data.shards import count_samples
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.evaluation.benchmark import Benchmark, BenchmarkSample
from mobileclip.evaluation.classification import classification_accuracy, ensemble_prompts
from mobileclip.evaluation.embedding import ImageTextModel, Tokenize, embed_texts, evaluating
from mobileclip.evaluation.results import MAIN_METRIC, DatasetResult
from mobileclip.evaluation.retrieval import caption_recall
from mobileclip.evaluation.suite import SUITE, SuiteEntry
from mobileclip.progress import Progress, console

Transform = Callable[[Image.Image], Tensor]

# With fewer classes, five guesses say nothing.
_FEWEST_FOR_TOP5 = 5
_MOST_THREADS = 8


@attrs.frozen(kw_only=True, eq=False)
class Evaluation:
    """What came out of a model on a data set.

    Args:
        result: the metrics, in the published form.
        report: how many images were used, and what was left out and why.
        absent_classes: names of classes without an image: they took part as wrong answers, and no recall counts them.
    """

    result: DatasetResult
    report: SkipReport
    absent_classes: tuple[str, ...] = ()


def evaluate_benchmark(
    model: ImageTextModel,
    benchmark: Benchmark,
    *,
    transform: Transform,
    tokenize: Tokenize,
    batch_size: int = 64,
    num_threads: int | None = None,
    show_progress: bool = True,
) -> Evaluation:
    """Evaluate a model on a data set: zero-shot classification, or retrieval both ways.

    Classification gives `acc1`, `acc5` where there are at least five classes, and `mean_per_class_recall`; retrieval
    `image_retrieval_recall@k` and `text_retrieval_recall@k` for k of 1, 5 and 10 and `mean_recall@1`. The main metric
    is the suite's for its data sets, and `acc1` or `mean_recall@1` for others.

    Args:
        model: evaluated in evaluation mode, and left in the mode it came in.
        benchmark: the data set.
        transform: from a picture, RGB and not turned by its EXIF orientation, to the model's input.
        tokenize: from texts to the model's ids.
        batch_size: images, or texts, encoded at once.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        show_progress: whether to show how far it is, where the number of images is known: on disk and in the suite.

    Raises:
        ValueError: if no image can be used; the message says why. If the main metric of a data set of the suite is none
            of these.
    """
    entry = next((one for one in SUITE if one.key.replace("/", "-") == benchmark.name), None)
    main = _main_metric(benchmark, entry)
    report, samples, embeddings = SkipReport(), [], []
    threads = num_threads or min(_MOST_THREADS, os.cpu_count() or 1)
    total = _num_images(benchmark, entry)
    shown = console(shown=show_progress and total > 0)
    with (
        evaluating(model) as device,
        Progress(benchmark.name, total=max(total, 1), unit="images", console=shown) as progress,
    ):
        decoded = _decoded(benchmark, transform, report, num_threads=threads, ahead=2 * batch_size)
        while batch := list(islice(decoded, batch_size)):
            pixels = torch.stack([pixels for _, pixels in batch])
            embeddings.append(model.encode_image(pixels.to(device)).float().cpu())
            samples += [sample for sample, _ in batch]
            progress.advance(len(batch))
    if not samples:
        raise ValueError(f"no image of {benchmark.name} can be evaluated: {report}")
    image = torch.cat(embeddings)
    texts = embed_texts(model, tokenize, _texts(benchmark, samples), batch_size=batch_size)
    absent: tuple[str, ...] = ()
    if benchmark.kind == "retrieval":
        metrics = _retrieval(image, texts, samples)
    else:
        metrics, absent = _classification(image, texts, samples, benchmark)
    metrics[MAIN_METRIC] = metrics[main]
    key, name = (entry.key, entry.name) if entry else (benchmark.name, benchmark.name)
    result = DatasetResult(key=key, dataset=name, metrics=metrics)
    return Evaluation(result=result, report=report, absent_classes=absent)


def _main_metric(benchmark: Benchmark, entry: SuiteEntry | None) -> str:
    default = "mean_recall@1" if benchmark.kind == "retrieval" else "acc1"
    main = default if entry is None else entry.main_metric
    if main not in (default, "mean_per_class_recall"):
        raise ValueError(f"on {benchmark.name} counts {main}, which takes more than labels: it cannot be evaluated yet")
    return main


def _num_images(benchmark: Benchmark, entry: SuiteEntry | None) -> int:
    """Return about how many images there are, or zero where finding out would mean reading them."""
    if any(storage.is_remote(shard) for shard in benchmark.shards):
        return 0 if entry is None else entry.num_images
    try:
        return count_samples(benchmark.shards)
    except ValueError:  # what is wrong with a shard is reported when it is read
        return 0


def _decoded(
    benchmark: Benchmark, transform: Transform, report: SkipReport, *, num_threads: int, ahead: int
) -> Iterator[tuple[BenchmarkSample, Tensor]]:
    """Yield samples with their pixels, in order, decoded by threads; broken images are reported."""

    def decode(sample: BenchmarkSample) -> Tensor:
        return transform(decode_image(sample.image))

    waiting: deque[tuple[BenchmarkSample, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        source = benchmark.samples(report)
        while True:
            waiting.extend((sample, pool.submit(decode, sample)) for sample in islice(source, ahead - len(waiting)))
            if not waiting:
                return
            sample, future = waiting.popleft()
            try:
                pixels = future.result()
            except BadSampleError as error:
                report.num_read -= 1
                report.add(Skip(reason=error.reason, key=sample.key, shard=benchmark.name, detail=error.detail))
                continue
            yield sample, pixels


def _texts(benchmark: Benchmark, samples: Sequence[BenchmarkSample]) -> list[str]:
    """Return what is encoded: every class in every template, or all captions."""
    if benchmark.kind == "retrieval":
        return [caption for sample in samples for caption in sample.captions]
    return [template.replace("{}", name) for name in benchmark.class_names for template in benchmark.templates]


def _classification(
    image: Tensor, texts: Tensor, samples: Sequence[BenchmarkSample], benchmark: Benchmark
) -> tuple[dict[str, float], tuple[str, ...]]:
    names = benchmark.class_names
    labels = torch.tensor([sample.label for sample in samples])
    classes = ensemble_prompts(texts.reshape(len(names), len(benchmark.templates), -1))
    accuracy = classification_accuracy(image, classes, labels, allow_absent=True)
    metrics = {"acc1": accuracy.top1, "mean_per_class_recall": accuracy.mean_per_class}
    if len(names) >= _FEWEST_FOR_TOP5:
        metrics["acc5"] = accuracy.top5
    present = set(labels.tolist())
    return metrics, tuple(name for index, name in enumerate(names) if index not in present)


def _retrieval(image: Tensor, texts: Tensor, samples: Sequence[BenchmarkSample]) -> dict[str, float]:
    found = caption_recall(image, texts, [len(sample.captions) for sample in samples])
    metrics = {}
    for side, recall in (("image", found.text_to_image), ("text", found.image_to_text)):
        for k, value in ((1, recall.at1), (5, recall.at5), (10, recall.at10)):
            metrics[f"{side}_retrieval_recall@{k}"] = value
    metrics["mean_recall@1"] = (found.text_to_image.at1 + found.image_to_text.at1) / 2
    return metrics
