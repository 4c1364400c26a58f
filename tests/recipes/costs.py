"""Estimates the GPU hours of a run, from the published hours of another and the FLOPs of both.

Source: MobileCLIP (arXiv 2311.17049), table 4d.
"""

from __future__ import annotations

from functools import lru_cache

import attrs
import torch

from mobileclip import specs
from mobileclip.data import TextPipelineSpec
from mobileclip.encoders import ImageEncoderSpec, TextEncoderSpec
from mobileclip.encoders.checkpoints.layouts import skeleton
from mobileclip.inference.catalogue import macs_of, num_macs
from mobileclip.inference.loading import spec_known_by_name
from mobileclip.recipes.distilling import DistilSpec
from mobileclip.recipes.published import plain_vit_b16
from mobileclip.training import RunSpec

PASSES = 3
"""A step is a pass forward and about two backward."""
# Plain CLIP with ViT-B/16: 12.8 million pairs in 1.3 hours of 8 A100.
_PAIRS_PER_SECOND = 12.8e6 / (1.3 * 3600 * 8)


@lru_cache(maxsize=1)
def a100_macs_per_second() -> float:
    """Return the multiply-accumulates that an A100 does while it trains ViT-B/16; small models reach less of it."""
    return _PAIRS_PER_SECOND * PASSES * (macs(plain_vit_b16()) + macs(specs.text_base()))


def macs(tower: ImageEncoderSpec | TextEncoderSpec) -> int:
    """Return the multiply-accumulates of one of the library's towers for one image or text."""
    found = num_macs(tower)
    assert found is not None, "the library's towers compute with shapes alone"
    return found


@attrs.frozen(kw_only=True)
class CaptionCost:
    """What training a captioner takes, if a GPU computes it as fast as it trains ViT-B/16; small models are slower.

    Args:
        hours: of one A100.
        macs: multiply-accumulates of one pair, forward.
    """

    hours: float
    macs: int


def caption_cost(run: RunSpec) -> CaptionCost:
    """Return what a run takes, computed from the published hours of another by the multiplications of both."""
    model = run.model
    image, text = model.image.input, model.text.input
    examples = (
        torch.empty(1, image.channels, image.size, image.size, device="meta"),
        torch.zeros(1, text.context_length, dtype=torch.long, device="meta"),
    )
    count = macs_of(skeleton(model, "training"), *examples)
    seen = run.data.batch_size * run.training.total_steps
    return CaptionCost(hours=PASSES * seen * count / a100_macs_per_second() / 3600, macs=count)


NUM_CAPTIONS = 6 * 12_800_000
"""Of DataCompDR-12M: a real one and five synthetic ones of each image."""


@attrs.frozen(kw_only=True)
class TextCost:
    """What distilling a text tower takes, if a GPU computes it as fast as it trains ViT-B/16; small towers are slower.

    Args:
        storing_hours: of one A100, for the teacher's embeddings.
        training_hours: of one A100, for the student.
        stored_bytes: of the teacher's embeddings.
    """

    storing_hours: float
    training_hours: float
    stored_bytes: int


def text_cost(spec: DistilSpec, num_texts: int = NUM_CAPTIONS) -> TextCost:
    """Return what a run takes, computed from the published hours of another by the multiplications of both.

    Args:
        spec: a run whose teacher is known by name.
        num_texts: that the teacher encodes once.

    Raises:
        ValueError: if the teacher is not known by name.
    """
    teacher = _teacher(spec)
    macs_per_second = a100_macs_per_second()
    num_trained = spec.batch_size * spec.training.total_steps
    return TextCost(
        storing_hours=num_texts * macs(teacher) / macs_per_second / 3600,
        training_hours=PASSES * num_trained * macs(_student(spec)) / macs_per_second / 3600,
        stored_bytes=2 * teacher.embedding_dim * num_texts,
    )


def student_run(spec: DistilSpec) -> RunSpec:
    """Return the training of a student as it will be, of a run whose teacher is known by name.

    Raises:
        ValueError: if the teacher is not known by name.
    """
    student = _student(spec)
    data = TextPipelineSpec(texts=spec.texts_folder, batch_size=spec.batch_size, text=student.input)
    return RunSpec(model=student, data=data, training=spec.training)


def _teacher(spec: DistilSpec) -> TextEncoderSpec:
    known = spec_known_by_name(spec.model)
    if known is None:
        raise ValueError(
            f"what {spec.model} is made of is told by its weights alone; give a model that is known by name"
        )
    return known.text


def _student(spec: DistilSpec) -> TextEncoderSpec:
    teacher = _teacher(spec)
    text = attrs.evolve(teacher.input, context_length=spec.context_length)
    return attrs.evolve(teacher, input=text) if spec.kind == "teacher" else spec.student(teacher.embedding_dim, text)
