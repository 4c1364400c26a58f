"""CoCa, through open_clip, as a captioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from attrs import validators
from PIL import Image
from torch import Tensor

from mobileclip.data import ImageTransform
from mobileclip.hardware import devices
from mobileclip.hardware.precision import WIDE_PRECISIONS, WidePrecision
from mobileclip.interop.open_clip_models import (
    OpenClipModel,
    OpenClipSource,
    image_input,
    load_open_clip,
    open_clip_package,
)
from mobileclip.reinforce.captioners.decoder import CocaDecoder
from mobileclip.reinforce.captioners.sampling import caption_streams, nucleus_ids
from mobileclip.reinforce.captioners.spec import CaptionerSpec, captioners
from mobileclip.strict import strict

# The release forbids the end before the fifth id, the start token included.
_MIN_LENGTH = 5
_PAD_ID = 0


@captioners.register("coca")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CocaCaptioner(CaptionerSpec):
    """CoCa's captions by nucleus sampling, cut in front of the first full stop.

    Args:
        model: as `OpenClipTeacher` takes it.
        pretrained: as `OpenClipTeacher` takes it.
        num_captions: captions per image. Two may be the same, and stay: an image has as many as every other.
        top_p: the nucleus' share of the probability, in (0, 1].
        temperature: above 0.
        max_length: ids per caption, start and end included.
        precision: of the weights and the computation; probabilities are in float64.
        max_batch: images that are captioned at once. Every step has this size, so that a caption does not depend on how
            many images came with it; calls with fewer images waste the rest.

    Raises:
        ValueError: if the weights are not said, or are said twice.

    Source: section 4 of the paper, and the release's generator, whose length limits these are.
    Differs: draws depend on the image's seed alone, not on the batch; neither a full stop nor the end comes before the
        fifth id, so that no caption is empty; padding, which the release may draw and then spells out as exclamation
        marks, is never drawn.
    """

    model: str = attrs.field(default="coca_ViT-L-14", validator=validators.min_len(1))
    pretrained: str | None = "mscoco_finetuned_laion2B-s13B-b90k"
    num_captions: int = attrs.field(default=5, validator=validators.gt(0))
    top_p: float = attrs.field(default=0.9, validator=[validators.gt(0), validators.le(1)])
    temperature: float = attrs.field(default=1.0, validator=validators.gt(0))
    max_length: int = attrs.field(default=30, validator=validators.gt(_MIN_LENGTH))
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))
    max_batch: int = attrs.field(default=8, validator=validators.gt(0))

    def __attrs_post_init__(self) -> None:
        self._source()

    def build(self, device: str = "cpu") -> CocaModel:
        """Return the captioner, its weights loaded.

        Raises:
            ValueError: if open_clip is missing, it does not know the model or the tag, the weights do not fit, or the
                model is no CoCa that can be decoded here.
        """
        return CocaModel(self, load_open_clip(self._source(), device=device, precision=self.precision))

    def _source(self) -> OpenClipSource:
        return OpenClipSource(model=self.model, pretrained=self.pretrained)


class CocaModel:
    """A loaded CoCa.

    Args:
        spec: the choices.
        loaded: the model.

    Raises:
        ValueError: if it is no CoCa, its image transform is not resize and centre crop, or its context is too short.
    """

    def __init__(self, spec: CocaCaptioner, loaded: OpenClipModel) -> None:
        if not isinstance(loaded.model, open_clip_package().CoCa):
            raise ValueError(f"{loaded.name} is no CoCa, so it writes no captions")
        if loaded.preprocess["resize_mode"] != "shortest":
            raise ValueError(
                f"{loaded.name} makes images square by {loaded.preprocess['resize_mode']!r}; only 'shortest', resize "
                "and centre crop, is supported"
            )
        if spec.max_length > loaded.model.context_length:
            raise ValueError(
                f"max_length is {spec.max_length}, and {loaded.name} has room for {loaded.model.context_length} ids"
            )
        self.spec = spec
        self.name = loaded.name
        self.weights_sha256 = loaded.weights_sha256
        self.image = image_input(loaded.preprocess, loaded.name)
        self._model = loaded.model
        self._transform = ImageTransform(self.image)
        self._decoder = CocaDecoder(loaded.model)
        self._vocabulary = Vocabulary(loaded.tokenizer)

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
        if len(seeds) != len(images):
            raise ValueError(f"{len(images)} images come with {len(seeds)} seeds; one per image is expected")
        size, count = self.spec.max_batch, self.spec.num_captions
        texts: list[str] = []
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            texts += self._texts([self._transform(image) for image in chunk], seeds[start : start + size])
        return [tuple(texts[start : start + count]) for start in range(0, len(texts), count)]

    def _texts(self, pixels: list[Tensor], seeds: Sequence[int]) -> list[str]:
        missing = self.spec.max_batch - len(pixels)
        first = next(self._model.parameters())
        stacked = torch.stack([*pixels, *[torch.zeros_like(pixels[0])] * missing]).to(first)
        _, image_tokens = self._model.visual(stacked)
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
            logits = self._decoder.step(state, ids)[running]
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


class Vocabulary:
    """The vocabulary of CoCa's captions: ids to text.

    Args:
        tokenizer: open_clip's, of CLIP's byte pairs.

    Raises:
        ValueError: if it is another one.
    """

    def __init__(self, tokenizer: Callable[[Sequence[str]], Tensor]) -> None:
        package: Any = open_clip_package()
        if not isinstance(tokenizer, package.tokenizer.SimpleTokenizer):
            raise ValueError(f"captions in the ids of {type(tokenizer).__name__} cannot be read; CLIP's are expected")
        self._tokenizer: Any = tokenizer
        tokens = self._tokenizer.decoder
        self.start_id: int = self._tokenizer.sot_token_id
        self.end_id: int = self._tokenizer.eot_token_id
        self.stops = torch.tensor([index == self.end_id or "." in tokens[index] for index in range(len(tokens))])

    def text(self, ids: Sequence[int]) -> str:
        """Return the caption: up to the first full stop or the end, without it."""
        before_end = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        decoded: str = self._tokenizer.decode(before_end)
        return decoded.split(".", maxsplit=1)[0].strip()
