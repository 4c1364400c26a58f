"""Interpolates learned position embeddings to another grid of patches."""

from __future__ import annotations

import math

import torch
import torch.fx
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

torch.fx.wrap("rearrange")  # torch.fx would trace into it and fail


def resampled_positions(position: Tensor, grid: tuple[int, int], *, class_position: bool) -> Tensor:
    """Return the positions of another grid: bicubic interpolation with antialiasing, the class token's as it is.

    Shape:
        `(class_position + side * side, width)` to `(class_position + rows * columns, width)`.

    Args:
        position: of a square grid, row by row; behind the class token's, where it has one.
        grid: rows and columns of the other grid.
        class_position: whether the first position is the class token's.

    Raises:
        ValueError: if another grid is asked for, and the positions are of no square one.

    Source: timm's `resample_abs_pos_embed`, which its vision transformers do so with.
    """
    num_patches = len(position) - class_position
    side = math.isqrt(num_patches)
    if grid == (side, side):
        return position
    if side * side != num_patches:
        raise ValueError(f"{num_patches} positions are of no square grid, so those of another cannot be interpolated")
    patches = rearrange(position[class_position:].float(), "(h w) c -> 1 c h w", h=side)
    resampled = F.interpolate(patches, size=grid, mode="bicubic", antialias=True)
    flat = rearrange(resampled, "1 c h w -> (h w) c").to(position.dtype)
    return torch.cat([position[:class_position], flat])
