"""What a captioner minimises: CLIP's loss beside the likelihood of captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from mobileclip.data import Batch, ReinforcedBatch
from mobileclip.encoders import CoCa
from mobileclip.losses import CaptionLossSpec, LossTerms
from mobileclip.training.objectives.objective import Objective, Rows, build_objective, wide, with_mean

if TYPE_CHECKING:
    from mobileclip.training.distributed import World
    from mobileclip.training.spec import TrainingSpec


class CaptionObjective(Objective):
    """The objective of a captioner: its loss on images with one caption each.

    Args:
        spec: how to train; its loss is `CaptionLossSpec`.
        model: the captioner.
        world: the processes that train it together.

    Raises:
        ValueError: see `Objective`, and if the model writes no captions.
    """

    model: CoCa

    def __init__(self, spec: TrainingSpec, *, model: nn.Module, world: World) -> None:
        if not isinstance(model, CoCa):
            raise ValueError(
                f"CaptionLossSpec is of captioners, and the model is a {type(model).__name__}; "
                "mobileclip.encoders.CoCaSpec builds one"
            )
        super().__init__(spec, model=model, world=world)

    @property
    def towers(self) -> tuple[nn.Module, ...]:
        """The image tower, the text tower and the decoder."""
        return self.model.image_encoder, self.model.text_encoder, self.model.decoder

    @property
    def uses_all_weights(self) -> bool:
        """With captions alone, the logit scale and what makes the embeddings get no gradient."""
        return self.spec.loss.contrastive_weight > 0  # type: ignore[attr-defined, no-any-return]

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[Tensor, ...]:
        """Return the loss's contrastive term, its caption term, and the sum of all that is minimised."""
        if not isinstance(batch, ReinforcedBatch) or batch.syn_text is not None:
            given = "two captions of each" if isinstance(batch, ReinforcedBatch) else type(batch).__name__
            raise ValueError(
                f"a captioner learns from images with one caption each, but the batches are {given}; take captions "
                "'real', 'synthetic' or 'either'"
            )
        rows = self.image_rows(batch.image, progress)
        with self.autocast(batch.image.device):
            image, text, sums, *augmentation = self.in_pieces(self._encode, self.model, batch.text, *rows)
        terms: LossTerms = self.loss.of_sums(  # type: ignore[operator]
            image=image,
            text=text,
            logit_scale=self.model.logit_scale.reshape(()).exp(),
            sums=sums,
            labels=batch.text[:, 1:],
        )
        return terms.contrastive, terms.distillation, with_mean(terms.total, augmentation)

    def _encode(self, text: Tensor, image: Tensor, *numbers: Rows) -> tuple[Tensor, ...]:
        """Return both embeddings and the captions' likelihoods; of the logits, which are large, nothing is kept."""
        image, *augmentation = self.images_of(image, *numbers)
        out = self.model(image, text)
        return wide(out.image), wide(out.text), self.loss.sums(out.logits, out.labels), *augmentation  # type: ignore[operator]


@build_objective.register(CaptionLossSpec)
def _(loss: CaptionLossSpec, *, spec: TrainingSpec, model: nn.Module, world: World) -> CaptionObjective:
    del loss
    return CaptionObjective(spec, model=model, world=world)
