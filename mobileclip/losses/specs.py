"""The interface of losses: the spec that builds one, the terms it returns, and the registry of names."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

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


losses: Registry[Callable[..., LossSpec]] = Registry("loss")
"""Losses by name; third parties add theirs here or by an entry point in `mobileclip.loss`."""
open_family(LossSpec, losses)
