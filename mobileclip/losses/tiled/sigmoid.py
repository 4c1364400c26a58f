"""The sigmoid losses and their gradients, tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.losses.tiled.gradients import Term
from mobileclip.losses.tiled.tiles import PairGradients, Tile, Tiling, log_normalizers, shaped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mobileclip.losses.tiled.processes import Processes
    from mobileclip.losses.tiled.tiles import Normalizers, Similarity


def sigmoid_terms(
    student: Similarity,
    teachers: Sequence[Similarity],
    *,
    bias: Tensor,
    teacher_biases: Sequence[float | None],
    contrastive: bool,
    gradients: bool,
    processes: Processes,
) -> list[Term]:
    """Return the sigmoid loss, where it is asked for, and the distillation term, where there are teachers.

    The gradient by a logit is its probability less the target: 1 on the diagonal and 0 elsewhere, or the teachers'
    probability.

    Args:
        student: similarity of the student's embeddings, this process's images with all texts.
        teachers: those of the teachers' embeddings.
        bias: what is added to the student's logits.
        teacher_biases: what is added to the teachers'; None for one that was trained with a softmax.
        contrastive: whether the first term is wanted.
        gradients: whether gradients are wanted.
        processes: who shares the batch.
    """
    batch = student.image.shape[0]
    tiling = Tiling((student, *teachers), offset=processes.rank * batch)
    ensemble = TeacherSigmoids(tiling, teacher_biases, processes) if teachers else None
    loss, divergence = tiling.like.new_zeros(()), tiling.like.new_zeros(())
    by_loss = PairGradients(student, bias=True) if gradients and contrastive else None
    by_divergence = PairGradients(student, bias=True) if gradients and ensemble is not None else None
    memory, spare = tiling.scratch(), tiling.scratch()
    for tile in tiling:
        logits = tiling.logits(tile, 0, out=memory).add_(bias)
        no_match = _softplus(logits)
        loss += no_match.sum() - tile.diagonal(logits).sum()
        targets = ensemble.targets(tile) if ensemble is not None else None
        if targets is not None:
            divergence += (_negative_entropy(targets).add_(no_match).sub_(targets * logits)).sum()
        if not gradients:
            continue
        probabilities = torch.sigmoid(logits, out=shaped(spare, tile))
        if by_divergence is not None and targets is not None:
            by_divergence.add(tile, torch.sub(probabilities, targets, out=logits))
        if by_loss is not None:
            tile.diagonal(probabilities).sub_(1)
            by_loss.add(tile, probabilities)
    terms = []
    for wanted, value, sums in ((contrastive, loss, by_loss), (ensemble is not None, divergence, by_divergence)):
        if wanted:
            terms.append(Term(value.div_(batch), None if sums is None else sums.finish(batch, processes)))
    return terms


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
