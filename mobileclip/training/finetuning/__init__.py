"""Fine-tuning: what of a pretrained model moves, how fast, and how far the outcome is taken; `run` does it all.

What fine-tuning alone needs belongs here; the loop is that of `training`.
"""

from mobileclip.training.finetuning.batch_norm import (
    FrozenBatchNorm2d,
    freeze_batch_norm,
    ordinary_batch_norm,
    synchronise_batch_norm,
)
from mobileclip.training.finetuning.freezing import Tower, freeze_tower
from mobileclip.training.finetuning.interpolation import interpolate_weights
from mobileclip.training.finetuning.labels import LabelledContrastiveSpec, labelled_contrastive, with_labels
from mobileclip.training.finetuning.layer_rates import (
    Granularity,
    LayerDecayAdamWSpec,
    layer_rate_groups,
    rate_scales,
    tower_layers,
)
from mobileclip.training.finetuning.lora import LoraSpec, add_lora, merge_lora
from mobileclip.training.finetuning.spec import BatchNormMode, FinetuningSpec

__all__ = [
    "BatchNormMode",
    "FinetuningSpec",
    "FrozenBatchNorm2d",
    "Granularity",
    "LabelledContrastiveSpec",
    "LayerDecayAdamWSpec",
    "LoraSpec",
    "Tower",
    "add_lora",
    "freeze_batch_norm",
    "freeze_tower",
    "interpolate_weights",
    "labelled_contrastive",
    "layer_rate_groups",
    "merge_lora",
    "ordinary_batch_norm",
    "rate_scales",
    "synchronise_batch_norm",
    "tower_layers",
    "with_labels",
]
