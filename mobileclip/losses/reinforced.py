"""The loss of multi-modal reinforced training: contrastive and distillation terms, on real and synthetic captions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip.losses.base import LossSpec, LossTerms, check_pair, compute_dtype, losses, similarity_logits
from mobileclip.losses.contrastive import contrastive_loss
from mobileclip.losses.distillation import distillation_loss, teacher_targets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def _ints(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _positive_finite(_: object, attribute: attrs.Attribute[Any], values: tuple[float, ...]) -> None:
    if not values:
        raise ValueError(f"{attribute.name} is empty; give one number per teacher")
    for value in values:
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{attribute.name} must be positive and finite, but {values} holds {value}")


def _whole(_: object, attribute: attrs.Attribute[tuple[int, ...]], values: tuple[int, ...]) -> None:
    for value in values:
        if not isinstance(value, int):
            raise ValueError(f"{attribute.name} must be whole numbers, but {values} holds {value!r}")


def _weight(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{attribute.name} must be at least 0 and finite, not {value}")


@losses.register("reinforced")
@attrs.frozen(kw_only=True)
class ReinforcedLossSpec(LossSpec):
    """The choices of the reinforced loss; the defaults are DataCompDR's teachers and the weights of S0, S1 and S2.

    Args:
        teacher_dims: embedding dims of the teachers, in the order in which their embeddings are concatenated.
        teacher_logit_scales: inverse temperatures of the teachers, after `exp`, in the same order.
        contrastive_weight: `1 - w` of Eq. 2; at least 0.
        distill_weight: `w` of Eq. 2, 0.75 for B and 1 for the smaller models; at least 0.

    Raises:
        ValueError: if the lengths differ, a number is out of its range, or both weights are zero.
    """

    teacher_dims: tuple[int, ...] = attrs.field(
        default=(768, 768), converter=_ints, validator=[_whole, _positive_finite]
    )
    teacher_logit_scales: tuple[float, ...] = attrs.field(
        default=(100.0, 100.0), converter=_floats, validator=_positive_finite
    )
    contrastive_weight: float = attrs.field(default=0.0, validator=[validators.instance_of((int, float)), _weight])
    distill_weight: float = attrs.field(default=1.0, validator=[validators.instance_of((int, float)), _weight])

    def __attrs_post_init__(self) -> None:
        if len(self.teacher_dims) != len(self.teacher_logit_scales):
            raise ValueError(
                f"teacher_dims {self.teacher_dims} names {len(self.teacher_dims)} teachers and teacher_logit_scales "
                f"{self.teacher_logit_scales} names {len(self.teacher_logit_scales)}; give one logit scale per teacher"
            )
        if self.contrastive_weight == 0 and self.distill_weight == 0:
            raise ValueError("contrastive_weight and distill_weight are both 0, so there is nothing to minimise")

    @property
    def needs_teachers(self) -> bool:
        """Yes: the teachers' embeddings are its targets."""
        return True

    def build(self) -> ReinforcedLoss:
        """Return the loss."""
        return ReinforcedLoss(
            teacher_dims=self.teacher_dims,
            teacher_logit_scales=self.teacher_logit_scales,
            contrastive_weight=self.contrastive_weight,
            distill_weight=self.distill_weight,
        )


