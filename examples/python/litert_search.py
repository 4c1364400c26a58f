"""Find the texts that fit an image, and the image that fits a text, with LiteRT.

    mobileclip export mobileclip_s0.pt --target litert --converter litert-converter/bin/python -o s0_litert
    python litert_search.py s0_litert --images cat.jpg dog.jpg --texts "a cat" "a dog"

This example needs ai-edge-litert, numpy, pillow, tokenizers and safetensors, but neither PyTorch nor the mobileclip
package.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ai_edge_litert.interpreter import Interpreter
from contract import Array, Encode, Export
from search import main


def open_tower(export: Export, tower: dict[str, Any]) -> Encode:
    """Return a function that runs one input of a tower; for texts, each row length has a separate signature.

    Raises:
        ValueError: if the tower's file cannot be read.
    """
    path = export.folder / tower["file"]
    interpreter = Interpreter(model_path=str(path), num_threads=os.cpu_count())
    whole = interpreter.get_signature_runner("serving_default")
    shorter = {length: interpreter.get_signature_runner(f"length_{length}") for length in tower.get("lengths", [])[:-1]}

    def encode(inputs: Array) -> Array:
        run = shorter.get(inputs.shape[1], whole)
        embeddings: Array = run(**{tower["input_name"]: inputs})[tower["output_name"]]
        return embeddings

    return encode


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main(__doc__.partition("\n")[0], target="litert", open_tower=open_tower))
