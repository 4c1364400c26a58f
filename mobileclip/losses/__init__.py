"""Losses of image-text training: they see tensors only.

A new loss enters here, as a spec and a formula. Models, data and optimisers do not belong here.
"""

from mobileclip.losses.contrastive import ContrastiveLoss, ContrastiveLossSpec
from mobileclip.losses.formulas import (
    TargetDivergence,
    dense_loss,
    distillation_loss,
    distillation_target_kl,
    teacher_targets,
)
from mobileclip.losses.reinforced import ReinforcedLoss, ReinforcedLossSpec
from mobileclip.losses.sigmoid import (
    ReinforcedSigmoidLoss,
    ReinforcedSigmoidLossSpec,
    SigmoidLoss,
    SigmoidLossSpec,
)
from mobileclip.losses.specs import DistillingLossSpec, LossSpec, LossTerms, PairLossSpec, losses

__all__ = [
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
    "dense_loss",
    "distillation_loss",
    "distillation_target_kl",
    "losses",
    "teacher_targets",
]
