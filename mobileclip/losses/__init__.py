"""Losses for training image-text models; a loss accepts only tensors, not models or data sets.

Add new losses here, each with a spec and a formula. Models, data and optimisers are in other subpackages.
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

__all__ = [
    "CaptionLoss",
    "CaptionLossSpec",
    "ContrastiveLoss",
    "ContrastiveLossSpec",
    "LossSpec",
    "LossTerms",
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
