"""Reads PyTorch files by `torch.load(weights_only=True)`: archives (since PyTorch 1.6) and streams (before 1.6)."""

from __future__ import annotations

import logging
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobileclip.tensor_files.errors import CheckpointError, check_count, shown

_logger = logging.getLogger(__name__)

ARCHIVE_START, STREAM_START = b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
AVERAGES = ("ema", "model_ema", "state_dict_ema", "ema_state_dict")
NESTED = (*AVERAGES, "state_dict", "model_state_dict", "model", "module", "params")
"""Keys of weights in training checkpoints, in order of preference: averaged weights first."""

_MAX_NESTED = 4
_WEIGHTS = frozenset(
    (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
)
_DAMAGE = (
    *(RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, EOFError, OverflowError),
    *(MemoryError, RecursionError, NotImplementedError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
)


def read_torch(path: Path, *, is_archive: bool, mmap: bool) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch file by name; without `mmap`, no two tensors share memory.

    Args:
        path: path of the file.
        is_archive: whether the file is an archive rather than a stream.
        mmap: whether to memory-map an archive; the function always reads a stream into memory.

    Raises:
        CheckpointError: if the file is damaged, or contains anything other than dense tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_archive:
                _check_archive(path)
            value = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap and is_archive)
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise _refused(error) from None
    tensors = weights_of(value)
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * path.stat().st_size:
        raise CheckpointError(
            "the tensors have more than twice the size of the file, because too many tensors share memory; save "
            "copies of these tensors"
        )
    return tensors if mmap else _apart(tensors)


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(
            "the archive has compressed entries, which torch.save never writes; save the weights again"
        )
    if len({member.filename for member in members}) < len(members):
        raise CheckpointError("the archive has two entries of the same name; save the weights again")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory or are views of a larger storage; return other tensors unchanged."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        is_alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        apart[name] = tensor if is_alone else tensor.clone()
    return apart


def _refused(error: BaseException) -> CheckpointError:
    """Return a CheckpointError with one line of the error message from PyTorch."""
    said = str(error)
    if "GLOBAL " in said:
        called = said.partition("GLOBAL ")[2].partition(" ")[0]
        return CheckpointError(
            f"the file contains more than tensors: loading calls {shown(called)}, which could run any code",
            code="unsafe",
        )
    told = said.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    return CheckpointError(
        f"the file is damaged or truncated, or contains more than tensors ({type(error).__name__}: {shown(told)})"
    )


def weights_of(value: Any) -> dict[str, Tensor]:
    """Return the weights of a training checkpoint, such as `{"model": ..., "ema": ..., "epoch": 3}`.

    If the checkpoint has both the trained and the averaged (EMA) weights, the function returns the averaged weights
    and logs the choice.

    Args:
        value: a result of `torch.load`, or a `state_dict`.

    Raises:
        CheckpointError: if there are no weights, or a value among the weights is not a dense tensor.
    """
    for _ in range(_MAX_NESTED):
        if not isinstance(value, Mapping) or any(isinstance(one, Tensor) for one in value.values()):
            break
        kept = [name for name in NESTED if _holds_tensors(value.get(name))]
        if len(kept) > 1 and kept[0] in AVERAGES:
            _logger.info("using the averaged weights %r instead of %r", kept[0], kept[1])
        if not kept:
            break
        value = value[kept[0]]
    if not isinstance(value, Mapping) or not value:
        raise CheckpointError(
            "the checkpoint is not a dictionary from names to tensors; save a model's state_dict", code="not_weights"
        )
    check_count(len(value))
    for name, tensor in value.items():
        if not isinstance(name, str):
            # The message shows only numbers, since the repr of nested tuples can take forever.
            what = f"the number {name}" if isinstance(name, int) else f"an object of the type {type(name).__name__}"
            raise CheckpointError(
                f"the checkpoint has {what} as a key, expected the name of a tensor", code="not_weights"
            )
        _check_tensor(name, tensor)
    return {name: tensor.detach() for name, tensor in value.items()}


def _holds_tensors(value: Any, depth: int = _MAX_NESTED) -> bool:
    """Return whether a dictionary contains tensors, directly or in nested dictionaries."""
    if not isinstance(value, Mapping) or not depth:
        return False
    return any(isinstance(one, Tensor) or _holds_tensors(one, depth - 1) for one in value.values())


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise CheckpointError(
            f"the checkpoint is not a dictionary of tensors: {shown(name)} has the type {type(tensor).__name__}; save "
            "the state_dict of a model",
            code="not_weights",
        )
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        kinds = {"quantized": tensor.is_quantized, "nested": tensor.is_nested, "on the meta device": tensor.is_meta}
        kind = next((kind for kind, holds in kinds.items() if holds), "sparse")
        raise CheckpointError(
            f"the tensor {shown(name)} is {shown(kind)}; weights are plain dense tensors", code="not_weights"
        )
    if tensor.dtype not in _WEIGHTS:
        raise CheckpointError(
            f"the tensor {shown(name)} has the dtype {shown(str(tensor.dtype))}, which is not supported",
            code="not_weights",
        )
    if any(side > 1 and step == 0 for side, step in zip(tensor.shape, tensor.stride(), strict=True)):
        raise CheckpointError(
            f"the tensor {shown(name)} is an expanded view; save a contiguous copy", code="not_weights"
        )
