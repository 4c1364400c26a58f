"""Folding training-time branches, norms and scales into single convolutions and linear layers."""

from mobileclip.reparam.algebra import (
    fuse_conv_bn,
    identity_kernel,
    norm_affine,
    pad_kernel,
    scale_output,
    shift_input,
)
from mobileclip.reparam.module import LayerScale, Reparameterizable, with_children
from mobileclip.reparam.reparameterize import foldable_modules, is_folded, reparameterize

__all__ = [
    "LayerScale",
    "Reparameterizable",
    "foldable_modules",
    "fuse_conv_bn",
    "identity_kernel",
    "is_folded",
    "norm_affine",
    "pad_kernel",
    "reparameterize",
    "scale_output",
    "shift_input",
    "with_children",
]
