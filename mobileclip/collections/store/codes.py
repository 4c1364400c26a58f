"""Codes of embeddings in few bits: fitted on a collection, small in memory, and compared with a query all at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mobileclip.extras import needed
from mobileclip.inputs import VectorKind

Floats = NDArray[np.float32]
Codes = NDArray[np.integer[Any]]
"""int8, or uint8 of packed bits."""

_DTYPES = {"int8": np.int8, "int4": np.uint8, "bits": np.uint8}
_BITS = {"int8": 8, "int4": 4, "bits": 1}
# The largest number of a code.
_MOST = {"int8": 127, "int4": 7, "bits": 1}
# Standard deviations that 15 levels span: about what loses least of a normal distribution.
_SPAN = 2.5
# Of the variance, so much is kept where dims are left out: embeddings of few directions need few numbers. Whether they
# are of few is known from some embeddings for each dim.
_KEPT, _ENOUGH = 0.999, 4
# A query is a sum of this many codes of its own; the scan takes as long for four as for one.
_PLANES = {"int8": 2, "int4": 2, "bits": 4}
_ITERATIONS, _TURNED = 20, 8192
# Eight signs have a byte.
_GROUP = 8
_ARRAYS = ("mean", "basis", "scale")
# Bytes of a code that are compared first: of the leading directions, in which most of a similarity lies.
_HEAD = 64


@attrs.frozen(kw_only=True, eq=False)
class Coder:
    """Codes of embeddings: `round((x - mean) basis / scale)`, in 8 or 4 bits; of bits, the signs.

    The basis has orthogonal columns: the principal directions as they are (int8), turned at random (int4, the leading
    ones among themselves), or turned so that signs lose little (bits).

    Shape:
        mean: `(dim,)`; basis: `(dim, width)`, with a width of whole bytes; scale: `(width,)`.

    Source: iterative quantization, Gong and Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning
        Binary Codes", 2011, section 3.

    Args:
        kind: which codes.
        mean: of the embeddings.
        basis: what they are turned by.
        scale: of each number.
        num_fitted: pictures of the collection when it was fitted.
    """

    kind: VectorKind
    mean: Floats
    basis: Floats
    scale: Floats
    num_fitted: int

    @property
    def num_bytes(self) -> int:
        """Bytes of a code."""
        return int(self.basis.shape[1]) * _BITS[self.kind] // 8

    @cached_property
    def head(self) -> Coder:
        """The coder of the first bytes of a code, by which pictures are chosen whose codes are compared as a whole."""
        if self.kind == "bits" or self.num_bytes <= _HEAD:
            return self
        width = 8 * _HEAD // _BITS[self.kind]
        return attrs.evolve(self, basis=self.basis[:, :width], scale=self.scale[:width])

    def written(self) -> bytes:
        """Return it as safetensors."""
        return save(
            {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS},
            {"kind": self.kind, "num_fitted": str(self.num_fitted)},
        )

    @classmethod
    def read(cls, content: bytes, dim: int) -> Coder:
        """Return a coder that `written` gave.

        Args:
            content: of a stranger's index, perhaps.
            dim: numbers of an embedding.

        Raises:
            ValueError: if it is none, or of other embeddings.
        """
        try:
            length = int.from_bytes(content[:8], "little")
            named = json.loads(content[8 : 8 + length])["__metadata__"]
            arrays = {name: load(content)[name].astype(np.float32, copy=False) for name in _ARRAYS}
            coder = cls(kind=named["kind"], num_fitted=int(named["num_fitted"]), **arrays)
            width = coder.scale.shape[0]
            expected = {"mean": (dim,), "basis": (dim, width), "scale": (width,)}
            is_whole = coder.kind in _BITS and width % _GROUP == 0 and width > 0
            is_whole &= all(arrays[name].shape == shape for name, shape in expected.items())
            is_whole &= all(np.isfinite(one).all() for one in arrays.values())
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"no codes of embeddings of {dim} numbers: {error}") from error
        if not is_whole:
            raise ValueError(f"no codes of embeddings of {dim} numbers: shapes or values are none of these")
        return coder

    def encode(self, vectors: NDArray[np.floating[Any]]) -> Codes:
        """Return the codes of embeddings.

        Shape:
            vectors: `(count, dim)`; result: `(count, num_bytes)`, int8, or uint8 of which the low bits come first.
        """
        turned = torch.from_numpy(vectors.astype(np.float32) - self.mean) @ torch.from_numpy(self.basis)
        if self.kind == "bits":
            return np.packbits(turned.numpy() > 0, axis=1, bitorder="little")
        most = _MOST[self.kind]
        return _packed((turned / torch.from_numpy(self.scale)).round().clamp(-most, most).numpy(), self.kind)

    def scores(self, codes: Codes, queries: Floats) -> Floats:
        """Return the cosine similarities of embeddings with queries, as far as their codes tell; see `Asked`."""
        return Asked(self, queries).scores([codes])

    def planes(self, queries: Floats) -> tuple[Codes, Floats]:
        """Return queries as weighted sums of codes: `(queries, planes, num_bytes)` and `(queries, planes)`."""
        left = queries @ self.basis * self.scale
        planes, weights = [], []
        for _ in range(_PLANES[self.kind]):
            if self.kind == "bits":
                weight = np.abs(left).mean(1, keepdims=True)
                plane = np.where(left > 0, np.float32(1), np.float32(-1))
            else:
                weight = np.maximum(np.abs(left).max(1, keepdims=True), np.float32(1e-30)) / _MOST[self.kind]
                plane = np.round(left / weight)
            left = left - weight * plane
            planes.append(_packed(plane, self.kind))
            weights.append(weight[:, 0])
        return np.stack(planes, 1), np.stack(weights, 1)


class Asked:
    """Queries as codes are compared with them.

    Args:
        coder: of the codes.
        queries: of shape `(queries, dim)`.

    Raises:
        ImportError: if usearch, and with it numkong, is not installed.
    """

    def __init__(self, coder: Coder, queries: Floats) -> None:
        with needed("a search of small vectors", "collections"):
            import numkong
        planes, self._weights = coder.planes(queries)
        flat = np.ascontiguousarray(planes.reshape(-1, planes.shape[-1]))
        self._offset = queries @ coder.mean
        if coder.kind == "bits":
            self._packed, self._compared = numkong.hammings_pack(flat, dtype="uint1"), numkong.hammings_packed
            self._offset = self._offset + coder.basis.shape[1] * self._weights.sum(1)
            self._weights = -2 * self._weights
        else:
            self._packed, self._compared = numkong.dots_pack(flat, dtype=coder.kind), numkong.dots_packed

    def scores(self, blocks: Sequence[Codes]) -> Floats:
        """Return the cosine similarities of embeddings, as far as their codes tell.

        Shape:
            blocks: `(some, num_bytes)` each, `count` in all; result: `(count, queries)`.
        """
        products = [np.asarray(self._compared(codes, self._packed)) for codes in blocks if len(codes)]
        if not products:
            return np.empty((0, len(self._weights)), np.float32)
        numbers = np.concatenate(products).astype(np.float32).reshape(-1, *self._weights.shape)
        # einsum takes ten times as long.
        sums: Floats = np.stack([numbers[:, row] @ weights for row, weights in enumerate(self._weights)], axis=1)
        return sums + self._offset


def empty_codes(coder: Coder, count: int) -> Codes:
    """Return room for codes."""
    return np.empty((count, coder.num_bytes), _DTYPES[coder.kind])


def fit(
    kind: VectorKind, vectors: NDArray[np.floating[Any]], num_fitted: int, *, spare: int = 0, seed: int = 0
) -> Coder:
    """Return codes that are fitted on some embeddings.

    Args:
        kind: which codes; not float16.
        vectors: of shape `(count, dim)`; a hundred or more for each dim tell enough.
        num_fitted: pictures of the collection.
        spare: bytes of a code that are left out, with the directions of which there is least.
        seed: of what is turned at random.
    """
    given = torch.from_numpy(np.asarray(vectors)).float()
    dim = given.shape[1]
    mean = given.mean(0) if len(given) else torch.zeros(dim)
    centred = given - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / max(1, len(given)))
    variances, directions = variances.flip(0).clamp_min(0), directions.flip(1)
    rank = dim
    if kind != "bits" and len(given) >= _ENOUGH * dim:
        rank = int((variances.cumsum(0) < _KEPT * variances.sum()).sum()) + 1
    # Of a short code, an eighth at most is left out.
    most = dim - _GROUP * -(-min(spare, dim * _BITS[kind] // 64) // _BITS[kind])
    rank = min(most, -(-rank // _GROUP) * _GROUP)
    basis, random = directions[:, :rank], torch.Generator().manual_seed(seed)
    if kind != "int8":
        parts = torch.split(basis, 2 * _HEAD if kind == "int4" else rank, dim=1)
        turns = [torch.linalg.qr(torch.randn(2 * part.shape[1:], generator=random)).Q for part in parts]
        basis = torch.cat([part @ turn for part, turn in zip(parts, turns, strict=True)], 1)
    if kind == "bits":
        basis = _iterated(centred @ basis, basis)
    turned = centred @ basis
    basis = torch.nn.functional.pad(basis, (0, -rank % _GROUP))
    scale = torch.ones(basis.shape[1])
    if len(given):
        if kind == "int8":
            scale[:rank] = turned.abs().amax(0) / _MOST[kind]
        elif kind == "int4":
            scale[:rank] = _SPAN * turned.square().mean(0).sqrt() / _MOST[kind]
        else:
            scale[:rank] = turned.abs().mean()
    scale = scale.clamp_min(1e-12)
    return Coder(kind=kind, mean=mean.numpy(), basis=basis.numpy(), scale=scale.numpy(), num_fitted=num_fitted)


def _iterated(turned: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return a basis that is turned on, so that what it gives is nearest to its signs."""
    rotation, turned = torch.eye(basis.shape[1]), turned[:: 1 + len(turned) // _TURNED]
    for _ in range(_ITERATIONS):
        signs = torch.sign(turned @ rotation)
        left, _, right = torch.linalg.svd(turned.T @ signs)
        rotation = left @ right
    return basis @ rotation


def _packed(numbers: Floats, kind: VectorKind) -> Codes:
    if kind == "bits":
        return np.packbits(numbers > 0, axis=-1, bitorder="little")
    whole = numbers.astype(np.int8)
    if kind == "int8":
        return whole
    halves = whole.view(np.uint8) & 15
    return halves[..., ::2] | halves[..., 1::2] << 4
