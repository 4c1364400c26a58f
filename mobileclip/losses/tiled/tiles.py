"""Computes similarity matrices in tiles that are discarded after use: memory grows with the batch, not its square."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mobileclip.losses.tiled.collectives import Processes

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
        self.image_factor = torch.as_tensor(scale, dtype=dtype, device=image.device).expand(len(image), 1)
        self.text_factor: Tensor | None = None
        if normalize:
            self.image_factor = self.image_factor / _length(image, dtype)
            self.text_factor = _length(text, dtype).reciprocal_()

    def images(self, rows: slice) -> Tensor:
        """Return the images of a tile, scaled."""
        return self.image[rows].to(self.dtype) * self.image_factor[rows]

    def texts(self, columns: slice) -> Tensor:
        """Return the texts of a tile."""
        block = self.text[columns].to(self.dtype)
        return block if self.text_factor is None else block * self.text_factor[columns]


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
        offset: row of this process's first image in the whole batch.
    """

    rows: slice
    columns: slice
    offset: int

    def shaped(self, memory: Tensor) -> Tensor:
        """Return scratch memory in the shape of this tile."""
        height, width = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return memory[: height * width].view(height, width)

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
        num_rows, num_columns = len(similarities[0].image), len(similarities[0].text)
        self.like = similarities[0].image.new_empty(0, dtype=similarities[0].dtype)
        cells = max(1, TILE_BYTES // self.like.element_size())
        height = min(num_rows, max(math.isqrt(cells), cells // num_columns))
        width = min(num_columns, max(1, cells // height))
        self.cells = height * width
        self.tiles = [
            Tile(rows, columns, offset)
            for rows in _even_slices(num_rows, height)
            for columns in _even_slices(num_columns, width)
        ]
        self._kept: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)

    def scratch(self) -> Tensor:
        """Return memory for one tile."""
        return self.like.new_empty(self.cells)

    def logits(self, tile: Tile, index: int, *, out: Tensor) -> Tensor:
        """Return the logits of the similarity `index`, in scratch memory.

        The second and last call for an only tile returns what the first computed.
        """
        if index in self._kept:
            return self._kept.pop(index)
        only = len(self.tiles) == 1
        one = self.similarities[index]
        memory = tile.shaped(self.scratch() if only else out)
        product = torch.mm(one.images(tile.rows), one.texts(tile.columns).mT, out=memory)
        if only:
            self._kept[index] = product
        return product


def _even_slices(length: int, size: int) -> list[slice]:
    num_parts = math.ceil(length / size)
    edges = [length * part // num_parts for part in range(num_parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def log_normalizers(tiling: Tiling, indices: Sequence[int], processes: Processes) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the log-sum-exp of some similarity matrices over their rows and over their columns, by index.

    Shape: (B, 1), of this process's images over all texts; (N,), of all texts over the images of all processes.
    """
    num_rows, num_columns = tiling.tiles[-1].rows.stop, tiling.tiles[-1].columns.stop
    found = {
        index: tuple(tiling.like.new_full(shape, -math.inf) for shape in ((num_rows, 1), (1, num_columns)))
        for index in indices
    }
    memory, spare = tiling.scratch(), tiling.scratch()
    for tile in tiling if found else ():
        for index, (over_texts, over_images) in found.items():
            logits = tiling.logits(tile, index, out=memory)
            for dim, known in ((1, over_texts[tile.rows]), (0, over_images[:, tile.columns])):
                largest = logits.amax(dim=dim, keepdim=True)
                total = torch.sub(logits, largest, out=tile.shaped(spare)).exp_().sum(dim=dim, keepdim=True)
                torch.logaddexp(known, total.log_().add_(largest), out=known)
    return {index: (rows, processes.logsumexp(columns[0])) for index, (rows, columns) in found.items()}
