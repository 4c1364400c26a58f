"""Computes a SHA-256 digest of the weights of a model, independently of the file format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_sha256(state: Mapping[str, Tensor], *, head: str = "{}\x1f{}\x1f{}\x1e") -> str:
    """Return the SHA-256 of a state dict: the names (in sorted order), dtypes, shapes and data.

    The digest does not depend on the device, the memory layout, the order of the names or the file format; any changed
    bit changes the digest. The function runs at the speed of SHA-256 and copies one tensor at a time.

    Args:
        state: tensors by name, such as the `state_dict` of a module.
        head: format string for name, dtype and shape, hashed before the data of each tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(head.format(name, tensor.dtype, tuple(tensor.shape)).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
