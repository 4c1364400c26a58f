"""Short text towers of the published models."""

from __future__ import annotations

from mobileclip.losses import TextDistillationLossSpec
from mobileclip.recipes.distilling.spec import DistilSpec
from mobileclip.training import AdamWSpec, CosineSchedule, TrainingSpec


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
