"""The terms of the loss and their gradients, tile by tile.

The gradient by a logit is short for every term: the student's probability less its target, `1` on the diagonal or the
teachers'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mobileclip.losses.embeddings import EmbeddingBatch, compute_dtype
from mobileclip.losses.tiled.collectives import Processes
from mobileclip.losses.tiled.tiles import Similarity, Tile, Tiling, log_normalizers


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
        self.bias = [self.value.clone()] if bias else []
        self.texts: list[Tensor] = []

    def begin(self, student: Similarity) -> None:
        """Go on to the next caption set."""
        self.student = student
        if self.image is not None:
            self.texts.append(torch.zeros_like(student.text, dtype=student.dtype))

    def add(self, tile: Tile, by_logits: Tensor) -> None:
        """Add what the gradient by a tile's logits makes, where gradients are wanted."""
        if self.image is None:
            return
        self.image[tile.rows].addmm_(by_logits, self.student.texts(tile.columns))
        self.texts[-1][tile.columns].addmm_(by_logits.mT, self.student.images(tile.rows))
        if self.bias:
            self.bias[0] += by_logits.sum()

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
        by_scale = (self.image * self.student.image).sum()
        shared = processes.mean(torch.stack([by_scale, *self.bias]).div_(divisor))
        image = self.image.mul_(self.student.image_factor).div_(divisor)
        return [value, image, *(text.div_(divisor) for text in self.texts), shared]


