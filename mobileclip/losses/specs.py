"""Interfaces of losses: spec, terms, registry, and the embeddings of a batch."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from mobileclip.registry import Registry
from mobileclip.serialization import register_spec_base


class LossTerms(NamedTuple):
    """The value of a loss as scalars with gradients.

    Args:
        contrastive: the weighted contrastive term; zero if the loss has no such term.
        distillation: the weighted distillation term; zero if the loss has no such term.
        total: sum of `contrastive` and `distillation`, the value to minimise.

    Examples:
        >>> terms = ContrastiveLoss()(image=torch.eye(4), text=torch.eye(4), logit_scale=0.0)
        >>> isinstance(terms, LossTerms), terms.total.item() == terms.contrastive.item(), terms.distillation
        (True, True, tensor(0.))
    """

    contrastive: Tensor
    distillation: Tensor
    total: Tensor


class LossSpec(abc.ABC):
    """Base class of loss specs; `build` returns the loss of a spec.

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
        """Names in the log for `LossTerms.contrastive` and `LossTerms.distillation`; None for a missing term."""
        return "contrastive", "distillation" if self.needs_teachers else None

    @abc.abstractmethod
    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> nn.Module:
        """Return the loss.

        With several processes, the mean of the processes' values equals the value of the whole batch in one process;
        the same holds for the gradients, which `DistributedDataParallel` averages. All processes must call the loss
        together. The forward pass exchanges gradients, so a factor on the result must be equal in all processes.

        Args:
            process_group: processes that share the batch, with equal numbers of pairs; None for a single process.
        """


losses: Registry[Callable[..., LossSpec]] = Registry("loss")
"""Losses by name; third parties add their own here or by an entry point in `mobileclip.loss`."""
register_spec_base(LossSpec, losses)


def compute_dtype(embedding: Tensor) -> torch.dtype:
    """Return the dtype of similarities and softmaxes: float32, or float64 if the embeddings are in float64."""
    return torch.promote_types(embedding.dtype, torch.float32)


class EmbeddingBatch(NamedTuple):
    """The embeddings of one process, with one pair per row, and the scales and biases of the logits.

    Args:
        image: the student's image embeddings, (B, D).
        text: the student's text embeddings, (B, D).
        syn_text: the student's embeddings of synthetic captions, (B, D); None without synthetic captions.
        logit_scale: the student's inverse temperature.
        logit_bias: bias of the student's logits; None for softmax losses.
        teacher_image: the teachers' image embeddings, (B, sum of teacher dims); None without teachers.
        teacher_text: the teachers' text embeddings, (B, sum of teacher dims); None without teachers.
        teacher_syn_text: the teachers' embeddings of synthetic captions, (B, sum of teacher dims); None without
            teachers or synthetic captions.
        teacher_dims: the teachers' embedding dims; empty without teachers.
        teacher_logit_scales: the teachers' inverse temperatures; empty without teachers.
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
        """Return the student's and the teachers' text embeddings of each caption set (real, then synthetic)."""
        sets = [(self.text, self.teacher_text)]
        return sets if self.syn_text is None else [*sets, (self.syn_text, self.teacher_syn_text)]

    def check(self) -> None:
        """Raise an error if the embeddings are inconsistent.

        Raises:
            ValueError: if batch sizes or dims differ, teacher embeddings are missing, or `logit_scale` has several
                values.
        """
        if self.logit_scale.numel() != 1:
            raise ValueError(f"logit_scale must be a single number, but has shape {tuple(self.logit_scale.shape)}")
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
                f"image has {len(self.image)} rows and teacher_image has {len(self.teacher_image)}; the student and "
                "the teachers must embed the same images"
            )
        dims = tuple(self.teacher_dims)
        if self.teacher_image.shape[1] != sum(dims):
            raise ValueError(
                f"teacher embeddings have dim {self.teacher_image.shape[1]}, but teacher_dims {dims} sum to "
                f"{sum(dims)}; concatenate the embeddings of all teachers in this order"
            )

    def _check_teachers(self) -> None:
        if (self.syn_text is None) != (self.teacher_syn_text is None):
            given, missing = ("syn_text", "teacher_syn_text")[:: 1 if self.teacher_syn_text is None else -1]
            raise ValueError(f"{given} was passed without {missing}; synthetic captions need both arguments")
        for name in ("teacher_image", "teacher_text"):
            if getattr(self, name) is None:
                raise ValueError(
                    f"{name} is missing; pass the teachers' embeddings, or set distill_weight=0 for no distillation"
                )


def check_pair(image: Tensor, text: Tensor, names: tuple[str, str]) -> None:
    """Raise an error unless `image` and `text` are matrices of equal shape (B, D).

    Raises:
        ValueError: if an argument is not a matrix, the batch sizes or dims differ, or the batch is empty.
    """
    for name, value in zip(names, (image, text), strict=True):
        if value.ndim != 2:
            raise ValueError(f"{name} must have shape (batch, dim), but has shape {tuple(value.shape)}")
    if image.shape[0] != text.shape[0]:
        raise ValueError(
            f"{names[0]} has {image.shape[0]} rows and {names[1]} has {text.shape[0]}; their rows are pairs, so the "
            "numbers of rows must be equal"
        )
    if image.shape[1] != text.shape[1]:
        raise ValueError(
            f"{names[0]} has dim {image.shape[1]} and {names[1]} has dim {text.shape[1]}; both towers must embed into "
            "the same space"
        )
    if image.shape[0] == 0:
        raise ValueError(f"{names[0]} and {names[1]} are empty; a loss needs at least one pair")
