"""Embeddings as the public layouts store them: arrays by name, in an npz or in a compressed torch file."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from mobileclip.data.samples.inflate import GZIP, TooLargeError, gunzip
from mobileclip.data.samples.npz import NpzRows
from mobileclip.data.samples.torch_file import TorchRows
from mobileclip.data.skips import BadSampleError

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


def as_float32(value: Any) -> Embeddings:
    """Return an array or a tensor of any precision as float32."""
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float32).numpy()
    return np.ascontiguousarray(value, dtype=np.float32)


def read_embeddings(name: str, data: bytes, *, limit: int) -> EmbeddingRows:
    """Return the embeddings in a member of the public layouts; a compressed npz is inflated as far as rows are read.

    Args:
        name: the member's name, which ends with `npz` or `pth.gz`.
        data: its content.
        limit: number of bytes that it may inflate to.

    Raises:
        BadSampleError: if it cannot be read, or holds more than it may.
    """
    try:
        return NpzRows(data, limit=limit) if name.endswith("npz") else TorchRows(_decompressed(data, limit))
    except TooLargeError as error:
        raise BadSampleError("too_large", f"{name}: {error}") from None
    except (ValueError, zlib.error) as error:
        raise BadSampleError("bad_embedding", f"{name}: {error}") from None


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


def _decompressed(data: bytes, limit: int) -> bytes:
    # webdataset's writer compresses members called .gz itself: what was compressed before is compressed twice.
    for _ in range(2):
        if data[:2] == GZIP:
            data = gunzip(data, limit=limit)
    return data
