"""Batches for training, the memory of their images, and the interface of batch sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mobileclip.data.loading.order import StreamPosition
from mobileclip.data.skips import Skip

if TYPE_CHECKING:
    from typing_extensions import Self

    from mobileclip.data.images.resize import Pixels


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """Base class of batches of B samples.

    A batch is a torch pytree: the tensors are the leaves, and the texts are the context.

    Args:
        keys: keys of the samples.
    """

    keys: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that are not None, by name."""
        return {name: value for name, value in attrs.asdict(self, recurse=False).items() if value is not None}

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor of the batch."""
        return (value for value in pytree.tree_leaves(self.as_dict()) if isinstance(value, Tensor))

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> Self:
        """Return the batch with its tensors on `device`."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory; copies from this memory to a GPU can overlap with computation."""
        return self._map(lambda value: value.pin_memory() if value.device.type == "cpu" else value)

    def rows(self, start: int, stop: int) -> Self:
        """Return the samples from `start` up to, but not including, `stop`."""
        return self._map(lambda value: value[start:stop], texts=lambda value: value[start:stop])

    def at(self, places: Tensor) -> Self:
        """Return the samples at the given indices, in the order of the indices."""
        numbers = places.tolist()
        return self._map(
            lambda value: value[places.to(value.device)], texts=lambda value: tuple(value[number] for number in numbers)
        )

    def _map(
        self,
        change: Callable[[Tensor], Tensor],
        texts: Callable[[tuple[str, ...]], tuple[str, ...]] = lambda value: value,
    ) -> Self:
        """Return a copy of the batch after applying `change` to every tensor and `texts` to every tuple of texts."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else texts(value)

        return attrs.evolve(self, **{name: _of_sides(changed, value) for name, value in self.as_dict().items()})


BatchType = TypeVar("BatchType", bound=Batch)
BatchType_co = TypeVar("BatchType_co", bound=Batch, covariant=True)


@attrs.frozen(kw_only=True, eq=False)
class ImageBatch(Batch):
    """A batch of B images.

    Shape: image (B, 3, S, S) uint8, in `torch.channels_last` memory format.

    Args:
        image: the augmented images; `mobileclip.data.normalize_pixels` converts the pixels to a model's input, on the
            model's device.
    """

    image: Tensor


@attrs.frozen(kw_only=True, eq=False)
class TextBatch(Batch):
    """A batch of B texts with teacher embeddings.

    Shape: text (B, context length) int64; teacher_text (B, D) float32.

    Args:
        text: token ids of the texts.
        teacher_text: teacher embeddings of the texts, or of their translations.
    """

    text: Tensor
    teacher_text: Tensor


@attrs.frozen(kw_only=True, eq=False)
class LabelledBatch(ImageBatch):
    """A batch of B images with class labels.

    Shape: label (B,) int64.

    Args:
        label: class index of each image.
    """

    label: Tensor


@attrs.frozen(kw_only=True, eq=False)
class ReinforcedBatch(ImageBatch):
    """A batch of B image-text samples, optionally with teacher embeddings.

    Shape: image (B, 3, S, S) uint8; text, syn_text (B, context length) int64; teacher_image, teacher_text,
    teacher_syn_text (B, D) float32, the teachers' embeddings concatenated; online_images (B, 3, s, s) uint8 by side s.

    Args:
        text: token ids of one caption per sample, by default a real caption; see the pipeline's option `captions`.
        syn_text: token ids of one synthetic caption per sample; None if `text` has the only captions.
        teacher_image: the teachers' embeddings of the augmented images in `image`.
        teacher_text: the teachers' embeddings of the captions in `text`.
        teacher_syn_text: the teachers' embeddings of the captions in `syn_text`.
        online_images: the augmented images at the sizes of the online teachers, by side in pixels.
        captions: the captions in `text` as strings; None if the batch has no online images.
        syn_captions: the captions in `syn_text` as strings; None if the batch has no online images.
    """

    text: Tensor
    syn_text: Tensor | None = None
    teacher_image: Tensor | None = None
    teacher_text: Tensor | None = None
    teacher_syn_text: Tensor | None = None
    online_images: Mapping[int, Tensor] | None = None
    captions: tuple[str, ...] | None = None
    syn_captions: tuple[str, ...] | None = None


def _flattened(batch: Batch) -> tuple[list[Any], Any]:
    values = {field.name: getattr(batch, field.name) for field in attrs.fields(type(batch))}
    texts = {name: value for name, value in values.items() if isinstance(value, tuple)}
    names = [name for name in values if name not in texts]
    return [values[name] for name in names], (type(batch), names, texts)


def _flattened_with_keys(batch: Batch) -> tuple[list[tuple[Any, Any]], Any]:
    values, context = _flattened(batch)
    return [(pytree.GetAttrKey(name), value) for name, value in zip(context[1], values, strict=True)], context


def _unflattened(values: Iterable[Any], context: Any) -> Batch:
    cls, names, texts = context
    batch: Batch = cls(**texts, **dict(zip(names, values, strict=True)))
    return batch


for _cls in (Batch, ImageBatch, TextBatch, LabelledBatch, ReinforcedBatch):
    pytree.register_pytree_node(_cls, _flattened, _unflattened, flatten_with_keys_fn=_flattened_with_keys)


def interleaved(batches: Sequence[BatchType], numbers: Sequence[Sequence[int]]) -> BatchType:
    """Merge batches into one batch, with the samples sorted by number.

    Args:
        batches: batches with the same fields.
        numbers: for each batch, one sort key per sample.
    """
    if len(batches) == 1:
        return batches[0]
    ordered = np.argsort(np.concatenate([np.asarray(own) for own in numbers]))
    ranks = np.empty_like(ordered)
    ranks[ordered] = np.arange(len(ordered))
    places = np.split(ranks, np.cumsum([len(own) for own in numbers])[:-1])

    def placed(*values: Any) -> Any:
        count = sum(map(len, values))
        if isinstance(values[0], Tensor):
            whole = values[0].new_empty(count, *values[0].shape[1:])
            for value, own in zip(values, places, strict=True):
                whole[torch.from_numpy(own)] = value
            return whole
        texts: list[Any] = [None] * count
        for value, own in zip(values, places, strict=True):
            for text, place in zip(value, own.tolist(), strict=True):
                texts[place] = text
        return tuple(texts)

    everything = [batch.as_dict() for batch in batches]
    return type(batches[0])(**{name: _of_sides(placed, *(one[name] for one in everything)) for name in everything[0]})


def join_batches(batches: Sequence[BatchType]) -> BatchType:
    """Concatenate batches with the same fields."""
    numbers = iter(range(sum(map(len, batches))))
    return interleaved(batches, [[*islice(numbers, len(batch))] for batch in batches])


def _of_sides(change: Callable[..., Any], *values: Any) -> Any:
    """Apply a function to values; if the values are mappings by image side, apply the function for each side."""
    if isinstance(values[0], Mapping):
        return {side: change(*(value[side] for value in values)) for side in values[0]}
    return change(*values)


_is_shared = False


def share_images() -> None:
    """Make `stack_pixels` allocate all further batches of this worker process in shared memory."""
    global _is_shared  # noqa: PLW0603 - of this process
    _is_shared = True


def stack_pixels(pixels: Sequence[Pixels]) -> torch.Tensor:
    """Stack the pixels of images into one batch; a worker allocates the batch in shared memory.

    The batch keeps the channels-last memory format of the decoded images: transposing takes four times as long as
    copying, and normalisation on the device transposes without extra cost.

    Shape: B arrays (height, width, 3), uint8 -> (B, 3, height, width), uint8, in `torch.channels_last` memory format.

    Args:
        pixels: pixels of images of one size.
    """
    shape = (len(pixels), *pixels[0].shape)
    batch = empty_shared(shape) if _is_shared else torch.empty(shape, dtype=torch.uint8)
    np.stack(pixels, out=batch.numpy())
    return batch.permute(0, 3, 1, 2)


def empty_shared(shape: tuple[int, ...]) -> torch.Tensor:
    """Return an uninitialised uint8 tensor in shared memory."""
    new_shared = torch.UntypedStorage._new_shared  # noqa: SLF001  what torch's own collate function calls
    storage = new_shared(int(np.prod(shape)), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).resize_(shape)


class BatchSource(Protocol[BatchType_co]):
    """Interface of an endless, resumable stream of batches."""

    def stream(self, position: StreamPosition) -> Iterator[BatchType_co]:
        """Yield batches from a position; equal positions give equal batches."""

    def position(self, num_batches: int) -> StreamPosition:
        """Return the position after the run's first `num_batches` batches; the stream may already be further ahead."""

    def take_skips(self, num_batches: int) -> Sequence[Skip]:
        """Return the skips of the first `num_batches` batches; every skip is returned only once."""


class ChangedBatches(ABC, Generic[BatchType]):
    """A batch source that changes the batches of a wrapped source, but not the positions and skips."""

    batches: BatchSource[BatchType]

    @abstractmethod
    def changed(self, batch: BatchType) -> BatchType:
        """Return the changed batch."""

    def stream(self, position: StreamPosition) -> Iterator[BatchType]:
        """Yield the changed batches of the wrapped source from a position."""
        return map(self.changed, self.batches.stream(position))

    def position(self, num_batches: int) -> StreamPosition:
        """Return the wrapped source's position after the first `num_batches` batches."""
        return self.batches.position(num_batches)

    def take_skips(self, num_batches: int) -> Sequence[Skip]:
        """Return the wrapped source's skips in the first `num_batches` batches."""
        return self.batches.take_skips(num_batches)

    @property
    def num_lost(self) -> int:
        """Number of workers that the wrapped source has lost; 0 if unknown."""
        return int(getattr(self.batches, "num_lost", 0))
