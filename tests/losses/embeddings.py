"""Random embeddings, and every loss that the tests go through."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.losses import (
    ContrastiveLossSpec,
    LossSpec,
    ReinforcedLossSpec,
    ReinforcedSigmoidLossSpec,
    SigmoidLossSpec,
)
from mobileclip.training.finetuning import labelled_contrastive

STUDENT = ("image", "text", "syn_text")
TEACHER_DIMS = (3, 4)

_TEACHERS = {"teacher_dims": TEACHER_DIMS, "teacher_logit_scales": (30, 15)}
_BIASED = {**_TEACHERS, "teacher_logit_biases": (-12.5, None), "initial_logit_bias": -3}
SPECS: dict[str, LossSpec] = {
    "contrastive": ContrastiveLossSpec(),
    "reinforced": ReinforcedLossSpec(**_TEACHERS),
    "reinforced, both terms": ReinforcedLossSpec(**_TEACHERS, contrastive_weight=0.25, distill_weight=0.75),
    "reinforced, no teachers": ReinforcedLossSpec(contrastive_weight=1.0, distill_weight=0.0),
    "sigmoid": SigmoidLossSpec(initial_logit_bias=-3),
    "reinforced_sigmoid": ReinforcedSigmoidLossSpec(**_TEACHERS, initial_logit_bias=-3),
    "reinforced_sigmoid, both terms": ReinforcedSigmoidLossSpec(
        **_BIASED, contrastive_weight=0.25, distill_weight=0.75
    ),
    "reinforced_sigmoid, release": ReinforcedSigmoidLossSpec(**_BIASED, sigmoid_distillation="release"),
    "labelled_contrastive": labelled_contrastive(sum(TEACHER_DIMS)),
}


def unit_rows(batch: int, width: int, *, generator: torch.Generator) -> Tensor:
    """Return random rows of length 1, (batch, width), in float64."""
    return F.normalize(torch.randn(batch, width, generator=generator, dtype=torch.float64), dim=1)


def random_batch(
    spec: LossSpec, batch: int, *, dim: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64, syn: bool = True
) -> dict[str, Tensor]:
    """Return what a loss is called with, except the logit scale; the student's embeddings want gradients."""
    generator = torch.Generator().manual_seed(seed)

    unit = partial(unit_rows, batch, generator=generator)
    names = STUDENT if syn else STUDENT[:2]
    inputs = {name: unit(dim).to(dtype).requires_grad_() for name in names}
    for name in names:
        teachers = torch.cat([2 * unit(width) for width in TEACHER_DIMS], dim=1).to(dtype)
        if spec.needs_teachers:
            inputs[f"teacher_{name}"] = teachers
    return inputs


def operation_arguments(spec: ReinforcedLossSpec, inputs: dict[str, Tensor], *, scale: float = 9.0) -> list:
    """Return what `torch.ops.mobileclip.pair_terms` is called with; it computes gradients."""
    names = ("image", "text", "syn_text", "teacher_image", "teacher_text", "teacher_syn_text")
    image, text, syn_text, *teachers = (inputs.get(name) for name in names)
    bias = None if spec.initial_logit_bias is None else torch.tensor(spec.initial_logit_bias)
    student = [image, text, syn_text, torch.tensor(scale, dtype=torch.float64), bias]
    choices = [spec.teacher_dims, spec.teacher_logit_scales, spec.teacher_biases] if spec.needs_teachers else [()] * 3
    release = spec.sigmoid_distillation == "release"
    return [*student, *teachers, *map(list, choices), spec.contrastive_weight > 0, release, None, True]
