"""Weights of open_clip's models as files, drawn at random: what measures time needs no published ones."""

from __future__ import annotations

from pathlib import Path

import torch


def random_weights(model: str, folder: Path, *, seed: int = 0) -> str:
    """Write a model's random weights and return the file: a name alone would fetch published ones.

    Args:
        model: an architecture that open_clip knows.
        folder: where the file goes.
        seed: of the weights.
    """
    import open_clip  # type: ignore[import-untyped]
    from safetensors.torch import save_model

    path = folder / f"{model}-{seed}.safetensors"
    torch.manual_seed(seed)
    save_model(open_clip.create_model(model), str(path))
    return str(path)
