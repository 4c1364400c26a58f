"""Similarity matrices tile by tile: computed, used and forgotten. Memory grows with the batch, not with its square."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mobileclip.losses.tiled.processes import Processes

# 2048 x 2048 in float32: large enough for a fast product, small enough that a handful of them stay in a cache.
TILE_BYTES = 16 * 2**20


class Similarity:
    """The scaled similarities of this process's images with all texts, `scale * image @ text.T`, never held whole.

    Embeddings of low precision are widened tile by tile.

    Args:
        image: (B, D), the rows.
        text: (N, D), the columns, those of all processes.
        scale: inverse temperature.
        dtype: what is computed in.
        normalize: bring the embeddings to unit length first.
    """

    def __init__(
        self, image: Tensor, text: Tensor, scale: Tensor | float, *, dtype: torch.dtype, normalize: bool = False
    ) -> None:
        self.image, self.text, self.dtype = image, text, dtype
        self.image_factor: Tensor | float = scale
        self.text_factor: Tensor | None = None
        if normalize:
            self.image_factor = scale / _length(image, dtype)
            self.text_factor = _length(text, dtype).reciprocal_()

    def images(self, rows: slice) -> Tensor:
        """Return the images of a tile, scaled."""
        factor = self.image_factor
        if isinstance(factor, Tensor) and factor.ndim > 0:
            factor = factor[rows]
        block: Tensor = self.image[rows].to(self.dtype) * factor
        return block

    def texts(self, columns: slice) -> Tensor:
        """Return the texts of a tile."""
        block: Tensor = self.text[columns].to(self.dtype)
        if self.text_factor is not None:
            block = block * self.text_factor[columns]
        return block


def _length(embedding: Tensor, dtype: torch.dtype) -> Tensor:
    # The smallest length is that of `torch.nn.functional.normalize`: a teacher's zero stays zero.
    length: Tensor = torch.linalg.vector_norm(embedding, dim=1, keepdim=True, dtype=dtype)
    return length.clamp_min_(1e-12)


@attrs.frozen(eq=False)
class Tile:
    """A part of the similarity matrices.

    Args:
        rows: which of this process's images.
        columns: which of all texts.
        similarities: all of them.
        offset: row of this process's first image in the whole batch.
        known_images: images of these rows that were asked for before, shared by the tiles of a row.
    """

    rows: slice
    columns: slice
    similarities: Sequence[Similarity]
    offset: int
    known_images: dict[int, Tensor]

    def images(self, index: int) -> Tensor:
        """Return the images of the similarity `index`, scaled."""
        if index not in self.known_images:
            self.known_images[index] = self.similarities[index].images(self.rows)
        return self.known_images[index]

    def diagonal(self, values: Tensor) -> Tensor:
        """Return the matching pairs' places in the tile's values, as a view; none where the tile has no such pair."""
        first, last = self.rows.start + self.offset, self.rows.stop + self.offset
        start, stop = max(first, self.columns.start), min(last, self.columns.stop)
        if start >= stop:
            return values.new_empty(0)
        inside = values[start - first : stop - first, start - self.columns.start : stop - self.columns.start]
        return inside.diagonal()


class Tiling:
    """Similarity matrices of one shape, walked through tile by tile; one tile is computed once and kept.

    Args:
        similarities: one for the student, and one for each teacher.
        offset: row of this process's first image in the whole batch.
    """

    def __init__(self, similarities: Sequence[Similarity], *, offset: int) -> None:
        self.similarities = similarities
        self.offset = offset
        num_rows, num_columns = similarities[0].image.shape[0], similarities[0].text.shape[0]
        self.like = similarities[0].image.new_empty(0, dtype=similarities[0].dtype)
        cells = max(1, TILE_BYTES // self.like.element_size())
        height = min(num_rows, max(math.isqrt(cells), cells // num_columns))
        width = min(num_columns, max(1, cells // height))
        self.rows, self.columns = _even_slices(num_rows, height), _even_slices(num_columns, width)
        self.cells = height * width
        self._kept: dict[int, Tensor] = {}
        self._images: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[Tile]:
        for rows in self.rows:
            if len(self.rows) > 1:
                self._images = {}
            for columns in self.columns:
                yield Tile(rows, columns, self.similarities, self.offset, self._images)

    def scratch(self) -> Tensor:
        """Return memory for one tile."""
        return self.like.new_empty(self.cells)

    def logits(self, tile: Tile, index: int, *, out: Tensor) -> Tensor:
        """Return the logits of the similarity `index`, in scratch memory.

        The second and last call for an only tile returns what the first computed.
        """
        only = len(self.rows) == len(self.columns) == 1
        if only and index in self._kept:
            return self._kept.pop(index)
        texts = self.similarities[index].texts(tile.columns)
        product = torch.mm(tile.images(index), texts.mT, out=shaped(out.new_empty(self.cells) if only else out, tile))
        if only:
            self._kept[index] = product
        return product


def shaped(memory: Tensor, tile: Tile) -> Tensor:
    """Return scratch memory in the shape of a tile."""
    height, width = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
    return memory[: height * width].view(height, width)


def _even_slices(length: int, size: int) -> list[slice]:
    num_parts = math.ceil(length / size)
    edges = [length * part // num_parts for part in range(num_parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


@attrs.frozen(eq=False)
class Normalizers:
    """Logarithms of a similarity's softmax denominators.

    Args:
        rows: (B, 1), of this process's images over all texts.
        columns: (N,), of all texts over the images of all processes.
    """

    rows: Tensor
    columns: Tensor


def log_normalizers(tiling: Tiling, indices: Sequence[int], processes: Processes) -> dict[int, Normalizers]:
    """Return the softmax denominators of some of the similarities, by index."""
    num_rows, num_columns = tiling.rows[-1].stop, tiling.columns[-1].stop
    lowest = -math.inf
    found = {
        index: Normalizers(tiling.like.new_full((num_rows, 1), lowest), tiling.like.new_full((1, num_columns), lowest))
        for index in indices
    }
    memory, spare = tiling.scratch(), tiling.scratch()
    for tile in tiling:
        for index, partial in found.items():
            logits = tiling.logits(tile, index, out=memory)
            rows, columns = partial.rows[tile.rows], partial.columns[:, tile.columns]
            torch.logaddexp(rows, _logsumexp(logits, 1, shaped(spare, tile)), out=rows)
            torch.logaddexp(columns, _logsumexp(logits, 0, shaped(spare, tile)), out=columns)
    return {
        index: Normalizers(partial.rows, processes.logsumexp(partial.columns[0])) for index, partial in found.items()
    }


def _logsumexp(logits: Tensor, dim: int, memory: Tensor) -> Tensor:
    largest = logits.amax(dim=dim, keepdim=True)
    return torch.sub(logits, largest, out=memory).exp_().sum(dim=dim, keepdim=True).log_().add_(largest)


class TermSum:
    """One term of a loss: its value and, where they are wanted, its gradients, summed over tiles and caption sets.

    Args:
        image: (B, D), the student's images.
        dtype: what is computed in.
        gradients: whether gradients are wanted.
        bias: whether the logits have a bias.
    """

    def __init__(self, image: Tensor, *, dtype: torch.dtype, gradients: bool, bias: bool) -> None:
        self.value = image.new_zeros((), dtype=dtype)
        self.image = torch.zeros_like(image, dtype=dtype) if gradients else None
        self.bias = self.value.clone() if bias else None
        self.texts: list[Tensor] = []

    def begin(self, student: Similarity) -> None:
        """Go on to the next caption set."""
        self.student = student
        if self.image is not None:
            self.texts.append(torch.zeros_like(student.text, dtype=student.dtype))

    def add(self, tile: Tile, by_logits: Tensor) -> None:
        """Add what the gradient by a tile's logits makes."""
        assert self.image is not None, "gradients are wanted"
        self.image[tile.rows].addmm_(by_logits, self.student.texts(tile.columns))
        self.texts[-1][tile.columns].addmm_(by_logits.mT, tile.images(0))
        if self.bias is not None:
            self.bias += by_logits.sum()

    def end(self, processes: Processes) -> None:
        """Leave the caption set: each process keeps what all found for its own texts."""
        if self.texts:
            self.texts[-1] = processes.scatter_sum(self.texts[-1])

    def finish(self, divisor: float, processes: Processes) -> list[Tensor]:
        """Return the value and the gradients by image, each caption set, and scale and bias as one vector, divided.

        The scale's and the bias's are the mean over the processes already: each process holds a copy of them.
        """
        value = self.value.div_(divisor)
        if self.image is None:
            return [value]
        single = [(self.image * self.student.image).sum()] + ([] if self.bias is None else [self.bias])
        shared = processes.mean(torch.stack(single).div_(divisor))
        image = self.image.mul_(self.student.image_factor).div_(divisor)
        return [value, image, *(text.div_(divisor) for text in self.texts), shared]
