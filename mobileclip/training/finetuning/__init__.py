"""Fine-tuning: what is frozen, learning rates by depth, adapters, and averaging with the original.

What fine-tuning alone needs belongs here; the loop is that of `training`.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

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
