"""What every loss shares: its value, its spec's base class, and the registry that names the specs."""

from __future__ import annotations

import abc

import attrs
import torch
from torch import Tensor, distributed, nn

from mobileclip.registry import Registry
from mobileclip.serialization import open_family


@attrs.frozen(kw_only=True, eq=False)
class LossTerms:
    """The value of a loss: scalars that carry gradients.

    Args:
        contrastive: the contrastive term, already weighted; zero where the loss has none.
        distillation: the distillation term, already weighted; zero where the loss has none.
        total: their sum, the number to minimise.
    """

    contrastive: Tensor
    distillation: Tensor
    total: Tensor


class LossSpec(abc.ABC):
    """Base class of every loss spec: a value that builds the loss it describes."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def needs_teachers(self) -> bool:
        """Whether the loss wants teacher embeddings beside the student's."""

    @property
    def term_names(self) -> tuple[str | None, str | None]:
        """What a log calls the two terms of `LossTerms`; None for one that the loss has not."""
        return "contrastive", "distillation" if self.needs_teachers else None

    @abc.abstractmethod
    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> nn.Module:
        """Return the loss.

        Its value is this process's share: the mean over the processes of the values, and of the gradients as
        `DistributedDataParallel` takes it, are those of the whole batch in one process. All processes call it together
        and scale what it returns alike; gradients are exchanged in the forward pass.

        Args:
            process_group: the processes that the batch is spread over, the same number of pairs to each; None where
                this process has the whole batch.
        """


losses: Registry[type[LossSpec]] = Registry("loss")
open_family(LossSpec, losses)


def compute_dtype(embedding: Tensor) -> torch.dtype:
    """Return the dtype of similarities and softmaxes: float32, or float64 where the embeddings have it."""
    return torch.promote_types(embedding.dtype, torch.float32)


def similarity_logits(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Return the scaled similarity of every image with every text, `logit_scale * image @ text.T`.

    Low-precision embeddings are widened first, under autocast too: at a scale of 100 a bfloat16 product is wrong by
    tenths of a logit.

    Shape: image (B, D), text (B, D) -> (B, B), images as rows.

    Args:
        image: unit-length image embeddings.
        text: unit-length text embeddings, row by row the partners of the images.
        logit_scale: inverse temperature, after `exp`; a scalar.
    """
    with torch.autocast(image.device.type, enabled=False):
        dtype = compute_dtype(image)
        scale = logit_scale.to(dtype) if isinstance(logit_scale, Tensor) else logit_scale
        return scale * (image.to(dtype) @ text.to(dtype).mT)


def check_pair(image: Tensor, text: Tensor, names: tuple[str, str]) -> None:
    """Raise unless two embedding batches are (B, D) and pair row by row.

    Raises:
        ValueError: if one is not a matrix, the batches or the dims differ, or the batch is empty.
    """
    for name, value in zip(names, (image, text), strict=True):
        if value.ndim != 2:
            raise ValueError(f"{name} must be (batch, dim), but its shape is {tuple(value.shape)}")
    if image.shape[0] != text.shape[0]:
        raise ValueError(
            f"{names[0]} has {image.shape[0]} rows and {names[1]} has {text.shape[0]}; they pair row by row, so the "
            "batches must be equal"
        )
    if image.shape[1] != text.shape[1]:
        raise ValueError(
            f"{names[0]} has dim {image.shape[1]} and {names[1]} has dim {text.shape[1]}; both towers must embed into "
            "the same space"
        )
    if image.shape[0] == 0:
        raise ValueError(f"{names[0]} and {names[1]} are empty; a loss needs at least one pair")
