"""The test splits in the layout in which the field shares data sets to evaluate on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from examples.quickstart.emoji.on_disk import DataSplit, DrawnDataset
from mobileclip.data import ImageTextSample
from mobileclip.evaluation import Benchmark, BenchmarkSample, write_benchmark

# CLIP_benchmark needs as many shards as it has workers: with these, up to six.
_SAMPLES_PER_SHARD = 100


def write_benchmarks(
    dataset: DrawnDataset, output: Path, *, templates: Sequence[str], name: str = "emoji", captions: bool = True
) -> tuple[Benchmark, ...]:
    """Write every test split as a data set of classes, and those with captions of their own as one of captions.

    Args:
        dataset: what `build_dataset` returned.
        output: where the folders `wds_NAME-SPLIT_test` and `wds_NAME-SPLIT-captions_test` go.
        templates: prompts with one `{}` where the name of a class goes.
        name: of the data set, in the folders'.
        captions: whether those of captions are written.
    """
    written = []
    for split in dataset.tests:
        samples = list(split.samples())
        written.append(
            write_benchmark(
                output / f"wds_{name}-{split.name}_test",
                labelled_samples(split, samples),
                class_names=split.class_names,
                templates=templates,
                samples_per_shard=_SAMPLES_PER_SHARD,
            )
        )
        captioned = captioned_samples(samples) if captions else []
        if captioned:
            folder = output / f"wds_{name}-{split.name}-captions_test"
            written.append(write_benchmark(folder, captioned, samples_per_shard=_SAMPLES_PER_SHARD))
    return tuple(written)


def labelled_samples(split: DataSplit, samples: Sequence[ImageTextSample]) -> list[BenchmarkSample]:
    """Return pictures with the index of what they show."""
    labels = split.class_indices(samples)
    return [
        BenchmarkSample(key=sample.key, image=_image(sample), label=label)
        for sample, label in zip(samples, labels, strict=True)
    ]


def captioned_samples(samples: Sequence[ImageTextSample]) -> list[BenchmarkSample]:
    """Return pictures with those of their captions that no other picture has: no other is an answer to them.

    Several vendors' drawings of one concept have the same captions, and are left out where none is their own. Texts
    that differ in case alone are the same to the models.
    """
    count = Counter(caption.lower() for sample in samples for caption in sample.captions)
    own = [(sample, tuple(text for text in sample.captions if count[text.lower()] == 1)) for sample in samples]
    return [BenchmarkSample(key=one.key, image=_image(one), captions=captions) for one, captions in own if captions]


def _image(sample: ImageTextSample) -> bytes:
    assert sample.image is not None, "the data set stores every picture"
    return sample.image
