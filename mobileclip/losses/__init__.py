"""Losses of image-text training: they see tensors only."""

from mobileclip.losses.base import LossSpec, LossTerms, losses
from mobileclip.losses.contrastive import ContrastiveLoss, ContrastiveLossSpec
from mobileclip.losses.distillation import distillation_loss, teacher_targets
from mobileclip.losses.reinforced import ReinforcedLoss, ReinforcedLossSpec

__all__ = [
    "ContrastiveLoss",
    "ContrastiveLossSpec",
    "LossSpec",
    "LossTerms",
    "ReinforcedLoss",
    "ReinforcedLossSpec",
    "distillation_loss",
    "losses",
    "teacher_targets",
]
