"""Random weights, for what measures time and needs no published ones: of open_clip's models, and norms that see."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.rivals import randomize
from mobileclip.data import ImageTransform, load_image
from mobileclip.encoders import DualEncoder, DualEncoderSpec
from mobileclip.inference.comparison import bundled_samples


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


@torch.no_grad()
def random_model(spec: DualEncoderSpec) -> DualEncoder:
    """Return a model of random weights, in training form and evaluation mode, as PyTorch's generator draws them.

    Its batch norms have the statistics of the package's pictures: with others, all images have one embedding.

    Args:
        spec: of the model.
    """
    model = spec.build()
    randomize(model)
    transform = ImageTransform(model.spec.image.input)
    images = torch.stack([transform(load_image(data)) for data in bundled_samples().images])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The mean of the batches there are, of which there is one.
            module.momentum = None
            module.reset_running_stats()
    model.train()
    model.encode_image(images)
    return model.eval()
