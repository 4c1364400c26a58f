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
    made = open_clip.create_model(model)
    if hasattr(made, "text_decoder"):  # whose projection open_clip leaves as the memory was, which may be not a number
        torch.nn.init.normal_(made.text_decoder.text_projection, std=0.02)
    save_model(made, str(path))
    return str(path)
