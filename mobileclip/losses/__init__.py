"""Losses of image-text training: they see tensors only."""

from mobileclip.losses.base import LossSpec, LossTerms, losses
from mobileclip.losses.contrastive import ContrastiveLoss, ContrastiveLossSpec
from mobileclip.losses.distillation import distillation_loss, teacher_targets
from mobileclip.losses.fidelity import TargetDivergence, distillation_target_kl
from mobileclip.losses.reinforced import ReinforcedLoss, ReinforcedLossSpec

__all__ = [
    "ContrastiveLoss",
    "ContrastiveLossSpec",
    "LossSpec",
    "LossTerms",
    "ReinforcedLoss",
    "ReinforcedLossSpec",
    "TargetDivergence",
    "distillation_loss",
    "distillation_target_kl",
    "losses",
    "teacher_targets",
]
