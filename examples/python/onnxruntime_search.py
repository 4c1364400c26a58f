"""Find the texts that fit an image, and the image that fits a text, with ONNX Runtime.

    mobileclip export mobileclip_s0.pt --target onnx -o s0_onnx
    python onnxruntime_search.py s0_onnx --images cat.jpg dog.jpg --texts "a cat" "a dog"

This example needs onnxruntime, numpy, pillow, tokenizers and safetensors, but neither PyTorch nor the mobileclip
package.
"""

from __future__ import annotations

import sys
from typing import Any

import onnxruntime
from contract import Array, Encode, Export
from search import main


def open_tower(export: Export, tower: dict[str, Any]) -> Encode:
    """Return a function that runs one batch of a tower.

    The function runs on the CPU. For CUDA, Core ML or DirectML, put the execution provider first in `providers`.
    """
    session = onnxruntime.InferenceSession(export.folder / tower["file"], providers=["CPUExecutionProvider"])

    def encode(inputs: Array) -> Array:
        embeddings: Array = session.run([tower["output_name"]], {tower["input_name"]: inputs})[0]
        return embeddings

    return encode


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main(__doc__.partition("\n")[0], target="onnx", open_tower=open_tower))
