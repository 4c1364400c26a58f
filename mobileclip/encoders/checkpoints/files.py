"""Writing tensors: safetensors, or PyTorch's own format, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mobileclip import storage


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors or, by any other suffix, as a PyTorch file; the file appears whole or not at all.

    Args:
        path: where to; the suffix decides the format.
        tensors: contiguous tensors by name.
        metadata: texts to store beside them, in safetensors only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors, temporary, metadata={"format": "pt", **metadata})
        else:
            torch.save(tensors, temporary)
