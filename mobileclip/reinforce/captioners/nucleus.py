"""Captions by nucleus sampling from any CoCa: what the captioners of open_clip's models and of ours share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import torch
from attrs import validators
from PIL import Image
from torch import Tensor

from mobileclip.data import ImageTransform
from mobileclip.hardware import devices
from mobileclip.hardware.precision import WIDE_PRECISIONS, WidePrecision
from mobileclip.inputs import ImageInput
from mobileclip.reinforce.captioners.protocol import require_seeds
from mobileclip.reinforce.captioners.sampling import caption_streams, nucleus_ids
from mobileclip.reinforce.captioners.spec import CaptionerSpec
from mobileclip.strict import strict

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
