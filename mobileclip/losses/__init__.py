"""Losses of image-text training; they see tensors only, no models and no data.

A new loss enters here, as a spec and a formula. Models, data and optimisers do not belong here.
"""

from mobileclip.losses.captions import CaptionLoss, CaptionLossSpec
from mobileclip.losses.reinforced import (
    ContrastiveLoss,
    ContrastiveLossSpec,
    ReinforcedLoss,
    ReinforcedLossSpec,
    ReinforcedSigmoidLoss,
    ReinforcedSigmoidLossSpec,
    SigmoidLoss,
    SigmoidLossSpec,
    TargetDivergence,
    dense_loss,
    distillation_loss,
    distillation_target_kl,
    teacher_targets,
)
from mobileclip.losses.specs import LossSpec, LossTerms, losses
from mobileclip.losses.texts import TextDistillationLoss, TextDistillationLossSpec

PairLossSpec = DistillingLossSpec = ReinforcedLossSpec

__all__ = [
    "CaptionLoss",
    "CaptionLossSpec",
    "ContrastiveLoss",
    "ContrastiveLossSpec",
    "DistillingLossSpec",
    "LossSpec",
    "LossTerms",
    "PairLossSpec",
    "ReinforcedLoss",
    "ReinforcedLossSpec",
    "ReinforcedSigmoidLoss",
    "ReinforcedSigmoidLossSpec",
    "SigmoidLoss",
    "SigmoidLossSpec",
    "TargetDivergence",
    "TextDistillationLoss",
    "TextDistillationLossSpec",
    "dense_loss",
    "distillation_loss",
    "distillation_target_kl",
    "losses",
    "teacher_targets",
]
