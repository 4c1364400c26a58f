"""A model in the form that encodes fastest, with the same embeddings but for rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeGuard, TypeVar

import attrs
import torch
from torch import Tensor

from mobileclip.data.skips import BadSampleError, SkipReport
from mobileclip.encoders import DualEncoder
from mobileclip.evaluation.encoding.decoding import encode_ahead
from mobileclip.evaluation.encoding.embedding import ImageTextModel, Tokenize, Transform, model_input, read_picture
from mobileclip.inference import by_length, prepared
from mobileclip.inference.batching import encode_each
from mobileclip.inference.forms import MOST_IMAGES_ON_CPU, ReadyDualEncoder
from mobileclip.inference.kept_texts import KeptTexts
from mobileclip.inference.text_towers import TextSide, routed
from mobileclip.inputs import TextInput
from mobileclip.progress import Progress
from mobileclip.reparam import reparameterize
from mobileclip.terminal import console

_MOST_TEXTS_ON_CPU = 16
# These take seconds.
_FEW_TEXTS = 256


class Keyed(Protocol):
    """Interface of anything with a key."""

    @property
    def key(self) -> str:
        """The name in a report."""


Item = TypeVar("Item")
KeyedItem = TypeVar("KeyedItem", bound=Keyed)
Kept = TypeVar("Kept")
Views = Sequence[Tensor | None]
"""Pixels `(3, size, size)`, or embeddings `(dim,)`, of the parts of a picture; None for one that is not there."""


@attrs.frozen(kw_only=True, eq=False)
class Encoders:
    """A model prepared for encoding, with its transform, tokenizer, batch size and threads.

    Args:
        model: in evaluation mode.
        transform: from a picture to the model's input.
        tokenize: from texts to the model's ids.
        device: where its weights are.
        dtype: of its weights.
        batch_size: images, or texts, encoded at once.
        num_threads: that decode images beside the model; by default one per core, eight at most.
        show_progress: whether to show how far it is.
        known_texts: embeddings of texts that need not be encoded; what is encoded comes to them.
        threads: that encode side by side; None to encode one batch after another.
        text_sides: what encodes texts, where several text towers share them; the model's own is the first.
    """

    model: ImageTextModel
    transform: Transform
    tokenize: Tokenize
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    num_threads: int | None
    show_progress: bool
    known_texts: KeptTexts
    threads: EncodingThreads | None = None
    text_sides: tuple[TextSide, ...] = ()

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings, as the model gives them (not normalised).

        Shape:
            `(batch, 3, size, size)` to `(batch, dim)`, float32 on the CPU.
        """
        if self.device.type == "cpu":
            pixels = pixels.to(self.dtype)
            most = len(pixels) if isinstance(self.model, ReadyDualEncoder) else MOST_IMAGES_ON_CPU
            return torch.cat(list(self._encode(self.model.encode_image, pixels, most=most)))
        return self.model.encode_image(pixels.to(self.device, self.dtype)).float().cpu()

    def embed_pictures(
        self,
        items: Iterable[KeyedItem],
        content: Callable[[KeyedItem], bytes],
        *,
        keep: Callable[[KeyedItem], Kept],
        report: SkipReport,
        title: str,
        total: int | None = None,
    ) -> tuple[list[Kept], Tensor]:
        """Return what is kept of the items whose pictures can be used, in order, and the embeddings (not normalised).

        Shape:
            embeddings: `(items that are kept, dim)`; `(0,)` where there is none.

        Args:
            items: drawn from in the caller's thread.
            content: the encoded picture of an item; called in several threads. A `BadSampleError` leaves the item out.
            keep: what is returned of an item, without its picture.
            report: told of every item that is left out, by its key, which was counted as one that was read.
            title: of the bar, and what the items are of.
            total: number of items, where it is known.
        """
        kept: list[Kept] = []
        rows: list[Tensor] = []

        def views(item: KeyedItem) -> Views:
            return [model_input(read_picture(content(item), self.transform), self.transform)]

        for item, found in self.encode_pictures(items, views, title=title, total=total):
            if isinstance(found, BadSampleError):
                report.num_read -= 1
                report.add(found.skip(key=item.key, shard=title))
            else:
                kept.append(keep(item))
                rows += [row for row in found if row is not None]
        return kept, torch.stack(rows) if rows else torch.empty(0)

    def encode_pictures(
        self,
        items: Iterable[Item],
        views: Callable[[Item], Views],
        *,
        title: str,
        total: int | None = None,
        weigh: Callable[[Item], int] = lambda _: 1,
    ) -> Iterator[tuple[Item, Views | BadSampleError]]:
        """Yield items, in order, with the embeddings of their views, or with what is wrong with them.

        Args:
            items: drawn from in the caller's thread.
            views: from an item to pixels; called in several threads, while others are encoded. A `BadSampleError` is a
                result, other errors are raised here.
            title: of the bar.
            total: number of items, where it is known.
            weigh: how many views an item has, about.
        """

        def encode(pixels: list[Tensor]) -> Tensor:
            return self.encode_images(torch.stack(pixels))

        with Progress(title, total=total, unit="images", console=console(shown=self.show_progress)) as progress:
            for outcome in encode_ahead(
                items, views, encode, batch_size=self.batch_size, weigh=weigh, num_threads=self.num_threads
            ):
                yield outcome
                progress.advance()

    def encode_texts(self, texts: Sequence[str], *, show_progress: bool | None = None) -> Tensor:
        """Return the embeddings, as the model gives them (not normalised); every text is encoded once.

        Shape:
            result: `(texts, dim)`, float32 on the CPU.

        Args:
            texts: at least one.
            show_progress: whether to show how far it is, where there are many; by default as of pictures.

        Raises:
            ValueError: if there is no text.
        """
        if not texts:
            raise ValueError("there are no texts to embed")
        shown = self.show_progress if show_progress is None else show_progress
        return self.known_texts.embeddings(texts, partial(self._encode_new, show_progress=shown))

    def _encode_new(self, distinct: list[str], *, show_progress: bool) -> Tensor:
        """Return the embeddings of texts, each by the tower that knows more of it."""
        if len(self.text_sides) < 2:
            return self._by_one(self.model, self.tokenize, distinct, show_progress=show_progress)
        numbers = routed(distinct, self.text_sides)
        # The first has been made ready with the model.
        others = [(prepared(side.model, images=False), side.tokenizer) for side in self.text_sides[1:]]
        parts = [
            self._by_one(model, tokenize, [distinct[number] for number in own], show_progress=show_progress)
            for (model, tokenize), own in zip([(self.model, self.tokenize), *others], numbers, strict=True)
            if own
        ]
        rows, order = torch.cat(parts), torch.tensor([number for own in numbers for number in own])
        return torch.empty_like(rows).index_copy_(0, order, rows)

    def _by_one(self, model: ImageTextModel, tokenize: Tokenize, distinct: list[str], *, show_progress: bool) -> Tensor:
        """Return the embeddings of texts in batches of like lengths."""
        tokens = torch.stack(list(encode_each(distinct, tokenize, batch_size=self.batch_size)))
        contract = _contract_of_texts(model)
        order = torch.arange(len(tokens)) if contract is None else by_length(tokens, contract)
        most = min(self.batch_size, _MOST_TEXTS_ON_CPU) if self.threads else self.batch_size
        encoded = []
        shown = console(shown=show_progress and len(order) > _FEW_TEXTS)
        with Progress("texts", total=len(order), unit="texts", console=shown) as progress:
            for embeddings in self._encode(model.encode_text, tokens[order].to(self.device), most=most):
                encoded.append(embeddings.cpu())
                progress.advance(len(embeddings))
        unordered = torch.cat(encoded)
        return torch.empty_like(unordered).index_copy_(0, order, unordered)

    def _encode(self, encode: Callable[[Tensor], Tensor], inputs: Tensor, *, most: int) -> Iterator[Tensor]:
        """Yield the embeddings of the inputs in float32, at most so many at once, in order."""
        if self.threads is None:
            return (encode(part).float() for part in torch.split(inputs, most))
        return self.threads.map(encode, torch.split(inputs, min(most, -(-len(inputs) // self.threads.count))))


@attrs.frozen(kw_only=True, eq=False)
class EncodingThreads:
    """Threads in each of which torch uses one: batches side by side do not wait for each other after every layer.

    Args:
        pool: the threads.
        count: how many there are.
    """

    pool: ThreadPoolExecutor
    count: int

    def map(self, encode: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the embeddings of the batches in float32, in order."""

        @torch.inference_mode()
        def encoded(batch: Tensor) -> Tensor:
            return encode(batch).float()

        return self.pool.map(encoded, batches)


@contextmanager
def encoding_threads(model: ImageTextModel, device: torch.device) -> Iterator[EncodingThreads | None]:
    """Yield as many threads as torch computes with, and give torch its own back; None where they would not help.

    Args:
        model: as it came, before it is folded; others than our own, and what `mobileclip.optimize` has prepared, are
            taken as they are.
        device: where its weights are.
    """
    if device.type != "cpu" or not _is_unprepared(model):
        yield None
        return
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield EncodingThreads(pool=pool, count=count)
    finally:
        torch.set_num_threads(count)


def fastest_form(model: ImageTextModel) -> ImageTextModel:
    """Return a dual encoder of the library as a folded copy that is ready to encode; others as they are.

    Args:
        model: in evaluation mode.
    """
    if not _is_unprepared(model):
        return model
    folded = reparameterize(model)
    if next(model.parameters()).device.type == "cpu":
        folded.image_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return prepared(folded)


def _is_unprepared(model: ImageTextModel) -> TypeGuard[DualEncoder]:
    """Return whether a model is a dual encoder of the library that is not ready to encode already."""
    return isinstance(model, DualEncoder) and not isinstance(model, ReadyDualEncoder)


def _contract_of_texts(model: ImageTextModel) -> TextInput | None:
    """Return what the text tower of a model of the library expects, or None: others may not tell texts' lengths."""
    return model.spec.text.input if isinstance(model, DualEncoder) else None
