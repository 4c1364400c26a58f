"""Find the texts that fit an image, and the image that fits a text, with OpenVINO.

    mobileclip export mobileclip_s0.pt --target openvino -o s0_openvino
    python openvino_search.py s0_openvino --images cat.jpg dog.jpg --texts "a cat" "a dog"

This example needs openvino, numpy, pillow, tokenizers and safetensors, but neither PyTorch nor the mobileclip package.
"""

from __future__ import annotations

import sys
from typing import Any

import openvino
from contract import Array, Encode, Export
from search import main

DEVICE = "CPU"
# By precision: the required capability of the device, and the precision hint. Without a hint, or with an unsupported
# float16 hint, a CPU with bfloat16 computes everything in bfloat16, including float32 exports.
HINTS = {"float16": ("FP16", "f16"), "bfloat16": ("BF16", "bf16")}
# Without this option, OpenVINO 2026.4 crashes when it compiles some text towers for one thread.
FUSING = {"SNIPPETS_MODE": "DISABLE"}


def open_tower(export: Export, tower: dict[str, Any]) -> Encode:
    """Return a function that runs one batch of a tower, in the contract's precision or in float32."""
    core = openvino.Core()
    able, hint = HINTS.get(tower["compute"], ("FP32", "f32"))
    if able not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        hint = "f32"
    compiled = core.compile_model(export.folder / tower["file"], DEVICE, {"INFERENCE_PRECISION_HINT": hint, **FUSING})

    def encode(inputs: Array) -> Array:
        embeddings: Array = compiled({tower["input_name"]: inputs})[tower["output_name"]].copy()
        return embeddings

    return encode


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main(__doc__.partition("\n")[0], target="openvino", open_tower=open_tower))
