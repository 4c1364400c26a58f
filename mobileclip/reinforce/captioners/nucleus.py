"""Captions by nucleus sampling from any CoCa: every draw is decided by a seed, one stream of numbers per caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import numpy as np
import torch
from attrs import validators
from PIL import Image
from torch import Tensor

from mobileclip.data import ImageTransform
from mobileclip.data.randomness import derived_seed, seeded_rng
from mobileclip.hardware import devices
from mobileclip.hardware.precision import WIDE_PRECISIONS, WidePrecision
from mobileclip.inputs import ImageInput
from mobileclip.reinforce.captioners.base import CaptionerSpec, require_seeds
from mobileclip.strict import strict

# How many ids are sorted, until the nucleus is among them; that of a trained captioner is far smaller than the first.
_SIZES = (256, 4096)


def caption_seed(seed: int, key: str, caption_set: str) -> int:
    """Return the seed of an image's captions.

    Args:
        seed: of the run.
        key: of the sample.
        caption_set: name of the captions' set.
    """
    return derived_seed(seed, "captions", caption_set, key)


def caption_streams(seeds: Sequence[int], *, num_captions: int, num_steps: int) -> Tensor:
    """Return the numbers from [0, 1) that every caption of every image is drawn with.

    Shape:
        (number of seeds * num_captions, num_steps) float64, the captions of an image beside each other.

    Args:
        seeds: one per image.
        num_captions: captions per image; the first ones are the same however many there are.
        num_steps: ids per caption.
    """
    streams = [seeded_rng(seed, "caption", index).random(num_steps) for seed in seeds for index in range(num_captions)]
    return torch.from_numpy(np.stack(streams)) if streams else torch.zeros(0, num_steps, dtype=torch.float64)


def nucleus_ids(logits: Tensor, draws: Tensor, *, top_p: float, temperature: float) -> Tensor:
    """Return one id per row, drawn from the fewest most probable ids that have `top_p` of the probability.

    `P(id) ~ softmax(logits)[id] ** (1 / temperature)` on the nucleus of `softmax(logits)`, and 0 elsewhere. The draw is
    the inverse of the cumulated probability, in float64, from the most probable id on; ids that are equally probable
    come in their order. What a row gives depends on no other row.

    Shape:
        logits (rows, vocab), draws (rows,) float64 -> (rows,) int64.

    Args:
        logits: minus infinity where an id is out of the question.
        draws: from [0, 1).
        top_p: in (0, 1].
        temperature: above 0; below 1 it sharpens.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    # The total of 49408 terms only places the nucleus' edge, for which float32 terms do; what is drawn from is float64.
    most = logits.amax(-1, keepdim=True)
    log_total = most.double() + (logits - most).exp().sum(-1, keepdim=True, dtype=torch.float64).log()
    result = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    vocab_size = logits.shape[-1]
    for size in (*_SIZES, vocab_size):
        ids, log_probs = _most_probable(logits[rows], min(size, vocab_size), log_total[rows])
        result[rows] = _inverse_cdf(ids, log_probs, draws[rows], top_p=top_p, temperature=temperature)
        # An id as probable as the last may be missing, so only those above it count.
        certain = torch.where(log_probs > log_probs[:, -1:], log_probs.exp(), 0).sum(-1)
        rows = rows[certain < top_p]
        if not len(rows):
            break
    return result


