"""Checkpoints: reads and writes the layouts of Apple, open_clip, timm and this library, strictly.

A new layout of a model's weights enters here. Reading tensors from files is for `tensor_files`.
"""

from mobileclip.encoders.checkpoints import official, open_clip
from mobileclip.encoders.checkpoints.backbone import load_backbone
from mobileclip.encoders.checkpoints.coca import load_coca, save_coca
from mobileclip.encoders.checkpoints.files import write_tensors
from mobileclip.encoders.checkpoints.forms import FORMS, in_form, skeleton, tensor_shapes
from mobileclip.encoders.checkpoints.layouts import ModelSpec, layouts
from mobileclip.encoders.checkpoints.loading import Stored, load_model, read_checkpoint, resolve_spec
from mobileclip.encoders.checkpoints.native import UNTAUGHT as UNTAUGHT, Taught as Taught  # for the house
from mobileclip.encoders.checkpoints.neutral import with_neutral_norms
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
from mobileclip.encoders.checkpoints.saving import save_model
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
    "ModelSpec",
    "Stored",
    "companion",
    "hub_licence_of",
    "in_form",
    "layouts",
    "licence_of",
    "load_backbone",
    "load_coca",
    "load_model",
    "of_same_architecture",
    "official",
    "open_clip",
    "packaged",
    "read_checkpoint",
    "resolve_spec",
    "save_coca",
    "save_model",
    "skeleton",
    "tagged",
    "tensor_shapes",
    "unpublished",
    "with_neutral_norms",
    "write_tensors",
]
