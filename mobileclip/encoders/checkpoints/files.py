"""Reading and writing tensors: safetensors, and PyTorch files without running anything in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobileclip import storage


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: what is wrong with it, and what to do."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a checkpoint file by name, and its metadata (safetensors alone has any).

    PyTorch files are read with `weights_only`, so that nothing in them is executed. Of training checkpoints that nest
    the weights, the part `state_dict` is taken; the prefix `module.` of distributed training is dropped.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, or holds something other than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _flattened(_read_torch(path), path), {}


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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}); fetch or write it again") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, or is no PyTorch file, and is not opened, since unpickling could run "
            "code from it; save its state_dict alone, or as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no PyTorch file ({error}); fetch or write it again") from error


def _flattened(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} is not a dictionary from names to tensors; save a model's state_dict")
    return {name.removeprefix("module."): value for name, value in loaded.items()}
