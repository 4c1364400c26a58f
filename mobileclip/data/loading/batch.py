"""The named batches that training reads, and the memory of their images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

    from mobileclip.data.images.resize import Pixels


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """B samples, by name: what every batch has.

    To torch it is a pytree of its tensors, which keeps its texts.

    Shape: image (B, 3, S, S) uint8, in the order of `torch.channels_last`.

    Args:
        keys: the samples' keys.
        image: the augmented images; `mobileclip.data.normalize_pixels` makes a model's input of them, on its device.
    """

    keys: tuple[str, ...]
    image: Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    def as_dict(self) -> dict[str, Any]:
        """Return what is there, by name."""
        return {name: value for name, value in attrs.asdict(self, recurse=False).items() if value is not None}

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor that is there."""
        for value in self.as_dict().values():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, Mapping):
                yield from value.values()

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> Self:
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, from where copies to a GPU overlap with computation."""
        return self._map(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def rows(self, start: int, stop: int) -> Self:
        """Return samples `start` to `stop`, the last one excluded."""
        part = self._map(lambda tensor: tensor[start:stop])
        texts: dict[str, Any] = {
            name: value[start:stop] for name, value in part.as_dict().items() if isinstance(value, tuple)
        }
        return attrs.evolve(part, **texts)

    def at(self, places: Tensor) -> Self:
        """Return the samples at some places, in that order."""
        part = self._map(lambda tensor: tensor[places.to(tensor.device)])
        numbers = places.tolist()
        texts: dict[str, Any] = {
            name: tuple(value[number] for number in numbers)
            for name, value in part.as_dict().items()
            if isinstance(value, tuple)
        }
        return attrs.evolve(part, **texts)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for name, value in self.as_dict().items():
            if isinstance(value, Tensor):
                changed[name] = change(value)
            elif isinstance(value, Mapping):
                changed[name] = {side: change(images) for side, images in value.items()}
        return attrs.evolve(self, **changed)


BatchType = TypeVar("BatchType", bound=Batch)
BatchType_co = TypeVar("BatchType_co", bound=Batch, covariant=True)


@attrs.frozen(kw_only=True, eq=False)
class LabelledBatch(Batch):
    """B images of classes.

    Shape: label (B,) int64.

    Args:
        label: the number of each image's class.
    """

    label: Tensor


@attrs.frozen(kw_only=True, eq=False)
class ReinforcedBatch(Batch):
    """B image-text samples, with what teachers said about them where there are any.

    Shape: image (B, 3, S, S) uint8; text, syn_text (B, context length) int64; teacher_image, teacher_text,
    teacher_syn_text (B, D) float32, the teachers' embeddings concatenated; online_images (B, 3, s, s) uint8 by side s.

    Args:
        text: ids of one caption each: a real one, or what the pipeline's choice of captions says.
        syn_text: ids of one synthetic caption each, where there are any beside the real ones.
        teacher_image: the teachers' embeddings of the same augmentations.
        teacher_text: the teachers' embeddings of the captions in `text`.
        teacher_syn_text: the teachers' embeddings of the captions in `syn_text`.
        online_images: the same augmentations for teachers that look at them now, by side in pixels.
        captions: the captions in `text`, where there are online images.
        syn_captions: the captions in `syn_text`, where there are online images.
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


for _cls in (Batch, LabelledBatch, ReinforcedBatch):
    pytree.register_pytree_node(_cls, _flattened, _unflattened, flatten_with_keys_fn=_flattened_with_keys)


def interleaved(batches: Sequence[BatchType], numbers: Sequence[Sequence[int]]) -> BatchType:
    """Return one batch with the samples of all, put in order.

    Args:
        batches: that hold the same names.
        numbers: one for each of their samples, by which they are ordered.
    """
    if len(batches) == 1:
        return batches[0]
    ordered = np.argsort(np.concatenate([np.asarray(own) for own in numbers]))
    ranks = np.empty_like(ordered)
    ranks[ordered] = np.arange(len(ordered))
    places = np.split(ranks, np.cumsum([len(own) for own in numbers])[:-1])
    everything = [batch.as_dict() for batch in batches]
    return type(batches[0])(**{name: _placed([one[name] for one in everything], places) for name in everything[0]})


def _placed(values: Sequence[Any], places: Sequence[npt.NDArray[np.int64]]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {side: _placed([value[side] for value in values], places) for side in first}
    count = sum(map(len, values))
    if isinstance(first, Tensor):
        whole = first.new_empty(count, *first.shape[1:])
        for value, own in zip(values, places, strict=True):
            whole[torch.from_numpy(own)] = value
        return whole
    texts: list[Any] = [None] * count
    for value, own in zip(values, places, strict=True):
        for text, place in zip(value, own.tolist(), strict=True):
            texts[place] = text
    return tuple(texts)


def join_batches(batches: Sequence[BatchType]) -> BatchType:
    """Return one batch with the samples of all; they hold the same names."""
    everything = [batch.as_dict() for batch in batches]
    return type(batches[0])(**{name: _joined([one[name] for one in everything]) for name in everything[0]})


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return {side: torch.cat([value[side] for value in values]) for side in first}
    return tuple(text for value in values for text in value)


_is_shared = False


def share_images() -> None:
    """Have all images of this process put where another one reads them; a worker does."""
    global _is_shared  # noqa: PLW0603 - of this process
    _is_shared = True


def stack_pixels(pixels: Sequence[Pixels]) -> torch.Tensor:
    """Return the pixels of several images as one batch; a worker's is one that another process reads without a copy.

    It is as images are decoded and resized, channels innermost in memory: putting them in front takes four times as
    long as copying, and the device does it by the way when it normalises.

    Shape: B times (height, width, 3), uint8 -> (B, 3, height, width), uint8, in the order of `torch.channels_last`.

    Args:
        pixels: of images of one size.
    """
    shape = (len(pixels), *pixels[0].shape)
    batch = empty_shared(shape) if _is_shared else torch.empty(shape, dtype=torch.uint8)
    np.stack(pixels, out=batch.numpy())
    return batch.permute(0, 3, 1, 2)


def empty_shared(shape: tuple[int, ...]) -> torch.Tensor:
    """Return a uint8 tensor that holds anything, where another process can read it without a copy."""
    new_shared = torch.UntypedStorage._new_shared  # noqa: SLF001  what torch's own collate function calls
    storage = new_shared(int(np.prod(shape)), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).resize_(shape)
