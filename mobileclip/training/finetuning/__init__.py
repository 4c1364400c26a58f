"""Fine-tuning: frozen towers, layer-wise learning rates, adapters, and weight interpolation with the original model.

This subpackage contains only the code for fine-tuning; `mobileclip.training` contains the training loop.
"""

from mobileclip.training.finetuning.spec import BatchNormMode, FinetuningSpec, Tower, freeze_tower
from mobileclip.training.finetuning.tasks import (
    LabelledContrastiveSpec,
    labelled_contrastive,
    with_labels,
)
from mobileclip.training.finetuning.weights import (
    FrozenBatchNorm2d,
    freeze_batch_norm,
    interpolate_weights,
    ordinary_batch_norm,
    synchronise_batch_norm,
)
from mobileclip.training.lora import LoraSpec, add_lora, merge_lora
from mobileclip.training.optimizer import (
    Granularity,
    LayerDecayAdamWSpec,
    layer_rate_groups,
    rate_scales,
    tower_layers,
)

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
