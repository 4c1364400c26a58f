"""Interfaces of losses: spec, terms, registry, and the embeddings of a batch."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from mobileclip.registry import Registry
from mobileclip.serialization import open_family


class LossTerms(NamedTuple):
    """The value of a loss: scalars that carry gradients.

    Args:
        contrastive: the contrastive term, already weighted; zero where the loss has none.
        distillation: the distillation term, already weighted; zero where the loss has none.
        total: their sum, the number to minimise.

    Examples:
        >>> terms = ContrastiveLoss()(image=torch.eye(4), text=torch.eye(4), logit_scale=0.0)
        >>> isinstance(terms, LossTerms), terms.total.item() == terms.contrastive.item(), terms.distillation
        (True, True, tensor(0.))
    """

    contrastive: Tensor
    distillation: Tensor
    total: Tensor


class LossSpec(abc.ABC):
    """Base class of every loss spec: a value that builds the loss it describes.

    Examples:
        >>> class CosineLossSpec(LossSpec):
        ...     needs_teachers = False
        ...     def build(self, *, process_group=None) -> nn.Module:
        ...         return nn.CosineEmbeddingLoss()
        >>> CosineLossSpec().term_names
        ('contrastive', None)
    """

    __slots__ = ()

    @property
    @abc.abstractmethod
    def needs_teachers(self) -> bool:
        """Whether the loss needs teacher embeddings."""

    @property
    def term_names(self) -> tuple[str | None, str | None]:
        """Log names of the two terms of `LossTerms`; None for a missing term."""
        return "contrastive", "distillation" if self.needs_teachers else None

    @abc.abstractmethod
    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> nn.Module:
        """Return the loss.

        With several processes, the mean of values and gradients over processes (`DistributedDataParallel`) equals the
        whole batch's in one process. All processes call the loss together and scale its result alike; the forward pass
        exchanges gradients.

        Args:
            process_group: the processes that share the batch, with equal numbers of pairs; None for a single process.
        """


losses: Registry[Callable[..., LossSpec]] = Registry("loss")
"""Losses by name; third parties add theirs here or by an entry point in `mobileclip.loss`."""
open_family(LossSpec, losses)


def compute_dtype(embedding: Tensor) -> torch.dtype:
    """Return the dtype of similarities and softmaxes: float32, or float64 where the embeddings have it."""
    return torch.promote_types(embedding.dtype, torch.float32)


class EmbeddingBatch(NamedTuple):
    """One process's embeddings, with a pair per row, and the scales and biases of their logits.

    Args:
        image: (B, D), the student's images.
        text: (B, D), the student's texts.
        syn_text: (B, D), the student's synthetic captions.
        logit_scale: the student's inverse temperature.
        logit_bias: bias of the student's logits; None for softmax losses.
        teacher_image: (B, sum of teacher dims), the teachers' images.
        teacher_text: (B, sum of teacher dims), the teachers' texts.
        teacher_syn_text: (B, sum of teacher dims), the teachers' synthetic captions.
        teacher_dims: the teachers' dims; empty without teachers.
        teacher_logit_scales: the teachers' inverse temperatures.
        teacher_biases: biases of the teachers' logits; None for a teacher with a softmax loss.
    """

    image: Tensor
    text: Tensor
    syn_text: Tensor | None
    logit_scale: Tensor
    logit_bias: Tensor | None
    teacher_image: Tensor | None
    teacher_text: Tensor | None
    teacher_syn_text: Tensor | None
    teacher_dims: Sequence[int]
    teacher_logit_scales: Sequence[float]
    teacher_biases: Sequence[float | None]

    def captions(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return the sets of captions: the student's embeddings, and the teachers'."""
        sets = [(self.text, self.teacher_text)]
        return sets if self.syn_text is None else [*sets, (self.syn_text, self.teacher_syn_text)]

    def check(self) -> None:
        """Raise unless the embeddings fit together.

        Raises:
            ValueError: if batches or dims disagree, or teachers are missing.
        """
        if self.logit_scale.numel() != 1:
            raise ValueError(f"logit_scale must be one number, but its shape is {tuple(self.logit_scale.shape)}")
        given = {name: value for name in ("text", "syn_text") if (value := getattr(self, name)) is not None}
        if self.teacher_dims:
            self._check_teachers()
        for name, text in given.items():
            check_pair(self.image, text, ("image", name))
            teacher_text = getattr(self, f"teacher_{name}")
            if self.teacher_image is not None and teacher_text is not None:
                check_pair(self.teacher_image, teacher_text, ("teacher_image", f"teacher_{name}"))
        if self.teacher_image is None:
            return
        if len(self.image) != len(self.teacher_image):
            raise ValueError(
                f"image has {len(self.image)} rows and teacher_image has {len(self.teacher_image)}; the teachers "
                "embed the same images as the student"
            )
        dims = tuple(self.teacher_dims)
        if self.teacher_image.shape[1] != sum(dims):
            raise ValueError(
                f"teacher embeddings have dim {self.teacher_image.shape[1]}, but teacher_dims {dims} sum to "
                f"{sum(dims)}; concatenate the embeddings of all teachers, in that order"
            )

    def _check_teachers(self) -> None:
        if (self.syn_text is None) != (self.teacher_syn_text is None):
            given, missing = ("syn_text", "teacher_syn_text")[:: 1 if self.teacher_syn_text is None else -1]
            raise ValueError(f"{given} was given without {missing}; synthetic captions need both")
        for name in ("teacher_image", "teacher_text"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing; distillation needs the teachers' embeddings, or distill_weight=0")


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
