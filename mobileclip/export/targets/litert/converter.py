"""What runs in the environment of LiteRT's converter: from a program of `torch.export` to a file.

    PYTHON -I converter.py tower.pt2 tower.tflite

It imports nothing of this library, which is not in that environment.
"""

from __future__ import annotations

import sys


def convert(program: str, path: str) -> None:
    """Write a program as LiteRT has it; its inputs and outputs keep their names.

    Args:
        program: of `torch.export.save`, called with inputs by name, and giving outputs by name.
        path: of the file to write.
    """
    import litert_torch
    import torch

    loaded = torch.export.load(program)
    _, named = loaded.example_inputs
    litert_torch.convert(loaded.module(), sample_kwargs=named).export(path)


if __name__ == "__main__":
    convert(*sys.argv[1:])
