"""CoCa's loss: the contrastive loss plus the negative log-likelihood of captions."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mobileclip.losses.reinforced import ContrastiveLossSpec
from mobileclip.losses.specs import LossSpec, LossTerms, compute_dtype, losses
from mobileclip.losses.tiled import Processes
from mobileclip.strict import strict


@losses.register("captions")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CaptionLossSpec(LossSpec):
    """The options of `CaptionLoss`.

    Args:
        contrastive_weight: weight of the contrastive term, at least 0; 0 skips the term.
        caption_weight: weight of the caption term, above 0; open_clip and the paper use twice the contrastive weight.
        pad_id: padding token id; the caption term ignores padding labels.

    Examples:
        >>> CaptionLossSpec().term_names
        ('contrastive', 'captions')
    """

    contrastive_weight: float = attrs.field(default=1.0, validator=validators.ge(0))
    caption_weight: float = attrs.field(default=2.0, validator=validators.gt(0))
    pad_id: int = attrs.field(default=0, validator=validators.ge(0))

    @property
    def needs_teachers(self) -> bool:
        """False: the loss needs no teachers."""
        return False

    @property
    def term_names(self) -> tuple[str | None, str]:
        """Names of the terms with positive weight; the caption term replaces the distillation term of other losses."""
        return "contrastive" if self.contrastive_weight > 0 else None, "captions"

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> CaptionLoss:
        """Return the loss; see `LossSpec.build`."""
        return CaptionLoss(self, process_group=process_group)


class CaptionLoss(nn.Module):
    """CLIP's loss plus the mean negative log-likelihood per caption token: `a L_contrastive + b L_captions`.

    Shape: image, text (B, D); logits (B, L, V); labels (B, L) -> scalars.

    Args:
        spec: options of the loss.
        process_group: processes that share the batch; see `LossSpec.build`.

    Source: Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", Eq. 3 to 5.

    Examples:
        >>> unit, logits, labels = torch.eye(4), torch.zeros(4, 3, 8), torch.tensor([[5, 7, 0]] * 4)
        >>> terms = CaptionLoss()(image=unit, text=unit, logit_scale=100.0, logits=logits, labels=labels)
        >>> round(terms.distillation.item(), 4)  # 8 equally likely ids: 2 log(8)
        4.1589
    """

    def __init__(
        self, spec: CaptionLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.spec = CaptionLossSpec() if spec is None else spec
        self.group_name = None if process_group is None else process_group.group_name
        weight = self.spec.contrastive_weight
        contrastive = ContrastiveLossSpec(contrastive_weight=weight) if weight else None
        self.contrastive = None if contrastive is None else contrastive.build(process_group=process_group)

    def forward(
        self, *, image: Tensor, text: Tensor, logit_scale: Tensor | float, logits: Tensor, labels: Tensor
    ) -> LossTerms:
        """Return the loss of a batch.

        Args:
            image: image embeddings of unit length.
            text: text embeddings of unit length, in the order of the images.
            logit_scale: inverse temperature, the factor of the similarities.
            logits: predicted logits of the caption tokens.
            labels: token ids of the captions, the targets of `logits`.

        Raises:
            ValueError: if batch sizes or embedding dims differ, or `logits` does not have one row per label.
        """
        if logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"logits have shape {tuple(logits.shape)}, expected one row per label in labels of shape "
                f"{tuple(labels.shape)}"
            )
        sums = self.sums(logits, labels)
        return self.of_sums(image=image, text=text, logit_scale=logit_scale, sums=sums, labels=labels)

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the negative log-likelihood of every caption, `(B,)`, so that micro-batches need not store logits."""
        with torch.autocast(logits.device.type, enabled=False):
            flat = logits.to(compute_dtype(logits)).flatten(0, -2)
            each = F.cross_entropy(flat, labels.flatten(), ignore_index=self.spec.pad_id, reduction="none")
        return each.view(labels.shape).sum(dim=-1)

    def of_sums(
        self, *, image: Tensor, text: Tensor, logit_scale: Tensor | float, sums: Tensor, labels: Tensor
    ) -> LossTerms:
        """Return the loss of a batch from the result of `sums`; see `forward` for the other arguments."""
        contrastive = sums.new_zeros(())
        if self.contrastive is not None:
            contrastive = self.contrastive(image=image, text=text, logit_scale=logit_scale).total
        processes = Processes(self.group_name)
        counts = processes.gather((labels != self.spec.pad_id).sum()[None])
        # This process's share of the mean over all caption tokens.
        captions = self.spec.caption_weight * processes.size * sums.sum() / counts.sum().clamp(min=1)
        return LossTerms(contrastive, captions, contrastive + captions)