def _most_probable(logits: Tensor, size: int, log_total: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most probable ids and their log probabilities in float64, in order."""
    if size < logits.shape[-1]:
        # In ascending order, so that the stable sort breaks ties by id, as it does when all are sorted.
        ids = logits.topk(size, dim=-1).indices.sort(dim=-1).values
        logits = logits.gather(-1, ids)
    else:
        ids = torch.arange(size, device=logits.device).expand(len(logits), -1)
    logits, order = logits.sort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, order), logits.double() - log_total


def _inverse_cdf(ids: Tensor, log_probs: Tensor, draws: Tensor, *, top_p: float, temperature: float) -> Tensor:
    probs = log_probs.exp()
    inside = (probs.cumsum(-1) - probs < top_p) & (probs > 0)
    weights = torch.where(inside, (log_probs / temperature - log_probs[:, :1] / temperature).exp(), 0)
    cumulated = weights.cumsum(-1)
    index = torch.searchsorted(cumulated, draws.unsqueeze(-1) * cumulated[:, -1:], right=True)
    last = inside.sum(-1, keepdim=True) - 1
    return ids.gather(-1, torch.minimum(index, last)).squeeze(-1)


# The release forbids the end before the fifth id, the start token included.
_MIN_LENGTH = 5
_PAD_ID = 0  # CLIP's


@attrs.frozen(kw_only=True, field_transformer=strict)
class NucleusSpec(CaptionerSpec):
    """The choices that captioners by nucleus sampling share; their captions are cut in front of the first full stop.

    Args:
        num_captions: captions per image. Two may be the same, and stay: an image has as many as every other.
        top_p: the nucleus' share of the probability, in (0, 1].
        temperature: above 0.
        max_length: ids per caption, start and end included.
        precision: of the weights and the computation; probabilities are in float64.
        max_batch: images that are captioned at once. Every step has this size, so that a caption does not depend on how
            many images came with it; calls with fewer images waste the rest.
    """

    num_captions: int = attrs.field(default=5, validator=validators.gt(0))
    top_p: float = attrs.field(default=0.9, validator=[validators.gt(0), validators.le(1)])
    temperature: float = attrs.field(default=1.0, validator=validators.gt(0))
    max_length: int = attrs.field(default=30, validator=validators.gt(_MIN_LENGTH))
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))
    max_batch: int = attrs.field(default=8, validator=validators.gt(0))


class Words(Protocol):
    """The vocabulary of a captioner: start and end ids, and ids to text."""

    start_id: int
    end_id: int
    stops: Tensor

    def text(self, ids: Sequence[int]) -> str:
        """Return the caption: up to the first full stop or the end, without it."""


class Decoder(Protocol):
    """A decoder with a memory of earlier ids, such as `CocaDecoder` or a `CoCa`."""

    def start(self, image_tokens: Tensor, *, num_captions: int, max_length: int) -> Any:
        """Return the state of captions without ids."""

    def step(self, state: Any, ids: Tensor) -> Tensor:
        """Return the logits of the next id, and append `ids` to the state."""


class NucleusCaptioner:
    """A loaded CoCa that writes captions.

    Args:
        spec: the choices.
        name: what people call it.
        weights_sha256: hash of its weights.
        image: what its image tower takes.
        place: a tensor of its dtype, on its device.
        encode: from preprocessed images to the tokens that the decoder attends to.
        decoder: of captions.
        vocabulary: what ids mean.
        context_length: ids of a caption, at most.

    Raises:
        ValueError: if its context is too short.
    """

    def __init__(
        self,
        spec: NucleusSpec,
        *,
        name: str,
        weights_sha256: str,
        image: ImageInput,
        place: Tensor,
        encode: Callable[[Tensor], Tensor],
        decoder: Decoder,
        vocabulary: Words,
        context_length: int,
    ) -> None:
        if spec.max_length > context_length:
            raise ValueError(f"max_length is {spec.max_length}, and {name} has room for {context_length} ids")
        self.spec, self.name, self.weights_sha256, self.image = spec, name, weights_sha256, image
        self._place, self._encode, self._decoder, self._vocabulary = place, encode, decoder, vocabulary
        self._transform = ImageTransform(image)

    @property
    def num_captions(self) -> int:
        """Captions per image."""
        return self.spec.num_captions

    @torch.inference_mode()
    def caption(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the captions of every image, `num_captions` each; two may be the same.

        Args:
            images: as they are, not augmented.
            seeds: one per image, any integer.

        Raises:
            ImageError: if an image cannot be brought to the model's input.
            ValueError: if there are not as many seeds as images.
        """
        require_seeds(images, seeds)
        size, count = self.spec.max_batch, self.spec.num_captions
        texts: list[str] = []
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            texts += self._texts([self._transform(image) for image in chunk], seeds[start : start + size])
        return [tuple(texts[start : start + count]) for start in range(0, len(texts), count)]

    def _texts(self, pixels: list[Tensor], seeds: Sequence[int]) -> list[str]:
        missing = self.spec.max_batch - len(pixels)
        stacked = torch.stack([*pixels, *[torch.zeros_like(pixels[0])] * missing]).to(self._place)
        image_tokens = self._encode(stacked)
        rows = self._decode(image_tokens, [*seeds, *[0] * missing], num_images=len(pixels)).tolist()
        return [self._vocabulary.text(row) for row in rows]

    def _decode(self, image_tokens: Tensor, seeds: Sequence[int], *, num_images: int) -> Tensor:
        """Return the ids of the first images, without the start, what comes after the first stop included.

        Shape:
            (num_images * num_captions, at most max_length - 2).
        """
        spec, vocabulary, device = self.spec, self._vocabulary, image_tokens.device
        num_steps = spec.max_length - 2
        draws = caption_streams(seeds, num_captions=spec.num_captions, num_steps=num_steps)
        # What is drawn is decided in float64, on the CPU where the device has none.
        sampling = device if devices.has_float64(device) else torch.device("cpu")
        draws = draws.to(sampling)
        stops = vocabulary.stops.to(device)
        state = self._decoder.start(image_tokens, num_captions=spec.num_captions, max_length=num_steps)
        ids = torch.full((len(draws),), vocabulary.start_id, device=device)
        # Missing images, and captions that have ended, go on in every step but draw nothing.
        running = torch.arange(num_images * spec.num_captions, device=device)
        drawn: list[Tensor] = []
        while len(drawn) < num_steps and len(running):
            logits = self._decoder.step(state, ids)[running].float()
            logits[:, [_PAD_ID, vocabulary.start_id]] = -torch.inf
            if len(drawn) + 1 < _MIN_LENGTH:
                logits.masked_fill_(stops, -torch.inf)
            ids = torch.full_like(ids, vocabulary.end_id)
            ids[running] = nucleus_ids(
                logits.to(sampling),
                draws[running.to(sampling), len(drawn)],
                top_p=spec.top_p,
                temperature=spec.temperature,
            ).to(device)
            drawn.append(ids)
            running = running[~stops[ids[running]]]
        return torch.stack(drawn, dim=1)[: num_images * spec.num_captions]
