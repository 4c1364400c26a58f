"""Losses of image-text training: they see tensors only."""

from mobileclip.losses.contrastive import ContrastiveLoss, ContrastiveLossSpec
from mobileclip.losses.distillation import distillation_loss, teacher_targets
from mobileclip.losses.distilling import DistillingLossSpec
from mobileclip.losses.fidelity import TargetDivergence, distillation_target_kl
from mobileclip.losses.formulas import dense_loss
from mobileclip.losses.reinforced import ReinforcedLoss, ReinforcedLossSpec
from mobileclip.losses.sigmoid import (
    ReinforcedSigmoidLoss,
    ReinforcedSigmoidLossSpec,
    SigmoidLoss,
    SigmoidLossSpec,
)
from mobileclip.losses.specs import LossSpec, LossTerms, losses

__all__ = [
    "ContrastiveLoss",
    "ContrastiveLossSpec",
    "DistillingLossSpec",
    "LossSpec",
    "LossTerms",
    "ReinforcedLoss",
    "ReinforcedLossSpec",
    "ReinforcedSigmoidLoss",
    "ReinforcedSigmoidLossSpec",
    "SigmoidLoss",
    "SigmoidLossSpec",
    "TargetDivergence",
    "dense_loss",
    "distillation_loss",
    "distillation_target_kl",
    "losses",
    "teacher_targets",
]
