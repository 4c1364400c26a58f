"""Where in a picture a similarity comes from: what each place adds to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.encoders.towers import local_encoder


@torch.inference_mode()
def local_embeddings(encoder: nn.Module, images: Tensor) -> Tensor:
    """Return what each place adds to the embeddings of images: their mean over places is of unit length.

    Shape:
        `(B, channels, size, size)` to `(B, embedding_dim, rows, columns)`, float32 on the CPU.

    Args:
        encoder: an image tower that gives local embeddings.
        images: preprocessed.

    Raises:
        ValueError: if the image tower gives none.
    """
    maps = local_encoder(encoder).local_embeddings(images).float().cpu()
    length: Tensor = torch.linalg.vector_norm(maps.mean((2, 3), keepdim=True), dim=1, keepdim=True)
    return maps / length


def attribution(maps: Tensor, directions: Tensor) -> Tensor:
    """Return what each place adds to the cosines of images with directions: over places, maps sum to the cosines.

    Shape:
        `(B, dim, rows, columns)` and `(D, dim)` to `(B, D, rows, columns)`.

    Args:
        maps: see `local_embeddings`.
        directions: of unit length.
    """
    return torch.einsum("bcij,dc->bdij", maps, directions.to(maps)) / (maps.shape[2] * maps.shape[3])
