"""Embeddings as the public layouts store them: arrays by name, in an npz or in a compressed torch file."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from mobileclip.data.inflate import inflate
from mobileclip.data.npz import NpzRows
from mobileclip.data.skips import BadSampleError
from mobileclip.data.torch_file import TorchRows

# More than deflate can compress by.
_MAX_RATIO = 1100

Embeddings = npt.NDArray[np.float32]


class EmbeddingRows(Protocol):
    """Stored embeddings, of which single rows can be read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every array by its name; (number of rows, dim) where it is well-formed."""

    def row(self, name: str, index: int) -> Embeddings:
        """Return one row of an array.

        Shape:
            (dim,), float32.

        Raises:
            BadSampleError: if the row is damaged.
        """


class ArrayRows:
    """Embeddings that are decoded as a whole.

    Args:
        arrays: by name; every number is finite.

    Raises:
        BadSampleError: if one holds NaN or infinity.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = {name: as_float32(value) for name, value in arrays.items()}
        for name, array in self._arrays.items():
            if not np.isfinite(array).all():
                raise BadSampleError("not_finite", f"{name} holds NaN or infinity")

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every array by its name."""
        return {name: array.shape for name, array in self._arrays.items()}

    def row(self, name: str, index: int) -> Embeddings:
        """Return one row of an array."""
        row: Embeddings = self._arrays[name][index]
        return row


def as_float32(value: Any) -> Embeddings:
    """Return an array or a tensor of any precision as float32."""
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float32).numpy()
    return np.ascontiguousarray(value, dtype=np.float32)


def read_embeddings(name: str, data: bytes) -> EmbeddingRows:
    """Return the embeddings in a member of the public layouts; a compressed npz is inflated as far as rows are read.

    Args:
        name: the member's name, which ends with `npz` or `pth.gz`.
        data: its content.

    Raises:
        BadSampleError: if it cannot be read, or holds NaN or infinity.
    """
    try:
        if not name.endswith("npz"):
            data = _decompressed(data)
        # What numpy and torch read and these do not is read by numpy and torch.
        with suppress(ValueError, zlib.error):
            return NpzRows(data) if name.endswith("npz") else TorchRows(data)
        return ArrayRows(_read_npz(data) if name.endswith("npz") else _read_torch(data))
    except BadSampleError:
        raise
    except (OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise BadSampleError("bad_embedding", f"{name}: {type(error).__name__}: {str(error)[:200]}") from None


def write_npz(arrays: Mapping[str, Embeddings]) -> bytes:
    """Return the content of an `npz` member: float32."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # an array is never called allow_pickle
    return stream.getvalue()


def write_pth_gz(arrays: Mapping[str, Embeddings]) -> bytes:
    """Return the content of a `pth.gz` member: bfloat16."""
    stream = io.BytesIO()
    torch.save({name: torch.from_numpy(value.copy()).bfloat16() for name, value in arrays.items()}, stream)
    return gzip.compress(stream.getvalue(), mtime=0)


def _read_npz(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _decompressed(data: bytes) -> bytes:
    # webdataset's writer compresses members called .gz itself: what was compressed before is compressed twice.
    for _ in range(2):
        if data[:2] == b"\x1f\x8b":
            data = _gunzipped(data)
    return data


def _gunzipped(data: bytes) -> bytes:
    size = int.from_bytes(data[-4:], "little")
    # In one piece, where the size that the file ends with is that of its only part, and no forged one.
    if size <= _MAX_RATIO * len(data):
        content = inflate(data, wbits=31, size=max(size, 1))
        if len(content) == size:
            return content
    return gzip.decompress(data)


def _read_torch(data: bytes) -> dict[str, Any]:
    import pickle

    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from None
    if not isinstance(loaded, dict):
        raise ValueError(f"expected a dictionary of tensors, found {type(loaded).__name__}")
    return {name: torch.as_tensor(value) for name, value in loaded.items()}
