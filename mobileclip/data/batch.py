"""The named batch that training reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@attrs.frozen(kw_only=True, eq=False)
class ReinforcedBatch:
    """B samples, by name.

    Shape: image (B, 3, S, S) float32; text, syn_text (B, context length) int64; teacher_image, teacher_text,
    teacher_syn_text (B, D) float32, the teachers' embeddings concatenated.

    Args:
        keys: the samples' keys.
        image: the augmented images, normalised for the student.
        text: ids of one real caption each.
        syn_text: ids of one synthetic caption each, where there are any.
        teacher_image: the teachers' embeddings of the same augmentations.
        teacher_text: the teachers' embeddings of the same real captions.
        teacher_syn_text: the teachers' embeddings of the same synthetic captions.
    """

    keys: tuple[str, ...]
    image: Tensor
    text: Tensor
    syn_text: Tensor | None = None
    teacher_image: Tensor | None = None
    teacher_text: Tensor | None = None
    teacher_syn_text: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    def as_dict(self) -> dict[str, Any]:
        """Return what is there, by name."""
        return {name: value for name, value in attrs.asdict(self, recurse=False).items() if value is not None}

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> ReinforcedBatch:
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ReinforcedBatch:
        """Return the batch in page-locked memory, from where copies to a GPU overlap with computation."""
        return self._map(Tensor.pin_memory)

    def rows(self, start: int, stop: int) -> ReinforcedBatch:
        """Return samples `start` to `stop`, the last one excluded."""
        part = self._map(lambda tensor: tensor[start:stop])
        return attrs.evolve(part, keys=self.keys[start:stop])

    def _map(self, change: Callable[[Tensor], Tensor]) -> ReinforcedBatch:
        changed = {name: change(value) for name, value in self.as_dict().items() if isinstance(value, Tensor)}
        return ReinforcedBatch(keys=self.keys, **changed)


def join_batches(batches: Sequence[ReinforcedBatch]) -> ReinforcedBatch:
    """Return one batch with the samples of all; they hold the same names."""
    keys = tuple(key for batch in batches for key in batch.keys)
    tensors = [batch.as_dict() for batch in batches]
    joined = {name: torch.cat([one[name] for one in tensors]) for name in tensors[0] if name != "keys"}
    return ReinforcedBatch(keys=keys, **joined)
