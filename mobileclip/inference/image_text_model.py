"""`ImageTextModel`: an image-text model with preprocessing, for classification and embeddings.

`ImageTransform` in `mobileclip.data.images.transform` resizes the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.encoders import DualEncoder
from mobileclip.encoders.towers import local_encoder
from mobileclip.hardware import threads_or_default, torch_threads
from mobileclip.inference.encoding import EncodingThreads, encode_ahead, encode_each
from mobileclip.inference.forms import (
    MOST_IMAGES_ON_CPU,
    PreparedTower,
    ReadyDualEncoder,
    by_length,
    prepared,
    with_fast_layout,
)
from mobileclip.inference.texts import (
    TextEmbeddingCache,
    TextSide,
    as_templates,
    ensemble_prompts,
    fill_templates,
    require_labels,
    routed,
    state_of,
)
from mobileclip.progress import Progress
from mobileclip.reparam import evaluating, reparameterize
from mobileclip.terminal import console

if TYPE_CHECKING:
    from mobileclip.data.images.resize import Pixels
    from mobileclip.data.images.transform import ImageSource
    from mobileclip.data.skips import BadSampleError
    from mobileclip.inference.identity import ModelIdentity
    from mobileclip.inputs import Decode, ImageInput

Item = TypeVar("Item")
Views = Sequence["Pixels | None"]
"""Crops of an image as model inputs; None for a crop outside the image."""

# Maximum number of texts per batch of a CPU thread: few, so that the texts have similar lengths.
MOST_TEXTS = 16
# Maximum number of decoding threads, each of which may need a gigabyte.
_MOST_READERS = 16


class ImageTextModel:
    """An image-text model with the image transform and the tokenizer that its spec describes.

    The model is thread-safe and can be pickled, in every runtime.

    Args:
        model: the dual encoder, in evaluation mode; usually from `mobileclip.load`.
        num_threads: number of PyTorch's CPU threads per call; None for PyTorch's setting. Runtimes of exports fix the
            number of threads when opening the file.
        text_towers: additional text towers with the embedding space of `model`, in evaluation mode. For each text, the
            model selects the tower whose training data contains the largest share of the text's n-grams; on a tie, the
            first such tower, starting with the tower in `model`.
        decode: JPEG decoding: `exact` at full size; `fast` at reduced size (see `read_tower_image`), in at most half
            the time, with embeddings that differ in the third digit.
        identity: identity of the stored weights (before folding), without `text_towers`; None if not computed (see
            `identify` in `load`).

    Raises:
        ValueError: if the model is in training mode (where batch statistics would change with every call), if
            `num_threads` is less than 1, or if `decode` is unknown.

    Examples:
        >>> image = mobileclip.encoders.ViTSpec(width=16, depth=1, num_heads=2)
        >>> text = mobileclip.encoders.MCtSpec(width=16, depth=0, num_heads=2)
        >>> model = ImageTextModel(mobileclip.encoders.DualEncoderSpec(image=image, text=text).build().eval())
        >>> model.encode_text(["a cat", "two dogs"]).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        model: DualEncoder,
        *,
        num_threads: int | None = None,
        text_towers: Sequence[nn.Module] = (),
        decode: Decode = "exact",
        identity: ModelIdentity | None = None,
    ) -> None:
        from mobileclip.data.images.transform import ImageTransform, require_decode

        if model.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        threads_or_default(num_threads)
        self.num_threads = num_threads
        self.decode = require_decode(decode)
        self.model = model
        self.identity = identity
        self.transform = ImageTransform(model.spec.image.input)
        self.text_towers = tuple(text_towers)
        self.text_sides = tuple(TextSide.of(model, tower) for tower in (None, *text_towers))
        self.tokenizer = self.text_sides[0].tokenizer
        self.text_cache = TextEmbeddingCache()
        self._threads = EncodingThreads()

    @classmethod
    def of(cls, model: DualEncoder) -> ImageTextModel:
        """Return a model with a folded copy of a dual encoder, which may be in training mode and training form."""
        if isinstance(model, ReadyDualEncoder):
            return cls(model)
        with evaluating(model):
            return cls(with_fast_layout(reparameterize(model).requires_grad_(requires_grad=False)))

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._like.device

    @property
    def image_input(self) -> ImageInput:
        """Image preprocessing of the model."""
        return self.transform.image_input

    @property
    def embedding_dim(self) -> int:
        """Dimension of the embeddings."""
        return self.model.spec.image.embedding_dim

    @property
    def similarity_scale(self) -> float:
        """Factor that scales cosine similarities to logits."""
        return float(self.model.similarity_scale.detach())

    def classify(
        self,
        image: ImageSource,
        labels: Sequence[str],
        *,
        template: str | Sequence[str] = "{}",
        batch_size: int = 64,
    ) -> dict[str, float]:
        """Return the probability of each label for an image, in descending order.

        The probabilities are `softmax(similarity_scale * cosine(image, label))` over the labels. The model caches label
        embeddings.

        Args:
            image: a Pillow image, a path, the bytes of a file, an open file or an array; see `load_image`.
            labels: candidate texts, at least one, without duplicates.
            template: prompt template, such as `a photo of a {}`; with several templates, a label's embedding is the
                mean of its unit-length prompt embeddings.
            batch_size: texts per batch.

        Raises:
            ValueError: if the list of labels is empty, a label is blank or duplicated, or a template contains no `{}`.
            ImageError: if the image cannot be read.

        Source: Radford et al., "Learning Transferable Visual Models", section 3.1.
        """
        require_labels(labels, template)
        texts = self.encode_labels(labels, template=template, batch_size=batch_size)
        logits = self.model.similarity_scale.detach().float().cpu() * self.encode_image([image]) @ texts.T
        probabilities = logits[0].softmax(-1).tolist()
        return dict(sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1]))

    def encode_labels(
        self,
        labels: Sequence[str],
        *,
        template: str | Sequence[str] = "{}",
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Return the label embeddings for `classify`, cached in memory.

        Shape:
            result: `(labels, embedding_dim)`, float32 on the CPU, of unit length.

        Args:
            labels: at least one label.
            template: prompt template or templates with `{}` for the label, see `classify`.
            batch_size: texts per batch.
            progress: whether to show a bar with the rate and the time left.
        """
        templates = hash(as_templates(template))

        def encode(new: list[str]) -> Tensor:
            texts = fill_templates([key.partition("\0")[2] for key in new], template)
            rows = self.encode_text(texts, batch_size=batch_size, progress=progress, keep=True)
            return ensemble_prompts(rows.reshape(len(new), -1, rows.shape[1]))

        # The cache also holds texts, without this prefix.
        keys = [f"{templates}\0{label}" for label in labels]
        return self.text_cache.embeddings(keys, encode, of=state_of(self.text_sides))

    def encode_image(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        normalize: bool = True,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Tensor:
        """Return the embeddings of one or several images.

        Shape:
            B images to `(B, embedding_dim)`, float32 on the CPU; one image counts as B = 1.

        Args:
            images: an image or an iterable of images, read batch by batch. An image is a Pillow image, a path, the
                bytes of a file, an open file or an array; see `load_image`.
            normalize: whether to scale embeddings to unit length.
            batch_size: images per batch.
            progress: whether to show a bar with the rate and the time left.

        Raises:
            ImageError: if an image cannot be read; the message contains the image's name or index.
        """
        from mobileclip.data.images.transform import is_one_image

        several = [images] if is_one_image(images) else images

        def encode(batch: list[tuple[int, ImageSource]]) -> Tensor:
            return self.encode_pixels(torch.from_numpy(np.stack(self._read(batch))), normalize=normalize)

        numbered = enumerate(cast("Iterable[ImageSource]", several), 1)
        total = len(several) if isinstance(several, Sized) else None
        return self._in_batches(numbered, encode, total=total, batch_size=batch_size, unit="images", progress=progress)

    def explain(self, image: ImageSource, texts: str | Sequence[str]) -> Tensor:
        """Return each image location's share of the similarity with texts, one map per text.

        The sum of a map over rows and columns is `encode_image(image) @ encode_text(texts).T`. The maps are
        attributions, not segmentations: the receptive field of a location covers the surroundings, and a share may be
        negative.

        Shape:
            result: `(texts, rows, columns)`, float32 on the CPU, over the model's centre crop of the image, see
                `ImageTransform.centre`.

        Args:
            image: one image; see `load_image`.
            texts: one or several texts.

        Raises:
            ValueError: if the image embedding is not a mean over locations (a ViT, for example).
            ImageError: if the image cannot be read.
        """
        maps = self.local_embeddings(torch.from_numpy(np.stack(self._read([(1, image)]))))
        return attribution(maps, self.encode_text(texts, keep=True))[0]

    def _read(self, numbered: Sequence[tuple[int, ImageSource]]) -> list[Pixels]:
        """Decode images into pixels, in up to `num_threads` threads."""
        from mobileclip.data.images.transform import name_of, read_pixels

        def read(one: tuple[int, ImageSource]) -> Pixels:
            number, source = one
            name = name_of(source, number)
            reduced = self.decode == "fast"
            return read_pixels(source, self.transform, reduced=reduced, name=name)

        num_threads = min(threads_or_default(self.num_threads), _MOST_READERS)
        # Two sources may share an open file or an image that is not loaded.
        are_apart = all(isinstance(source, (str, Path, bytes)) for _, source in numbered)
        if len(numbered) == 1 or num_threads == 1 or not are_apart:
            return list(map(read, numbered))
        with ThreadPoolExecutor(min(num_threads, len(numbered))) as pool:
            return list(pool.map(read, numbered))

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor, *, normalize: bool = True) -> Tensor:
        """Return the embeddings of images that the transform has resized and cropped.

        Shape:
            `(B, size, size, 3)`, uint8, to `(B, embedding_dim)`, float32 on the CPU.

        Args:
            pixels: pixels of images, encoded as one batch.
            normalize: whether to scale embeddings to unit length.

        Raises:
            ValueError: if the pixels are not uint8, or differ from the model's input size.
        """
        ready = prepared(self.model, texts=False)
        if not isinstance(self.model, ReadyDualEncoder):

            def encode(part: Tensor) -> Tensor:
                return ready.encode_image(self._inputs(part, ready.image_encoder), normalize=normalize)

            return self._side_by_side(encode, pixels, most=MOST_IMAGES_ON_CPU)
        # Otherwise PyTorch's threads would spin while the threads of another runtime compute.
        with torch_threads(1):
            inputs = self._inputs(pixels, ready.image_encoder)
        with torch_threads(self.num_threads):
            return ready.encode_image(inputs, normalize=normalize).float().cpu()

    def _side_by_side(self, encode: Callable[[Tensor], Tensor], inputs: Tensor, *, most: int) -> Tensor:
        """Return the embeddings of inputs; on a CPU, encode small chunks in threads with one torch thread each.

        Unlike PyTorch's intra-op threads, threads with one chunk each do not wait for each other after every layer.
        """
        count = threads_or_default(self.num_threads)
        if self.device.type != "cpu":
            return encode(inputs).float().cpu()
        parts = torch.split(inputs, max(1, min(most, -(-len(inputs) // count))))
        if count == 1 or len(parts) == 1:
            with torch_threads(count):
                return torch.cat([encode(part).float() for part in parts])
        return torch.cat(self._threads.map(lambda part: encode(part).float(), parts, count=count))

    def encode_views(
        self,
        items: Iterable[Item],
        views: Callable[[Item], Views],
        *,
        title: str = "encoding images",
        total: int | None = None,
        weigh: Callable[[Item], int] = lambda _: 1,
        batch_size: int = 32,
        num_threads: int | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[Item, list[Tensor | None] | BadSampleError]]:
        """Yield each item, in order, with the embeddings of the item's views or with the item's error.

        Args:
            items: iterable, read in the caller's thread.
            views: function from an item to the pixels of the item's views (see `read_views`), called in several
                threads. The method yields a `BadSampleError` as the item's result, and raises all other errors.
            title: title of the progress bar.
            total: number of items, if known.
            weigh: function that returns the approximate number of views of an item.
            batch_size: views per batch.
            num_threads: decoding threads; by default one per core, at most eight.
            progress: whether to show a progress bar.
        """

        def encode(batch: list[Pixels]) -> Tensor:
            return self.encode_pixels(torch.from_numpy(np.stack(batch)), normalize=False)

        with Progress(title, total=total, unit="images", console=console(shown=progress)) as bar:
            for one in encode_ahead(items, views, encode, batch_size=batch_size, weigh=weigh, num_threads=num_threads):
                yield one
                bar.advance()

    def local_embeddings(self, pixels: Tensor) -> Tensor:
        """Return an embedding per image location; the mean over locations is `encode_pixels(pixels)`.

        Shape:
            `(B, size, size, 3)`, uint8, to `(B, embedding_dim, rows, columns)`, float32 on the CPU.

        Args:
            pixels: pixels of images that the transform has resized and cropped, encoded as one batch.

        Raises:
            ValueError: if the image embedding is not a mean over locations (a ViT, for example).
        """
        with torch_threads(self.num_threads), torch.inference_mode():
            images = self.transform.normalize(pixels).to(self._like)
            maps = local_encoder(self.model.image_encoder).local_embeddings(images).float().cpu()
            length: Tensor = torch.linalg.vector_norm(maps.mean((2, 3), keepdim=True), dim=1, keepdim=True)
            return maps / length

    def _inputs(self, pixels: Tensor, tower: nn.Module) -> Tensor:
        """Convert pixels to the input of the image tower."""
        if isinstance(tower, PreparedTower) and tower.takes_pixels:
            return self.transform.as_images(pixels)
        return self.transform.normalize(pixels).to(self._like)

    def encode_text(
        self,
        texts: str | Sequence[str],
        *,
        normalize: bool = True,
        batch_size: int = 64,
        progress: bool = False,
        keep: bool = False,
    ) -> Tensor:
        """Return the embeddings of one or several texts.

        Shape:
            B texts to `(B, embedding_dim)`, float32 on the CPU; one text counts as B = 1.

        Args:
            texts: one or several texts in any language (published models are best in English); the tokenizer truncates
                texts to the context length.
            normalize: whether to scale embeddings to unit length.
            batch_size: texts per batch.
            progress: whether to show a bar with the rate and the time left.
            keep: whether to cache the embeddings for repeated texts, up to 256 MiB. A change of the weights clears the
                cache.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        if not several:
            return torch.zeros(0, self.embedding_dim)
        if not keep:
            return self._encoded(several, normalize=normalize, batch_size=batch_size, progress=progress)
        encode = partial(self._encoded, normalize=False, batch_size=batch_size, progress=progress)
        rows = self.text_cache.embeddings(several, encode, of=state_of(self.text_sides))
        return F.normalize(rows, dim=-1) if normalize else rows

    def _encoded(self, several: list[str], *, normalize: bool, batch_size: int, progress: bool) -> Tensor:
        """Return the embeddings of texts, each from the text tower that `routed` selects."""
        numbers = routed(several, self.text_sides)
        parts = [
            self._of_side(
                side,
                [several[number] for number in own],
                normalize=normalize,
                batch_size=batch_size,
                progress=progress,
            )
            for side, own in zip(self.text_sides, numbers, strict=True)
            if own
        ]
        rows, order = torch.cat(parts), torch.tensor([number for own in numbers for number in own])
        return torch.empty_like(rows).index_copy_(0, order, rows)

    def _of_side(self, side: TextSide, texts: list[str], *, normalize: bool, batch_size: int, progress: bool) -> Tensor:
        tokens = side.tokenizer(texts)
        order = by_length(tokens, side.model.spec.text.input)
        ready, device = prepared(side.model, images=False), side.device

        def encode(rows: list[Tensor]) -> Tensor:
            ids = torch.stack(rows).to(device)
            return self._side_by_side(lambda part: ready.encode_text(part, normalize=normalize), ids, most=MOST_TEXTS)

        ordered = self._in_batches(
            tokens[order].unbind(), encode, total=len(order), batch_size=batch_size, unit="texts", progress=progress
        )
        return torch.empty_like(ordered).index_copy_(0, order, ordered)

    @property
    def _like(self) -> Tensor:
        return self.model.logit_scale

    @torch.inference_mode()
    def _in_batches(
        self,
        items: Iterable[Item],
        encode: Callable[[list[Item]], Tensor],
        *,
        total: int | None,
        batch_size: int,
        unit: str,
        progress: bool,
    ) -> Tensor:
        bar = Progress(f"encoding {unit}", total=total, unit=unit, console=console(shown=progress))

        def shown(batch: list[Item]) -> Tensor:
            rows = encode(batch)
            bar.advance(len(batch))
            return rows

        with bar, torch_threads(self.num_threads):
            rows = list(encode_each(items, shown, batch_size=batch_size))
        return torch.stack(rows) if rows else torch.zeros(0, self.embedding_dim)


def attribution(maps: Tensor, directions: Tensor) -> Tensor:
    """Return each location's share of the cosine between an image and a direction; the shares sum to the cosine.

    Shape:
        `(B, dim, rows, columns)` and `(D, dim)` to `(B, D, rows, columns)`.

    Args:
        maps: embeddings per image location, from `ImageTextModel.local_embeddings`.
        directions: vectors of unit length in the embedding space, such as text embeddings.
    """
    return torch.einsum("bcij,dc->bdij", maps, directions.to(maps)) / (maps.shape[2] * maps.shape[3])
