"""How good a model in training is: on held-out pairs, and on data sets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from torch import nn

from mobileclip.data import read_samples
from mobileclip.datasets import RowOptions
from mobileclip.encoders import DualEncoder, DualEncoderSpec
from mobileclip.evaluation import Session, caption_recall
from mobileclip.evaluation.hook import evaluation_hook
from mobileclip.training import Evaluate

MOST_SAMPLES = 5_000


def measured_on(shards: tuple[str, ...], benchmarks: Sequence[str], rows: RowOptions, _: DualEncoderSpec) -> Evaluate:
    """Return what measures a model on held-out pairs, see `retrieval_on`, and on data sets, see `evaluation_hook`.

    Args:
        shards: of the held-out pairs; none measures nothing on them.
        benchmarks: places of data sets, see `open_benchmark`; none measures nothing on them.
        rows: how rows of `.jsonl` files and of tables among these are read.

    Raises:
        ValueError: if one of them cannot be used.
    """
    parts = [retrieval_on(shards)] if shards else []
    if benchmarks:
        parts.append(evaluation_hook(benchmarks, rows=rows))

    def evaluate(student: nn.Module, num_steps: int) -> Mapping[str, float]:
        return {name: value for part in parts for name, value in part(student, num_steps).items()}

    return evaluate


def retrieval_on(shards: tuple[str, ...]) -> Evaluate:
    """Return what measures a model's recall at 1 on the first 5,000 image-text pairs of some shards.

    Args:
        shards: held-out pairs, as paths, URLs or brace patterns.

    Raises:
        ValueError: if the shards hold no pair.
    """
    samples = [
        sample
        for sample in itertools.islice(read_samples(shards), MOST_SAMPLES)
        if sample.image is not None and sample.captions
    ]
    if not samples:
        raise ValueError(f"there is no pair of image and caption in {', '.join(shards)} to validate on")

    def evaluate(student: nn.Module, _num_steps: int) -> Mapping[str, float]:
        assert isinstance(student, DualEncoder), "a run trains a dual encoder"
        session = Session(student, show_progress=False)
        captions = [caption for sample in samples for caption in sample.captions]
        counts = [len(sample.captions) for sample in samples]
        images = session.clip.encode_image([sample.image for sample in samples if sample.image is not None])
        result = caption_recall(images, session.encode_texts(captions), counts)
        return {
            "validation_image_to_text_recall_at_1": result.image_to_text.at1,
            "validation_text_to_image_recall_at_1": result.text_to_image.at1,
        }

    return evaluate