class ReinforcedLoss(nn.Module):
    """The loss of reinforced training.

    `contrastive_weight * L_CLIP + distill_weight * L_Distill`, summed over the batch with the real captions and, where
    given, the batch with the synthetic captions; the images are shared. Similarities and softmaxes are computed in
    float32, or float64 where the embeddings have it.

    Shape: image, text, syn_text (B, D); teacher_image, teacher_text, teacher_syn_text (B, sum of teacher_dims) ->
    scalars.

    Args:
        teacher_dims: embedding dims of the teachers, in the order in which their embeddings are concatenated.
        teacher_logit_scales: inverse temperatures of the teachers, after `exp`, in the same order.
        contrastive_weight: weight of the contrastive term; at least 0.
        distill_weight: weight of the distillation term; at least 0.

    Raises:
        ValueError: what `ReinforcedLossSpec` raises.

    Source: Eq. 2 and 3.

    Differs: the distillation term is the divergence, zero where the student equals the ensemble; the release reports
    the cross-entropy, which has the same gradient.
    """

    def __init__(
        self,
        *,
        teacher_dims: Sequence[int] = (768, 768),
        teacher_logit_scales: Sequence[float] = (100.0, 100.0),
        contrastive_weight: float = 0.0,
        distill_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.spec = ReinforcedLossSpec(
            teacher_dims=teacher_dims,
            teacher_logit_scales=teacher_logit_scales,
            contrastive_weight=contrastive_weight,
            distill_weight=distill_weight,
        )

    def forward(
        self,
        *,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor | float,
        teacher_image: Tensor,
        teacher_text: Tensor,
        syn_text: Tensor | None = None,
        teacher_syn_text: Tensor | None = None,
    ) -> LossTerms:
        """Return the loss of a batch.

        Args:
            image: the student's unit-length image embeddings.
            text: the student's unit-length embeddings of the real captions.
            logit_scale: the student's inverse temperature, after `exp`.
            teacher_image: the teachers' embeddings of the same augmented images, concatenated.
            teacher_text: the teachers' embeddings of the real captions, concatenated.
            syn_text: the student's unit-length embeddings of the synthetic captions.
            teacher_syn_text: the teachers' embeddings of the synthetic captions, concatenated.

        Raises:
            ValueError: if batches or dims disagree, or only one of `syn_text` and `teacher_syn_text` is given.
        """
        if (syn_text is None) != (teacher_syn_text is None):
            given, missing = ("syn_text", "teacher_syn_text")[:: 1 if teacher_syn_text is None else -1]
            raise ValueError(f"{given} was given without {missing}; synthetic captions need both")
        contrastive, distillation = self._terms(image, text, logit_scale, teacher_image, teacher_text, prefix="")
        if syn_text is not None and teacher_syn_text is not None:
            more = self._terms(image, syn_text, logit_scale, teacher_image, teacher_syn_text, prefix="syn_")
            contrastive, distillation = contrastive + more[0], distillation + more[1]
        return LossTerms(contrastive=contrastive, distillation=distillation, total=contrastive + distillation)

    def extra_repr(self) -> str:
        """Return the choices as `print` shows them."""
        return ", ".join(f"{name}={value}" for name, value in attrs.asdict(self.spec, recurse=False).items())

    def _terms(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor | float,
        teacher_image: Tensor,
        teacher_text: Tensor,
        *,
        prefix: str,
    ) -> tuple[Tensor, Tensor]:
        spec = self.spec
        self._check(image, text, teacher_image, teacher_text, prefix)
        logits = similarity_logits(image, text, logit_scale)
        contrastive = distillation = torch.zeros((), dtype=compute_dtype(image), device=image.device)
        if spec.contrastive_weight > 0:
            contrastive = spec.contrastive_weight * contrastive_loss(logits)
        if spec.distill_weight > 0:
            over_texts, over_images = teacher_targets(
                teacher_image,
                teacher_text,
                teacher_dims=spec.teacher_dims,
                teacher_logit_scales=spec.teacher_logit_scales,
            )
            distillation = spec.distill_weight * distillation_loss(
                logits, over_texts.to(logits.dtype), over_images.to(logits.dtype)
            )
        return contrastive, distillation

    def _check(self, image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, prefix: str) -> None:
        check_pair(image, text, ("image", f"{prefix}text"))
        check_pair(teacher_image, teacher_text, ("teacher_image", f"teacher_{prefix}text"))
        if image.shape[0] != teacher_image.shape[0]:
            raise ValueError(
                f"image has {image.shape[0]} rows and teacher_image has {teacher_image.shape[0]}; the teachers embed "
                "the same images as the student"
            )
        dim = sum(self.spec.teacher_dims)
        if teacher_image.shape[1] != dim:
            raise ValueError(
                f"teacher embeddings have dim {teacher_image.shape[1]}, but teacher_dims {self.spec.teacher_dims} sum "
                f"to {dim}; concatenate the embeddings of all teachers, in that order"
            )
