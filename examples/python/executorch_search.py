"""Find the texts that fit an image, and the image that fits a text, with ExecuTorch.

    mobileclip export mobileclip_s0.pt --target executorch -o s0_executorch
    python executorch_search.py s0_executorch --images cat.jpg dog.jpg --texts "a cat" "a dog"

This example needs executorch, numpy, pillow, tokenizers and safetensors. ExecuTorch's Python bindings take PyTorch
tensors; apps on Android and iOS do not need PyTorch, see docs/export.md.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import torch
from contract import Array, Encode, Export
from search import main


def open_tower(export: Export, tower: dict[str, Any]) -> Encode:
    """Return a function that runs one batch of a tower.

    Raises:
        ValueError: if the tower's file cannot be read.
    """
    # On import, ExecuTorch warns that the API may change, and torchao logs the kernels that this machine lacks.
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.runtime import Runtime
    logging.disable(logging.NOTSET)
    path = export.folder / tower["file"]
    try:
        program = Runtime.get().load_program(path)
    except RuntimeError as error:
        raise ValueError(f"ExecuTorch cannot read {path}: {error}; copy the export again") from error

    def encode(inputs: Array) -> Array:
        # The program caches the method, and must outlive it.
        method = program.load_method("forward")
        embeddings: Array = method.execute([torch.from_numpy(inputs)])[0].numpy()
        return embeddings

    return encode


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main(__doc__.partition("\n")[0], target="executorch", open_tower=open_tower))
