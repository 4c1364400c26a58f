"""The module that every loss of this package is: its choices, its bias where it has one, and the call."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from mobileclip.losses.formulas import compute_dtype
from mobileclip.losses.specs import LossTerms, PairLossSpec
from mobileclip.losses.tiled.operation import evaluate


class TiledLoss(nn.Module):
    """A loss over all pairs of a batch, summed over the real and, where given, the synthetic captions.

    Similarities and what follows are computed in float32, or float64 where the student's embeddings have it. Exact at
    any batch; memory grows with the batch, not with its square. `torch.compile` takes it as one operation. Gradients
    are computed with the value, so that a second derivative is refused: for that there is `dense_loss`.

    Shape: image, text, syn_text (B, D); teacher_image, teacher_text, teacher_syn_text (B, sum of teacher_dims) ->
    scalars.

    Args:
        spec: its choices.
        process_group: the processes that the batch is spread over; see `LossSpec.build`.
    """

    def __init__(self, spec: PairLossSpec, *, process_group: distributed.ProcessGroup | None = None) -> None:
        super().__init__()
        self.spec = spec
        # By its name: an operation takes plain values, and the loss can be copied.
        self.group_name = None if process_group is None else process_group.group_name
        bias = spec.initial_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def forward(
        self,
        *,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor | float,
        teacher_image: Tensor | None = None,
        teacher_text: Tensor | None = None,
        syn_text: Tensor | None = None,
        teacher_syn_text: Tensor | None = None,
    ) -> LossTerms:
        """Return the loss of a batch.

        Args:
            image: the student's unit-length image embeddings.
            text: the student's unit-length embeddings of the real captions.
            logit_scale: the student's inverse temperature, after `exp`.
            teacher_image: the teachers' embeddings of the same augmented images, concatenated; the teachers' are not
                looked at where nothing is distilled.
            teacher_text: the teachers' embeddings of the real captions, concatenated.
            syn_text: the student's unit-length embeddings of the synthetic captions.
            teacher_syn_text: the teachers' embeddings of the synthetic captions, concatenated.

        Raises:
            ValueError: if batches or dims disagree, teachers are missing, or only one of `syn_text` and
                `teacher_syn_text` is given where it distils.
        """
        spec = self.spec
        scale = logit_scale if isinstance(logit_scale, Tensor) else torch.tensor(logit_scale, dtype=torch.float64)
        student = (image, text, syn_text, scale, self.logit_bias)
        teachers = (None if one is None else one.detach() for one in (teacher_image, teacher_text, teacher_syn_text))
        ensemble = (spec.teacher_dims, spec.teacher_logit_scales, spec.teacher_biases)
        gradients = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in student)
        terms = evaluate(
            *student,
            *teachers,
            *(ensemble if spec.needs_teachers else ((), (), ())),
            spec.contrastive_weight > 0,
            gradients,
            self.group_name,
        )
        values = iter(terms)
        contrastive, distillation = (
            weight * next(values) if weight > 0 else torch.zeros((), dtype=compute_dtype(image), device=image.device)
            for weight in (spec.contrastive_weight, spec.distill_weight)
        )
        return LossTerms(contrastive, distillation, contrastive + distillation)

    def extra_repr(self) -> str:
        """Return the choices as `print` shows them."""
        return repr(self.spec)
