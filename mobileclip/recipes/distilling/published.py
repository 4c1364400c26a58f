"""Short text towers of the published models, and what distilling them takes.

Source: MobileCLIP (arXiv 2311.17049), table 4d, for the hours that costs are computed from.
"""

from __future__ import annotations

import attrs

from mobileclip.data import TextPipelineSpec
from mobileclip.encoders import TextEncoderSpec
from mobileclip.inference.loading import spec_known_by_name
from mobileclip.losses import TextDistillationLossSpec
from mobileclip.recipes.cost import PASSES, a100_macs_per_second, macs
from mobileclip.recipes.distilling.spec import DistilSpec
from mobileclip.training import AdamWSpec, CosineSchedule, RunSpec, TrainingSpec

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


def text_run(model: str, context_length: int, *, total_steps: int = 30_000) -> DistilSpec:
    """Return a run that shortens a published text tower, on the captions of DataCompDR-12M.

    Args:
        model: the teacher and the start, by name.
        context_length: of the student.
        total_steps: length of the run.
    """
    return DistilSpec(
        model=model,
        data=("DataCompDR-12M/{00000000..00001023}.tar",),
        kind="teacher",
        context_length=context_length,
        batch_size=8_192,
        training=TrainingSpec(
            loss=TextDistillationLossSpec(relation_weight=10.0),
            schedule=CosineSchedule(peak=1e-4, final=1e-6, warmup_steps=1_000 / 30_000, total_steps=total_steps),
            optimizer=AdamWSpec(beta1=0.9, beta2=0.95, weight_decay=0.2),
            max_gradient_norm=1.0,
            ema_decay=0.9995,
            precision="bfloat16",
        ),
    )


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
