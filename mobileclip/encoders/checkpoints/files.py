"""Writing tensors: safetensors, or PyTorch's own format, whole or not at all."""

from __future__ import annotations

import torch
from torch import Tensor

from mobileclip import storage


def write_tensors(path: storage.AnyPath, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors or, by any other suffix, as a PyTorch file; the file appears whole or not at all.

    Args:
        path: where to, a path or a URL; the suffix decides the format.
        tensors: contiguous tensors by name.
        metadata: texts to store beside them, in safetensors only.
    """
    storage.make_directory_of(path)
    with storage.atomic_write(path) as stream:
        if storage.file_name(path).endswith(".safetensors"):
            from safetensors.torch import save

            stream.write(save(tensors, metadata={"format": "pt", **metadata}))
        else:
            torch.save(tensors, stream)
