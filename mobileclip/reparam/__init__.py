"""Folds training-time branches, norms and scales into single convolutions and linear layers.

This package has the shared code of reparameterization (folding); each block in `blocks` documents its own folding.
"""

from mobileclip.reparam.fuse import (
    BATCH_NORMS,
    BatchNorm,
    conv_with,
    fuse_conv_bn,
    identity_kernel,
    norm_affine,
    pad_kernel,
    plain_conv,
    scale_output,
    shift_input,
    widened,
)
from mobileclip.reparam.module import (
    LayerScale,
    Reparameterizable,
    children_by_name,
    evaluating,
    in_class,
    in_classes,
    is_hooked,
    some_outputs,
    with_children,
    without_identities,
)
from mobileclip.reparam.traversal import PLAIN, Fold, foldable_modules, folds, is_folded, reparameterize

__all__ = [
    "BATCH_NORMS",
    "PLAIN",
    "BatchNorm",
    "Fold",
    "LayerScale",
    "Reparameterizable",
    "children_by_name",
    "conv_with",
    "evaluating",
    "foldable_modules",
    "folds",
    "fuse_conv_bn",
    "identity_kernel",
    "in_class",
    "in_classes",
    "is_folded",
    "is_hooked",
    "norm_affine",
    "pad_kernel",
    "plain_conv",
    "reparameterize",
    "scale_output",
    "shift_input",
    "some_outputs",
    "widened",
    "with_children",
    "without_identities",
]
