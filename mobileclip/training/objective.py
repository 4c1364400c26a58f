"""What is minimised: from a batch of images and texts to the loss, with the student in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor, nn

from mobileclip.data import ReinforcedBatch
from mobileclip.losses import LossTerms
from mobileclip.training.cpu import quicken
from mobileclip.training.distributed import World
from mobileclip.training.recompute import recompute, recomputed

if TYPE_CHECKING:
    from mobileclip.encoders import DualEncoder
    from mobileclip.training.spec import TrainingSpec


class Objective(nn.Module):
    """The student, its loss and its augmentation as one module, so that one call has every parameter that is trained.

    The loss sees the whole batch at once; the towers may see it in pieces.

    Args:
        spec: how to train.
        model: the student; placed on the device and put into training mode.
        world: the processes that train it together.

    Raises:
        ValueError: if `channels_last` is asked for on the CPU.
    """

    def __init__(self, spec: TrainingSpec, *, model: DualEncoder, world: World) -> None:
        super().__init__()
        if spec.channels_last and world.device.type == "cpu":
            raise ValueError(
                "channels_last is for GPUs; on the CPU, convolutional stages take it by themselves: leave it out"
            )
        self.spec = spec
        self.model = model
        self.loss = spec.loss.build(process_group=world.group)
        self.range_augment = None if spec.range_augment is None else spec.range_augment.build()
        self.to(world.device).train()
        if spec.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if spec.recompute_activations:
            recompute(model)
        if world.device.type == "cpu":
            quicken(model)
        if spec.compile:
            model.image_encoder.compile()
            model.text_encoder.compile()

    def forward(self, batch: ReinforcedBatch, progress: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss's contrastive term, its distillation term, and the sum of all that is minimised.

        Args:
            batch: on the device.
            progress: fraction of the training that is done, from 0 to 1.

        Raises:
            ValueError: if the batch lacks what the loss needs.
        """
        image, augmentation = batch.image, None
        if self.range_augment is not None:
            contract = self.model.spec.image.input
            image, augmentation = self.range_augment(image, progress=progress, mean=contract.mean, std=contract.std)
        terms: LossTerms = self.loss(**self._embed(image, batch), **self._teachers(batch))
        total = terms.total if augmentation is None else terms.total + augmentation
        return terms.contrastive, terms.distillation, total

    def _embed(self, image: Tensor, batch: ReinforcedBatch) -> dict[str, Tensor]:
        if self.spec.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        # Real and synthetic captions go through the text tower together: one batch of twice the size.
        texts = {"text": batch.text} | ({} if batch.syn_text is None else {"syn_text": batch.syn_text})
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.spec.precision == "bfloat16"):
            image_embedding = self._in_pieces(self._encode_image, self.model.image_encoder, image)
            text_embedding = self._in_pieces(
                self._encode_text, self.model.text_encoder, torch.cat(list(texts.values()))
            )
        return {
            "image": _wide(image_embedding),
            **dict(zip(texts, _wide(text_embedding).chunk(len(texts)), strict=True)),
            "logit_scale": self.model.logit_scale.exp(),
        }

    def _encode_image(self, image: Tensor) -> Tensor:
        return self.model.encode_image(image, normalize=True)

    def _encode_text(self, text: Tensor) -> Tensor:
        return self.model.encode_text(text, normalize=True)

    def _in_pieces(self, encode: Callable[[Tensor], Tensor], tower: nn.Module, inputs: Tensor) -> Tensor:
        """Encode all inputs, keeping the activations of one piece at a time."""
        size = self.spec.micro_batch_size
        if size is None or len(inputs) <= size:
            return encode(inputs)
        return torch.cat([recomputed(encode, tower, piece) for piece in torch.split(inputs, size)])

    def _teachers(self, batch: ReinforcedBatch) -> dict[str, Tensor]:
        if not self.spec.loss.needs_teachers:
            return {}
        if batch.teacher_image is None or batch.teacher_text is None:
            there = [name for name in attrs.fields_dict(ReinforcedBatch) if getattr(batch, name) is not None]
            raise ValueError(
                f"{type(self.spec.loss).__name__} needs teachers' embeddings, but the batches hold {', '.join(there)}; "
                "train on reinforced shards, or with a loss without teachers"
            )
        teachers = {"teacher_image": batch.teacher_image, "teacher_text": batch.teacher_text}
        if batch.teacher_syn_text is not None:
            teachers["teacher_syn_text"] = batch.teacher_syn_text
        return teachers


def _wide(embedding: Tensor) -> Tensor:
    return embedding.to(torch.promote_types(embedding.dtype, torch.float32))
