"""From the terms of one set of captions to the loss of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from mobileclip.losses.specs import LossTerms, compute_dtype
from mobileclip.losses.tiled.gradients import differentiable, wants_gradients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mobileclip.losses.tiled.batch import EmbeddingBatch
    from mobileclip.losses.tiled.gradients import Term
    from mobileclip.losses.tiled.processes import Processes
    from mobileclip.losses.tiled.tiles import Similarity


class EvaluateTerms(Protocol):
    """What computes the terms of one set of captions: the contrastive one, if wanted, then the distillation."""

    def __call__(
        self, student: Similarity, teachers: Sequence[Similarity], *, gradients: bool, processes: Processes
    ) -> list[Term]:
        """Return the terms with their gradients by image, text, scale and what else the loss learns."""


def sum_over_captions(
    batch: EmbeddingBatch,
    evaluate: EvaluateTerms,
    *,
    processes: Processes,
    contrastive_weight: float,
    distill_weight: float,
    teacher_logit_scales: Sequence[float] = (),
    parameters: Sequence[Tensor] = (),
) -> LossTerms:
    """Return the weighted terms, summed over the real and, where given, the synthetic captions.

    Args:
        batch: this process's embeddings.
        evaluate: computes the terms of positive weight.
        processes: who shares the batch.
        contrastive_weight: weight of the first term; at least 0.
        distill_weight: weight of the second term; at least 0.
        teacher_logit_scales: the teachers' inverse temperatures.
        parameters: what the loss itself learns.

    Raises:
        ValueError: what `EmbeddingBatch.check` raises.
    """
    batch.check(processes)
    device = batch.image.device
    weights = (contrastive_weight, distill_weight)
    sums = [torch.zeros((), dtype=compute_dtype(batch.image), device=device) for _ in weights]
    for text, teacher_text in batch.captions():
        inputs = (batch.image, text, batch.logit_scale, *parameters)
        gradients = processes.any(wants_gradients(inputs), device)

        def terms(
            text: Tensor = text, teacher_text: Tensor | None = teacher_text, *, gradients: bool = gradients
        ) -> list[Term]:
            with torch.autocast(device.type, enabled=False):
                return evaluate(
                    batch.student(text, processes),
                    batch.teachers(teacher_text, teacher_logit_scales, processes),
                    gradients=gradients,
                    processes=processes,
                )

        values = iter(differentiable(terms, inputs))
        for index, weight in enumerate(weights):
            if weight > 0:
                sums[index] = sums[index] + weight * next(values)
    contrastive, distillation = sums
    return LossTerms(contrastive=contrastive, distillation=distillation, total=contrastive + distillation)
