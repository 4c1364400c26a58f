"""What a classifier minimises: cross entropy with smoothed labels, on images of a batch mixed with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from attrs import validators
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mobileclip.data import Batch, LabelledBatch, MixingSpec
from mobileclip.losses import LossSpec, losses
from mobileclip.strict import strict
from mobileclip.training.objectives.objective import Objective, Rows, build_objective, wide, with_mean

if TYPE_CHECKING:
    from mobileclip.data.augmentation.mixing import Mixture
    from mobileclip.training.distributed import World
    from mobileclip.training.spec import TrainingSpec


@losses.register("cross_entropy")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CrossEntropySpec(LossSpec):
    """Cross entropy over classes: `-sum_c t_c log softmax(logits)_c`, the mean over the batch.

    The target `t` is 1 at the label; where images are mixed, targets are with them. Then every target keeps
    `1 - label_smoothing` of itself, and all classes share the rest.

    Args:
        label_smoothing: share of the targets that all classes have alike, from 0 to below 1.
        mixing: mixup and CutMix; none leaves images as they are.

    Source: FastViT (arXiv 2303.14189), which trains with 0.1, mixup 0.2 and CutMix 1.0; Szegedy et al. 2016, section 7,
        for label smoothing.

    Examples:
        >>> loss = CrossEntropySpec(label_smoothing=0.1).build()
        >>> loss(torch.zeros(2, 4), torch.tensor([0, 3]))  # ln 4, whatever the labels
        tensor(1.3863)
    """

    label_smoothing: float = attrs.field(default=0.0, validator=[validators.ge(0), validators.lt(1)])
    mixing: MixingSpec | None = None

    @property
    def needs_teachers(self) -> bool:
        """Labels are all it needs."""
        return False

    @property
    def term_names(self) -> tuple[str | None, str | None]:
        """It has neither of the terms of image-text losses."""
        return None, None

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> nn.CrossEntropyLoss:
        """Return the loss of logits `(batch, classes)` and labels `(batch,)`, or probabilities of the same shape."""
        del process_group  # the mean over processes is that over their images
        return nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)


class ClassificationObjective(Objective):
    """The objective of a classifier: the cross entropy on batches of images and labels.

    Args:
        spec: how to train; its loss is cross entropy.
        model: the classifier, or another module from images to logits.
        world: the processes that train it together.

    Raises:
        ValueError: see `Objective`, and if the model is of images and texts.
    """

    def __init__(self, spec: TrainingSpec, *, model: nn.Module, world: World) -> None:
        if hasattr(model, "encode_text"):
            raise ValueError(
                f"cross entropy is of classifiers, and the model is a {type(model).__name__}; put its image encoder "
                "into a mobileclip.encoders.Classifier"
            )
        super().__init__(spec, model=model, world=world)
        assert isinstance(spec.loss, CrossEntropySpec), "the loss decides which objective is built"
        self._draw = None if spec.loss.mixing is None else self.not_compiled(spec.loss.mixing.draw)

    @property
    def towers(self) -> tuple[nn.Module, ...]:
        """The image encoder."""
        return (getattr(self.model, "image_encoder", self.model),)

    @property
    def term_names(self) -> tuple[str | None, ...]:
        """Its one term is the sum."""
        return ()

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[Tensor, ...]:
        """Return the loss alone."""
        if not isinstance(batch, LabelledBatch):
            raise ValueError(f"cross entropy needs images with labels, but the batches are {type(batch).__name__}")
        image = batch.image
        mixture = None if self._draw is None else self._draw(image.shape, image.device)
        with self.autocast(image.device):
            logits, *augmentation = self._logits(self.image_rows(image, progress), mixture)
        logits = wide(logits)
        targets = F.one_hot(batch.label, logits.shape[1]).to(logits.dtype)
        if mixture is not None:
            targets = mixture.between(targets, targets.flip(0))
        return (with_mean(self.loss(logits, targets), augmentation),)

    def _logits(self, rows: tuple[Rows, ...], mixture: Mixture | None) -> tuple[Tensor, ...]:
        """Return logits, and the loss terms of images that RangeAugment changes."""
        partners = () if mixture is None else tuple(one.flip(0) for one in rows)

        def encode(*pieces: Any) -> tuple[Tensor, ...]:
            image, *augmentation = self.images_of(*pieces[: len(rows)])
            if mixture is not None:
                image = mixture.images(image, self.images_of(*pieces[len(rows) :])[0])
            return self.model(image), *augmentation

        return self.in_pieces(encode, self.model, *rows, *partners)


@build_objective.register(CrossEntropySpec)
def _(loss: CrossEntropySpec, *, spec: TrainingSpec, model: nn.Module, world: World) -> ClassificationObjective:
    del loss
    return ClassificationObjective(spec, model=model, world=world)
