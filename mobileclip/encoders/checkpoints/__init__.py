"""Reads and writes checkpoints, strictly, in the layouts of Apple, open_clip, timm and this library.

Add new layouts of model weights here; `tensor_files` reads tensors from files.
"""

from mobileclip.encoders.checkpoints.coca_layout import CocaLayout as CocaLayout
from mobileclip.encoders.checkpoints.layouts import FORMS, ModelSpec, in_form, layouts, skeleton, tensor_shapes
from mobileclip.encoders.checkpoints.loading import (
    LoadedCheckpoint,
    load_backbone,
    load_model,
    read_checkpoint,
    resolve_spec,
)
from mobileclip.encoders.checkpoints.published import (
    COMPANIONS,
    PACKAGED,
    PREFIX,
    PRETRAINED,
    PUBLISHED,
    TAGS,
    companion,
    hub_licence_of,
    licence_of,
    of_same_architecture,
    packaged,
    tagged,
    unpublished,
)
from mobileclip.encoders.checkpoints.saving import (
    NO_PROVENANCE as NO_PROVENANCE,
    TrainingProvenance as TrainingProvenance,
    save_model,
    with_neutral_norms,
    write_tensors,
)
from mobileclip.encoders.checkpoints.transformers_layout import TransformersLayout as TransformersLayout
from mobileclip.tensor_files import CheckpointError

__all__ = [
    "COMPANIONS",
    "FORMS",
    "PACKAGED",
    "PREFIX",
    "PRETRAINED",
    "PUBLISHED",
    "TAGS",
    "CheckpointError",
    "LoadedCheckpoint",
    "ModelSpec",
    "companion",
    "hub_licence_of",
    "in_form",
    "layouts",
    "licence_of",
    "load_backbone",
    "load_model",
    "of_same_architecture",
    "packaged",
    "read_checkpoint",
    "resolve_spec",
    "save_model",
    "skeleton",
    "tagged",
    "tensor_shapes",
    "unpublished",
    "with_neutral_norms",
    "write_tensors",
]
