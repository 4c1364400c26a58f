"""The sigmoid losses and their gradients, tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.losses.tiled.tiles import Tile, Tiling, log_normalizers, shaped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mobileclip.losses.tiled.processes import Processes
    from mobileclip.losses.tiled.tiles import Normalizers, Similarity, TermSum


def add_sigmoid_terms(
    contrastive: TermSum | None,
    distillation: TermSum | None,
    *,
    student: Similarity,
    teachers: Sequence[Similarity],
    bias: Tensor,
    teacher_biases: Sequence[float | None],
    gradients: bool,
    processes: Processes,
) -> None:
    """Add a caption set's sigmoid loss and distillation term, times the batch, with their gradients.

    The gradient by a logit is its probability less the target: 1 on the diagonal and 0 elsewhere, or the teachers'
    probability.

    Args:
        contrastive: what the first is added to; None where it is not wanted.
        distillation: what the second is added to; None where there are no teachers.
        student: similarity of the student's embeddings, this process's images with all texts.
        teachers: those of the teachers' embeddings.
        bias: what is added to the student's logits.
        teacher_biases: what is added to the teachers'; None for one that was trained with a softmax.
        gradients: whether gradients are wanted.
        processes: who shares the batch.
    """
    tiling = Tiling((student, *teachers), offset=processes.rank * student.image.shape[0])
    ensemble = TeacherSigmoids(tiling, teacher_biases, processes) if teachers else None
    memory, spare = tiling.scratch(), tiling.scratch()
    for tile in tiling:
        logits = tiling.logits(tile, 0, out=memory).add_(bias)
        no_match = _softplus(logits)
        if contrastive is not None:
            contrastive.value += no_match.sum() - tile.diagonal(logits).sum()
        if distillation is not None and ensemble is not None:
            targets = ensemble.targets(tile)
            distillation.value += (_negative_entropy(targets).add_(no_match).sub_(targets * logits)).sum()
        if not gradients:
            continue
        probabilities = torch.sigmoid(logits, out=shaped(spare, tile))
        if distillation is not None:
            distillation.add(tile, torch.sub(probabilities, targets, out=logits))
        if contrastive is not None:
            tile.diagonal(probabilities).sub_(1)
            contrastive.add(tile, probabilities)


class TeacherSigmoids:
    """The mean of the teachers' probabilities that a tile's pairs match.

    Args:
        tiling: of the similarities, the student's first.
        biases: the teachers', None for one that was trained with a softmax.
        processes: who shares the batch.
    """

    def __init__(self, tiling: Tiling, biases: Sequence[float | None], processes: Processes) -> None:
        self.tiling = tiling
        self.biases = biases
        softmaxes = [index for index, bias in enumerate(biases, start=1) if bias is None]
        self.normalizers: dict[int, Normalizers] = log_normalizers(tiling, softmaxes, processes) if softmaxes else {}
        self.memory, self.sum = tiling.scratch(), tiling.scratch()

    def targets(self, tile: Tile) -> Tensor:
        """Return them, in scratch memory."""
        total = shaped(self.sum, tile).zero_()
        for index, bias in enumerate(self.biases, start=1):
            logits = self.tiling.logits(tile, index, out=self.memory)
            if bias is not None:
                total.add_(logits.add_(bias).sigmoid_())
                continue
            normalizers = self.normalizers[index]
            total.add_((logits - normalizers.rows[tile.rows]).exp_(), alpha=0.5)
            total.add_(logits.sub_(normalizers.columns[tile.columns]).exp_(), alpha=0.5)
        # Rounding may bring a sure teacher's softmax above one, where the entropy has no value.
        return total.div_(len(self.biases)).clamp_max_(1)


def _softplus(logits: Tensor) -> Tensor:
    return F.logsigmoid(-logits).neg_()


def _negative_entropy(probability: Tensor) -> Tensor:
    other: Tensor = torch.special.xlog1py(1 - probability, -probability)
    return other.add_(torch.special.xlogy(probability, probability))
