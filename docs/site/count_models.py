"""Write `models.json` beside this file: what each model known by name is, expects and takes.

    PYTHONPATH=. python docs/site/count_models.py

Multiply-accumulates are those of one image and of one text of full length, folded, as `torch.utils.flop_counter` counts
them (half its floating-point operations): convolutions, matrix products and attention, every layer and token. Shapes
alone are computed: it takes half a minute.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mobileclip import reparameterize
from mobileclip.blocks import models, set_attention_backend
from mobileclip.encoders import DualEncoderSpec
from mobileclip.inference.catalogue import describe

FILE = Path(__file__).with_name("models.json")


def model_values(name: str) -> dict[str, Any]:
    """Return what a whole model known by name is: its towers, their input, their size, and where weights are."""
    spec = models[name]
    if not isinstance(spec, DualEncoderSpec):
        raise TypeError(f"{name} is no model of images and texts")
    described = describe(name)
    with torch.device("meta"):
        model = spec.build().eval()
    # Attention in matrix products is counted alike on every device.
    set_attention_backend(model, "reference")
    image = torch.empty(1, 3, spec.image.input.size, spec.image.input.size, device="meta")
    ids = torch.zeros(1, spec.text.input.context_length, dtype=torch.long, device="meta")
    macs = {"image": macs_of(model.image_encoder, image), "text": macs_of(model.text_encoder, ids)}
    return {
        "weights": described["published weights"],
        "built_like": list(described.get("built like", ())),
        "towers": {
            tower: {
                "kind": described["spec"][tower]["kind"],
                "embedding_dim": described["spec"][tower]["embedding_dim"],
                "input": described["input"][tower],
                "parameters": described["parameters"][tower],
                "macs": macs[tower],
            }
            for tower in ("image", "text")
        },
    }


def macs_of(tower: nn.Module, example: torch.Tensor) -> int:
    """Return the multiply-accumulates of a tower on an example, once it is folded.

    Args:
        tower: in evaluation mode, on the device of the example.
        example: a batch of one.
    """
    folded = reparameterize(tower)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        folded(example)
    operations: int = counter.get_total_flops()
    return operations // 2


if __name__ == "__main__":
    values = {name: model_values(name) for name in models}
    FILE.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
