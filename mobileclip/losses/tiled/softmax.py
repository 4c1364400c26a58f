"""The softmax losses and their gradients, tile by tile."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mobileclip.losses.tiled.tiles import Tile, Tiling, log_normalizers, shaped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mobileclip.losses.tiled.processes import Processes
    from mobileclip.losses.tiled.tiles import Normalizers, Similarity, TermSum


def add_softmax_terms(
    contrastive: TermSum | None,
    distillation: TermSum | None,
    *,
    student: Similarity,
    teachers: Sequence[Similarity],
    gradients: bool,
    processes: Processes,
) -> None:
    """Add a caption set's contrastive and distillation terms, times twice the batch, with their gradients.

    Two passes over the tiles. The first sums the softmax denominators, images over texts and texts over images, with
    which the second knows every probability in a tile. The gradient by a logit is its two probabilities less the
    targets', `1` each on the diagonal or the teachers'.

    Args:
        contrastive: what the first is added to; None where it is not wanted.
        distillation: what the second is added to; None where there are no teachers.
        student: similarity of the student's embeddings, this process's images with all texts.
        teachers: those of the teachers' embeddings.
        gradients: whether gradients are wanted.
        processes: who shares the batch.
    """
    tiling = Tiling((student, *teachers), offset=processes.rank * student.image.shape[0])
    normalizers = log_normalizers(tiling, range(1 + len(teachers)), processes)
    ensemble = TeacherSoftmaxes(tiling, range(1, 1 + len(teachers)), normalizers) if teachers else None
    memory, spare = tiling.scratch(), tiling.scratch()
    for tile in tiling:
        logits = tiling.logits(tile, 0, out=memory)
        over_texts = torch.sub(logits, normalizers[0].rows[tile.rows], out=shaped(spare, tile))
        over_images = logits.sub_(normalizers[0].columns[tile.columns])
        if contrastive is not None:
            contrastive.value -= tile.diagonal(over_texts).sum() + tile.diagonal(over_images).sum()
        if distillation is not None and ensemble is not None:
            targets = ensemble.targets(tile)
            distillation.value += ensemble.divergence(tile, targets[0], over_texts)
            distillation.value += ensemble.divergence(tile, targets[1], over_images)
        if not gradients:
            continue
        probabilities = over_texts.exp_().add_(over_images.exp_())
        if distillation is not None:
            distillation.add(tile, torch.sub(probabilities, targets[0].add_(targets[1]), out=targets[1]))
        if contrastive is not None:
            tile.diagonal(probabilities).sub_(2)
            contrastive.add(tile, probabilities)


class TeacherSoftmaxes:
    """The mean of teachers' softmaxes in a tile: images over texts, and texts over images.

    Args:
        tiling: of the similarities.
        indices: which of them are the teachers'.
        normalizers: their softmax denominators.
    """

    def __init__(self, tiling: Tiling, indices: Sequence[int], normalizers: dict[int, Normalizers]) -> None:
        self.tiling = tiling
        self.normalizers = {index: normalizers[index] for index in indices}
        self.over_texts, self.over_images = tiling.scratch(), tiling.scratch()
        self.memory = tiling.scratch()

    def targets(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Return both, in scratch memory."""
        over_texts, over_images = shaped(self.over_texts, tile), shaped(self.over_images, tile)
        share = math.log(len(self.normalizers))
        for place, (index, teacher) in enumerate(self.normalizers.items()):
            logits = self.tiling.logits(tile, index, out=self.memory)
            rows, columns = teacher.rows[tile.rows] + share, teacher.columns[tile.columns] + share
            if place == 0:
                torch.sub(logits, rows, out=over_texts).exp_()
                torch.sub(logits, columns, out=over_images).exp_()
            else:
                over_images.add_((logits - columns).exp_())
                over_texts.add_(logits.sub_(rows).exp_())
        return over_texts, over_images

    def divergence(self, tile: Tile, targets: Tensor, log_probabilities: Tensor) -> Tensor:
        """Return the sum of `targets * (log(targets) - log_probabilities)`; a target of zero adds nothing."""
        memory = shaped(self.memory, tile)
        torch.clamp_min(targets, torch.finfo(targets.dtype).tiny, out=memory)
        return memory.log_().sub_(log_probabilities).mul_(targets).sum()