class CaptionSet:
    """The similarities of student and teachers for one caption set, computed tile by tile.

    Args:
        batch: this process's embeddings.
        text: (B, D), the student's texts of the set.
        teacher_text: (B, sum of teacher dims), the teachers'; None where there are none.
        release: whether a sigmoid loss distils as the release does.
        processes: who shares the batch.
    """

    def __init__(
        self, batch: EmbeddingBatch, text: Tensor, teacher_text: Tensor | None, *, release: bool, processes: Processes
    ) -> None:
        image, dtype = batch.image, compute_dtype(batch.image)
        scale = batch.logit_scale.to(image.device, dtype).reshape(())
        self.student = Similarity(image, processes.gather(text), scale, dtype=dtype)
        similarities = [self.student]
        if batch.teacher_image is not None and teacher_text is not None:
            embeddings = (batch.teacher_image, processes.gather(teacher_text))
            parts = (torch.split(one, list(batch.teacher_dims), dim=1) for one in embeddings)
            for image_k, text_k, scale_k in zip(*parts, batch.teacher_logit_scales, strict=True):
                similarities.append(Similarity(image_k, text_k, scale_k, dtype=dtype, normalize=True))
        self.tiling = Tiling(similarities, offset=processes.rank * len(image))
        self.bias, self.release = batch.logit_bias, release
        self.teachers = list(enumerate(batch.teacher_biases, 1))
        softmaxes = [index for index, bias in ((0, self.bias), *self.teachers) if bias is None]
        self.normalizers = log_normalizers(self.tiling, softmaxes, processes)
        for index, _ in self.teachers if self.bias is None else ():
            for normalizer in self.normalizers[index]:  # so that the teachers' softmaxes sum to their mean
                normalizer.add_(math.log(len(self.teachers)))
        # For the student's logits and softmaxes, the teachers', and the two means of the latter.
        self.memory = [self.tiling.scratch() for _ in range(6 if self.teachers else 2)]

    def add_to(self, contrastive: TermSum | None, distillation: TermSum | None) -> None:
        """Add the terms that are wanted, times the batch, and times two for the softmax losses."""
        for tile in self.tiling:
            if self.bias is None:
                self._add_softmaxes(tile, contrastive, distillation)
            else:
                self._add_sigmoids(tile, self.bias, contrastive, distillation)

    def _add_softmaxes(self, tile: Tile, contrastive: TermSum | None, distillation: TermSum | None) -> None:
        over_texts, over_images = self._log_softmaxes(tile, 0, self.memory[:2])
        if contrastive is not None:
            contrastive.value -= tile.diagonal(over_texts).sum() + tile.diagonal(over_images).sum()
        if distillation is not None:
            (first, _), *others = self.teachers
            targets = [found.exp_() for found in self._log_softmaxes(tile, first, self.memory[4:])]
            for index, _ in others:
                for target, found in zip(targets, self._log_softmaxes(tile, index, self.memory[2:4]), strict=True):
                    target.add_(found.exp_())
            for target, own in zip(targets, (over_texts, over_images), strict=True):
                distillation.value += self._divergence(tile, target, own)
        if not any(one is not None and one.image is not None for one in (contrastive, distillation)):
            return
        probabilities = over_texts.exp_().add_(over_images.exp_())
        if distillation is not None:
            distillation.add(tile, torch.sub(probabilities, targets[0].add_(targets[1]), out=targets[1]))
        if contrastive is not None:
            tile.diagonal(probabilities).sub_(2)
            contrastive.add(tile, probabilities)

    def _log_softmaxes(self, tile: Tile, index: int, memory: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logarithms of probabilities, images over texts and texts over images, in two pieces of memory."""
        rows, columns = self.normalizers[index]
        logits = self.tiling.logits(tile, index, out=memory[0])
        over_texts = torch.sub(logits, rows[tile.rows], out=tile.shaped(memory[1]))
        return over_texts, logits.sub_(columns[tile.columns])

    def _divergence(self, tile: Tile, targets: Tensor, log_probabilities: Tensor) -> Tensor:
        """Return the sum of `targets * (log(targets) - log_probabilities)`; a target of zero adds nothing."""
        memory = tile.shaped(self.memory[3])
        torch.clamp_min(targets, torch.finfo(targets.dtype).tiny, out=memory)
        return memory.log_().sub_(log_probabilities).mul_(targets).sum()

    def _add_sigmoids(
        self, tile: Tile, bias: Tensor, contrastive: TermSum | None, distillation: TermSum | None
    ) -> None:
        logits = self.tiling.logits(tile, 0, out=self.memory[0]).add_(bias)
        if contrastive is not None:
            contrastive.value += _softplus(logits).sum() - tile.diagonal(logits).sum()
            by_logits = torch.sigmoid(logits, out=tile.shaped(self.memory[1]))
            tile.diagonal(by_logits).sub_(1)
            contrastive.add(tile, by_logits)
        if distillation is None:
            return
        targets = self._probabilities(tile)
        if self.release:
            signs = targets.mul_(2).sub_(1)
            product = torch.mul(signs, logits, out=tile.shaped(self.memory[2])).neg_()
            distillation.value += _softplus(product).sum()
            by_logits = product.sigmoid_().mul_(signs).neg_()
        else:
            entropy = torch.special.xlog1py(1 - targets, -targets).add_(torch.special.xlogy(targets, targets))
            distillation.value += entropy.add_(_softplus(logits)).sub_(targets * logits).sum()
            by_logits = logits.sigmoid_().sub_(targets)
        distillation.add(tile, by_logits)

    def _probabilities(self, tile: Tile) -> Tensor:
        """Return the mean of the teachers' probabilities that a pair matches."""
        total = tile.shaped(self.memory[4]).zero_()
        for index, bias in self.teachers:
            if bias is None:
                for found in self._log_softmaxes(tile, index, self.memory[2:4]):
                    total.add_(found.exp_(), alpha=0.5)
            else:
                total.add_(self.tiling.logits(tile, index, out=self.memory[2]).add_(bias).sigmoid_())
        # Rounding may bring a sure teacher's softmax above one, where the entropy has no value.
        return total.div_(len(self.teachers)).clamp_max_(1)


def _softplus(logits: Tensor) -> Tensor:
    return F.logsigmoid(-logits).neg_()
