"""Contrastive training on pictures with class labels: pictures of one class are no wrong answers for each other.

A contrastive loss takes every other text of the batch for wrong. With class labels that is false as soon as a class
comes twice. The right targets share the probability among all the texts, or pictures, of the class. They are what
distillation learns from a teacher who knows the labels and nothing else: its embedding of a picture, and of a prompt,
has a one at the class and zeros elsewhere. So the reinforced loss serves, exact and on any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
import torch
import torch.nn.functional as F

from mobileclip.data.loading.batch import ChangedBatches
from mobileclip.losses import ReinforcedLossSpec, losses
from mobileclip.strict import strict

if TYPE_CHECKING:
    from mobileclip.data import BatchSource, ReinforcedBatch

# Between two classes the teacher's logits differ by this: in float32, exp(-100) beside 1 is nothing.
_LABEL_LOGIT_SCALE = 100.0


@losses.register("labelled_contrastive")
@attrs.frozen(kw_only=True, field_transformer=strict)
class LabelledContrastiveSpec(ReinforcedLossSpec):
    """The contrastive loss with targets shared within a class: distillation from a teacher that knows the labels.

    Examples:
        >>> isinstance(labelled_contrastive(10), LabelledContrastiveSpec)
        True
    """

    @property
    def term_names(self) -> tuple[str | None, str | None]:
        """There is one term, and it is contrastive."""
        return None, "contrastive"


def labelled_contrastive(num_classes: int) -> LabelledContrastiveSpec:
    """Return the loss of batches that `with_labels` made: both cross-entropies with targets shared within a class.

    For picture i the target is 1/n at the n texts of its class and 0 elsewhere, and for texts the same. Reported is the
    divergence from the targets: zero at its best, where the cross-entropy would be their entropy. Where every class
    comes once, it is the contrastive loss. Where all texts of a class are one text, as with a single template, its
    gradient is that loss's, as it makes no difference which of equal texts is called right; with several it is not.

    Args:
        num_classes: classes in all, at least 2.

    Raises:
        ValueError: if there are fewer than two classes.

    Source: Khosla et al., "Supervised Contrastive Learning", Eq. 2, with texts in place of augmented pictures; Yang et
        al., "Unified Contrastive Learning in Image-Text-Label Space", Eq. 2.
    """
    if num_classes < 2:
        raise ValueError(f"a contrastive loss tells classes apart, so there are at least two; got {num_classes}")
    return LabelledContrastiveSpec(
        teacher_dims=(num_classes,),
        teacher_logit_scales=(_LABEL_LOGIT_SCALE,),
        contrastive_weight=0.0,
        distill_weight=1.0,
    )


def with_labels(
    batches: BatchSource[ReinforcedBatch], labels: Mapping[str, int], *, num_classes: int
) -> BatchSource[ReinforcedBatch]:
    """Return the same batches with the teacher who knows the labels: what `labelled_contrastive` learns from.

    Args:
        batches: of pictures whose texts name their class.
        labels: the classes of the samples by their keys, from 0.
        num_classes: classes in all.

    Raises:
        ValueError: while iterating, if a key has no label or the label is no class.
    """
    return _Labelled(batches=batches, labels=labels, num_classes=num_classes)


@attrs.frozen(kw_only=True, eq=False)
class _Labelled(ChangedBatches["ReinforcedBatch"]):
    batches: BatchSource[ReinforcedBatch]
    labels: Mapping[str, int]
    num_classes: int

    def changed(self, batch: ReinforcedBatch) -> ReinforcedBatch:
        codes = F.one_hot(self._indices(batch.keys), self.num_classes).float().to(batch.image.device)
        return attrs.evolve(batch, teacher_image=codes, teacher_text=codes)

    def _indices(self, keys: tuple[str, ...]) -> torch.Tensor:
        unknown = [key for key in keys if not 0 <= self.labels.get(key, -1) < self.num_classes]
        if unknown:
            raise ValueError(
                f"sample {unknown[0]!r} has no label among the {self.num_classes} classes; the labels belong to other "
                "data, or the data changed"
            )
        return torch.tensor([self.labels[key] for key in keys])
