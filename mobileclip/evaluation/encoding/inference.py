"""A model in the form that encodes fastest, with the same embeddings but for rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeGuard

import attrs
import torch
from torch import Tensor

from mobileclip.encoders import DualEncoder
from mobileclip.evaluation.encoding.embedding import ImageTextModel, Tokenize, evaluating
from mobileclip.inference import OptimizedDualEncoder, by_length, prepared
from mobileclip.inputs import TextInput
from mobileclip.progress import Progress
from mobileclip.reparam import reparameterize
from mobileclip.terminal import console

# What few images need between two layers stays in a processor's cache: on two cores, four at a time of S0 take little
# more than half the time of 64.
_MOST_IMAGES_ON_CPU = 4
_MOST_TEXTS_ON_CPU = 16
# These take seconds.
_FEW_TEXTS = 256

# Embeddings `(dim,)`, float32 on the CPU, by text.
KnownTexts = dict[str, Tensor]


@attrs.frozen(kw_only=True, eq=False)
class Encoders:
    """A model that is held ready to encode.

    Args:
        model: in evaluation mode.
        device: where its weights are.
        dtype: of its weights.
        known_texts: embeddings of texts that need not be encoded; what is encoded comes to them.
        threads: that encode side by side; None to encode one batch after another.
    """

    model: ImageTextModel
    device: torch.device
    dtype: torch.dtype = torch.float32
    known_texts: KnownTexts = attrs.field(factory=dict)
    threads: EncodingThreads | None = None

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings, as the model gives them (not normalised).

        Shape:
            `(batch, 3, size, size)` to `(batch, dim)`, float32 on the CPU.
        """
        if self.device.type == "cpu":
            pixels = pixels.to(self.dtype)
            most = len(pixels) if isinstance(self.model, OptimizedDualEncoder) else _MOST_IMAGES_ON_CPU
            return torch.cat(list(self._encode(self.model.encode_image, pixels, most=most)))
        return self.model.encode_image(pixels.to(self.device, self.dtype)).float().cpu()

    def encode_texts(
        self, tokenize: Tokenize, texts: Sequence[str], *, batch_size: int, show_progress: bool = False
    ) -> Tensor:
        """Return the embeddings, as the model gives them (not normalised); every text is encoded once.

        Shape:
            result: `(texts, dim)`, float32 on the CPU.

        Args:
            tokenize: from texts to the model's ids.
            texts: at least one.
            batch_size: texts encoded at once.
            show_progress: whether to show how far it is, where there are many.

        Raises:
            ValueError: if there is no text.
        """
        if not texts:
            raise ValueError("there are no texts to embed")
        new = [text for text in dict.fromkeys(texts) if text not in self.known_texts]
        if new:
            rows = self._encode_new(tokenize, new, batch_size=batch_size, show_progress=show_progress)
            self.known_texts.update(zip(new, rows, strict=True))
        return torch.stack([self.known_texts[text] for text in texts])

    def _encode_new(self, tokenize: Tokenize, distinct: list[str], *, batch_size: int, show_progress: bool) -> Tensor:
        """Return the embeddings of texts in batches of like lengths."""
        tokens = torch.cat(
            [tokenize(distinct[start : start + batch_size]) for start in range(0, len(distinct), batch_size)]
        )
        contract = _contract_of_texts(self.model)
        order = torch.arange(len(tokens)) if contract is None else by_length(tokens, contract)
        most = min(batch_size, _MOST_TEXTS_ON_CPU) if self.threads else batch_size
        encoded = []
        shown = console(shown=show_progress and len(order) > _FEW_TEXTS)
        with Progress("texts", total=len(order), unit="texts", console=shown) as progress:
            for embeddings in self._encode(self.model.encode_text, tokens[order].to(self.device), most=most):
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
def _encoding_threads() -> Iterator[EncodingThreads]:
    """Yield as many threads as torch computes with, and give torch its own back."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield EncodingThreads(pool=pool, count=count)
    finally:
        torch.set_num_threads(count)


@contextmanager
def encoding(model: ImageTextModel, known_texts: KnownTexts | None = None) -> Iterator[Encoders]:
    """Hold a model ready to encode, without gradients, then give every module its mode back.

    A dual encoder of ours is folded and prepared, as a copy. On a CPU small batches are encoded side by side, by as
    many threads as torch computes with. Others, and what `mobileclip.optimize` has prepared, are taken as they are.

    Args:
        model: its weights stay as they are.
        known_texts: embeddings that this model gave of texts with one tokenizer; those of new texts come to them.
    """
    known_texts = {} if known_texts is None else known_texts
    dtype = next(model.parameters()).dtype
    with evaluating(model) as device:
        ready = fastest_form(model)
        if device.type == "cpu" and _is_unprepared(model):
            with _encoding_threads() as threads:
                yield Encoders(model=ready, device=device, dtype=dtype, known_texts=known_texts, threads=threads)
        else:
            yield Encoders(model=ready, device=device, dtype=dtype, known_texts=known_texts)


def fastest_form(model: ImageTextModel) -> ImageTextModel:
    """Return a dual encoder of ours as a folded copy that is ready to encode; others as they are.

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
    """Return whether a model is a dual encoder of ours that `mobileclip.optimize` has not prepared already."""
    return isinstance(model, DualEncoder) and not isinstance(model, OptimizedDualEncoder)


def _contract_of_texts(model: ImageTextModel) -> TextInput | None:
    """Return what the text tower of a model of ours expects, or None: others may not tell texts' lengths."""
    return model.spec.text.input if isinstance(model, DualEncoder) else None
