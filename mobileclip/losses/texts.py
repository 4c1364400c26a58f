"""A loss that trains a text tower on the text embeddings of another model."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mobileclip.losses.specs import LossSpec, LossTerms, check_pair, compute_dtype, losses
from mobileclip.losses.tiled import Processes
from mobileclip.strict import strict


@losses.register("text_distillation")
@attrs.frozen(kw_only=True, field_transformer=strict)
class TextDistillationLossSpec(LossSpec):
    """The options of `TextDistillationLoss`.

    Args:
        relation_weight: weight of the squared errors of similarities within the batch, at least 0; 0 skips the term.

    Examples:
        >>> TextDistillationLossSpec(relation_weight=10).term_names
        ('relations', 'cosine')
    """

    relation_weight: float = attrs.field(default=0.0, validator=validators.ge(0))

    @property
    def needs_teachers(self) -> bool:
        """True: the teacher's text embeddings are the targets of the loss."""
        return True

    @property
    def term_names(self) -> tuple[str | None, str]:
        """Names of the terms with positive weight; the relation term replaces the contrastive term of other losses."""
        return "relations" if self.relation_weight > 0 else None, "cosine"

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> TextDistillationLoss:
        """Return the loss; see `LossSpec.build`."""
        return TextDistillationLoss(self, process_group=process_group)


class TextDistillationLoss(nn.Module):
    """Distance between two models' text embeddings: `mean(1 - s_i . t_i) + w mean((s_i . s_j - t_i . t_j)^2)`.

    The loss normalises the student's embeddings `s` and the teacher's embeddings `t`. The relation term, with weight
    `w`, is the mean over all pairs `i != j` in the batch. The student needs no temperature, since the student replaces
    the teacher's text tower.

    Shape: student, teacher (B, D) -> scalars.

    Args:
        spec: options of the loss.
        process_group: processes that share the batch; see `LossSpec.build`.

    Source: the cosine term follows the distillation of text encoders by Carlsson et al., "Cross-lingual and
        Multilingual CLIP", 2022, who use a squared error; the relation term follows Park et al., "Relational Knowledge
        Distillation", 2019.

    Examples:
        >>> loss, teacher = TextDistillationLoss(), nn.functional.normalize(torch.randn(8, 4), dim=1)
        >>> abs(loss(teacher, 3 * teacher).total.item()) < 1e-6
        True
        >>> round(loss(teacher, -teacher).total.item(), 4)
        2.0
    """

    def __init__(
        self, spec: TextDistillationLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.spec = TextDistillationLossSpec() if spec is None else spec
        self.group_name = None if process_group is None else process_group.group_name

    def forward(self, student: Tensor, teacher: Tensor) -> LossTerms:
        """Return the loss of a batch.

        Args:
            student: the student's text embeddings, (B, D).
            teacher: the teacher's embeddings of the student's texts, (B, D).

        Raises:
            ValueError: if batch sizes or embedding dims differ, or the batch is empty.
        """
        check_pair(student, teacher, ("student", "teacher"))
        dtype = compute_dtype(student)
        with torch.autocast(student.device.type, enabled=False):
            student = F.normalize(student.to(dtype), dim=1)
            teacher = F.normalize(teacher.detach().to(dtype), dim=1)
            cosine = (1 - (student * teacher).sum(dim=1)).mean()
            relations = cosine.new_zeros(())
            if self.spec.relation_weight > 0:
                relations = self.spec.relation_weight * self._relations(student, teacher)
        return LossTerms(relations, cosine, relations + cosine)

    def _relations(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean squared error of the similarities between this process's texts and all other texts."""
        processes = Processes(self.group_name)
        others, of_teacher = processes.gather(student.detach()), processes.gather(teacher)
        if len(others) < 2:
            return student.new_zeros(())
        # The similarity of a text with itself is 1 for both models, and so contributes zero.
        squares = (student @ others.mT - teacher @ of_teacher.mT).square().sum(dim=1)
        value = squares.mean() / (len(others) - 1)
        # Each pair occurs in two rows. The columns are detached; their gradient would be the same, hence the factor 2.
        return 2 * value - value.detach()
