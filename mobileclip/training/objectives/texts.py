"""What a text tower minimises that learns another one's embeddings, from texts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from mobileclip.data import Batch, TextBatch
from mobileclip.losses import LossTerms, TextDistillationLossSpec
from mobileclip.training.objectives.objective import Objective, build_objective, wide

if TYPE_CHECKING:
    from mobileclip.training.distributed import World
    from mobileclip.training.spec import TrainingSpec


class TextDistillationObjective(Objective):
    """The objective of a distilled text tower: its loss on texts with a teacher's embeddings.

    Args:
        spec: how to train; its loss is `TextDistillationLossSpec`.
        model: the text tower: from ids to embeddings as wide as the teacher's.
        world: the processes that train it together.

    Raises:
        ValueError: see `Objective`, if the model embeds images, and if the spec has choices that are of images.
    """

    def __init__(self, spec: TrainingSpec, *, model: nn.Module, world: World) -> None:
        if hasattr(model.spec, "image"):
            raise ValueError(
                f"TextDistillationLossSpec is of a text tower, and the model is a {type(model).__name__}; train its "
                "text_encoder alone, whose spec is a TextEncoderSpec"
            )
        of_images = [name for name in ("range_augment", "channels_last") if getattr(spec, name)]
        if of_images:
            raise ValueError(f"{' and '.join(of_images)} is of images, and a text tower sees none; leave it out")
        super().__init__(spec, model=model, world=world)

    @property
    def towers(self) -> tuple[nn.Module, ...]:
        """The text tower."""
        return (self.model,)

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[Tensor, ...]:
        """Return the loss's relations, its cosine, and their sum."""
        del progress
        if not isinstance(batch, TextBatch):
            raise ValueError(
                "TextDistillationLossSpec needs texts with their teacher's embeddings, but the batches are "
                f"{type(batch).__name__}; mobileclip.data.TextPipelineSpec makes them"
            )
        with self.autocast(batch.text.device):
            (embedding,) = self.in_pieces(lambda text: (self.model(text),), self.model, batch.text)
        terms: LossTerms = self.loss(wide(embedding), batch.teacher_text)
        return terms.contrastive, terms.distillation, terms.total


@build_objective.register(TextDistillationLossSpec)
def _(loss: TextDistillationLossSpec, *, spec: TrainingSpec, model: nn.Module, world: World) -> Objective:
    del loss
    return TextDistillationObjective(spec, model=model, world=world)
