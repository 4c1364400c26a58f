"""Losses of image-text training; they see tensors only, no models and no data.

A new loss enters here, as a spec and a formula. Models, data and optimisers do not belong here.
"""

from mobileclip.losses.captions import CaptionLoss, CaptionLossSpec
from mobileclip.losses.divergence import TargetDivergence, distillation_target_kl
from mobileclip.losses.names import (
    ContrastiveLoss,
    ContrastiveLossSpec,
    ReinforcedSigmoidLoss,
    ReinforcedSigmoidLossSpec,
    SigmoidLoss,
    SigmoidLossSpec,
)
from mobileclip.losses.reinforced import (
    ReinforcedLoss,
    ReinforcedLossSpec,
    dense_loss,
    distillation_loss,
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
