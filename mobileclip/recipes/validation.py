"""Evaluation of a model during training, on held-out pairs and on data sets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mobileclip.data import ImageTextSample, ImageTransform, SkipReport, Tokenizer
from mobileclip.datasets import RowOptions, open_data_set
from mobileclip.encoders import CoCa, CoCaSpec, DualEncoder
from mobileclip.evaluation import Session, rank_captions
from mobileclip.evaluation.hook import evaluation_hook
from mobileclip.losses import CaptionLossSpec
from mobileclip.reparam import evaluating
from mobileclip.training import Evaluate

MOST_SAMPLES = 5_000
_BATCH = 32


def validation_hook(pairs: Sequence[str], benchmarks: Sequence[str], rows: RowOptions) -> Evaluate:
    """Return an evaluation on held-out pairs (see `retrieval_on`) and on data sets (see `evaluation_hook`).

    Args:
        pairs: paths of held-out pairs, see `held_out_pairs`; empty for no evaluation on pairs.
        benchmarks: paths of data sets, see `open_benchmark`; empty for no evaluation on data sets.
        rows: options for reading rows of `.jsonl` files and tables.

    Raises:
        ValueError: if the held-out data has no pairs, or if data does not exist or cannot be read.
    """
    parts = [retrieval_on(pairs, rows)] if pairs else []
    if benchmarks:
        parts.append(evaluation_hook(benchmarks, rows=rows))

    def evaluate(student: nn.Module, num_steps: int) -> Mapping[str, float]:
        return {name: value for part in parts for name, value in part(student, num_steps).items()}

    return evaluate


def held_out_pairs(data: Sequence[str], rows: RowOptions) -> list[ImageTextSample]:
    """Return all samples with an image and a caption among the first 5,000 samples of the data.

    Args:
        data: paths of data in any form that `open_data_set` accepts.
        rows: options for reading rows of lists and tables.

    Raises:
        ValueError: if the data does not exist or has no pairs.
        OSError: if the data cannot be read.
    """
    report = SkipReport()
    units = [unit for one in data for unit in open_data_set(one, kind="captions", rows=rows).source.units()]
    samples = itertools.chain.from_iterable(unit.read(report) for unit in units)
    pairs = [one for one in itertools.islice(samples, MOST_SAMPLES) if one.image is not None and one.captions]
    if not pairs:
        raise ValueError(f"{', '.join(data)} has no pairs of an image and a caption for validation: {report}")
    return pairs


def retrieval_on(pairs: Sequence[str], rows: RowOptions) -> Evaluate:
    """Return an evaluation of recall at 1 on held-out pairs; see `held_out_pairs`.

    Args:
        pairs: paths of the pairs.
        rows: options for reading rows of lists and tables.
    """
    samples = held_out_pairs(pairs, rows)

    def evaluate(student: nn.Module, _num_steps: int) -> Mapping[str, float]:
        assert isinstance(student, DualEncoder), "a run trains a dual encoder"
        session = Session(student, show_progress=False)
        captions = [caption for sample in samples for caption in sample.captions]
        counts = [len(sample.captions) for sample in samples]
        images = session.clip.encode_image([sample.image for sample in samples if sample.image is not None])
        result = rank_captions(images, session.encode_texts(captions), counts).recall
        return {
            "validation_image_to_text_recall_at_1": result.image_to_text.at1,
            "validation_text_to_image_recall_at_1": result.text_to_image.at1,
        }

    return evaluate


def captions_on(data: Sequence[str], rows: RowOptions, model: CoCaSpec) -> Evaluate:
    """Return an evaluation of a captioner on held-out pairs (see `held_out_pairs`): nats per id and id accuracy.

    Args:
        data: paths of the pairs.
        rows: options for reading rows of lists and tables.
        model: spec of the captioner, for the image and text inputs.
    """
    transform, tokenizer = ImageTransform(model.image.input), Tokenizer(model.text.input)
    pairs = [(sample.image, sample.captions[0]) for sample in held_out_pairs(data, rows)]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(pairs), _BATCH):
            images, texts = zip(*pairs[start : start + _BATCH], strict=True)
            yield torch.stack([transform(image) for image in images]), tokenizer(texts)

    @torch.no_grad()
    def evaluate(student: nn.Module, _num_steps: int) -> Mapping[str, float]:
        assert isinstance(student, CoCa), "a run trains a captioner"
        pad_id, device = model.text.input.pad_id, student.logit_scale.device
        loss = CaptionLossSpec(pad_id=pad_id).build()
        total = right = count = 0.0
        with evaluating(student):
            for images, texts in batches():
                out = student(images.to(device), texts.to(device))
                counted = out.labels != pad_id
                total += loss.sums(out.logits, out.labels).double().sum().item()
                right += (counted & (out.logits.argmax(dim=-1) == out.labels)).sum().item()
                count += counted.sum().item()
        return {"validation_nats_per_id": total / count, "validation_ids_right": right / count}

    return evaluate
