"""Any vision-language model of transformers' image-text-to-text interface, as a captioner."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

import attrs
import torch
from attrs import validators
from PIL import Image
from torch import Tensor

from mobileclip.hardware import devices
from mobileclip.hardware.precision import WIDE_PRECISIONS, WidePrecision
from mobileclip.interop.transformers_models import (
    LoadedWeights,
    TransformersSource,
    load_processor,
    load_weights,
    transformers_package,
)
from mobileclip.reinforce.captioners.base import CaptionerSpec, captioners, require_seeds
from mobileclip.reinforce.captioners.nucleus import caption_streams, nucleus_ids
from mobileclip.strict import strict

# What stands for bytes that are no text, as where a caption was cut within a letter.
_BROKEN = "\N{REPLACEMENT CHARACTER}"

PROMPT = "Describe this image in one sentence."


@captioners.register("image_text_to_text")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageTextToTextCaptioner(CaptionerSpec):
    """Answers of a vision-language model to one prompt about every image, by nucleus sampling (extra `transformers`).

    Args:
        model: a folder that `save_pretrained` has written, or `OWNER/NAME` on the hub: whatever
            `AutoModelForImageTextToText` and `AutoProcessor` load.
        revision: of the hub's repository; None for the newest.
        prompt: what is asked, as one turn of the processor's chat template. Of a processor without one it is the whole
            text, with the image's token where the model wants it: `USER: <image> Describe it. ASSISTANT:`.
        num_captions: captions per image. Two may be the same, and stay: an image has as many as every other.
        top_p: the nucleus' share of the probability, in (0, 1].
        temperature: above 0.
        max_length: ids per caption; what is longer is cut.
        first_sentence: whether a caption ends in front of its first full stop, as CoCa's do.
        precision: of the weights and the computation; probabilities are in float64.
        max_batch: images that are captioned at once. Every step has this size, so that a caption does not depend on how
            many images came with it; calls with fewer images, or with images of other shapes, waste the rest.

    Raises:
        ValueError: if a number is out of its range, or the prompt is blank.
    """

    model: str = attrs.field(converter=os.fspath)
    revision: str | None = None
    prompt: str = attrs.field(default=PROMPT, validator=validators.matches_re(r"(?s).*\S.*"))
    num_captions: int = attrs.field(default=5, validator=validators.gt(0))
    top_p: float = attrs.field(default=0.9, validator=[validators.gt(0), validators.le(1)])
    temperature: float = attrs.field(default=1.0, validator=validators.gt(0))
    max_length: int = attrs.field(default=60, validator=validators.gt(0))
    first_sentence: bool = False
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))
    max_batch: int = attrs.field(default=4, validator=validators.gt(0))

    def build(self, device: str = "cpu") -> ImageTextToTextModel:
        """Return the captioner, its weights loaded.

        Raises:
            ValueError: if there is no such model, weights are missing, or it does not answer to images with text.
            ImportError: if transformers is missing.
        """
        source = TransformersSource(model=self.model, revision=self.revision)
        kind = transformers_package().AutoModelForImageTextToText
        loaded = load_weights(kind, source, device=device, precision=self.precision)
        return ImageTextToTextModel(self, loaded, load_processor(source))


class ImageTextToTextModel:
    """A loaded vision-language model.

    Args:
        spec: the choices.
        loaded: the model.
        processor: what makes its inputs of images and texts.

    Raises:
        ValueError: if the processor has no tokenizer, or nothing says which id ends an answer.
    """

    def __init__(self, spec: ImageTextToTextCaptioner, loaded: LoadedWeights, processor: Any) -> None:
        self.spec = spec
        self.name = loaded.name
        self.weights_sha256 = loaded.weights_sha256
        self._model = loaded.model
        self._processor = processor
        self._tokenizer: Any = getattr(processor, "tokenizer", None)
        if self._tokenizer is None:
            raise ValueError(f"{loaded.name} has no tokenizer in its processor, so its captions cannot be read")
        self._text = self._prompt()
        self._vocabulary = _Vocabulary(self._tokenizer, loaded)
        published = self._model.generation_config
        # Of the model's own settings, only its special ids count: all else is a choice of the spec.
        settings = transformers_package().GenerationConfig(
            do_sample=False,
            max_new_tokens=spec.max_length,
            bos_token_id=published.bos_token_id,
            eos_token_id=list(self._vocabulary.end_ids),
            pad_token_id=self._vocabulary.pad_id,
            decoder_start_token_id=published.decoder_start_token_id,
        )
        for module in self._model.modules():
            # Some models have the one inside generate.
            if hasattr(module, "generation_config"):
                module.generation_config = settings
        # Some models keep the state of an answer in themselves.
        self._lock = Lock()

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
            ValueError: if there are not as many seeds as images, or the model cannot take an image.
        """
        require_seeds(images, seeds)
        captions: dict[int, tuple[str, ...]] = {}
        with self._lock:
            prepared = [self._prepared(image) for image in images]
            for group in _alike(prepared):
                for start in range(0, len(group), self.spec.max_batch):
                    chunk = group[start : start + self.spec.max_batch]
                    answers = self._answers([prepared[index] for index in chunk], [seeds[index] for index in chunk])
                    captions |= zip(chunk, answers, strict=True)
        return [captions[index] for index in range(len(images))]

    def _prompt(self) -> str:
        if not getattr(self._processor, "chat_template", None):
            return self.spec.prompt
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.spec.prompt}]}
        text: str = self._processor.apply_chat_template([turn], add_generation_prompt=True)
        return text

    def _prepared(self, image: Image.Image) -> Mapping[str, Tensor]:
        inputs = self._processor(images=[image.convert("RGB")], text=[self._text], return_tensors="pt")
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}

    def _answers(self, prepared: Sequence[Mapping[str, Tensor]], seeds: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the captions of images whose inputs have the same shapes, at most `max_batch` of them."""
        spec = self.spec
        missing = spec.max_batch - len(prepared)
        rows = [one for one in (*prepared, *[prepared[0]] * missing) for _ in range(spec.num_captions)]
        parameter = next(self._model.parameters())
        inputs = {name: torch.cat([row[name] for row in rows]).to(parameter.device) for name in prepared[0]}
        inputs = {
            name: value.to(parameter.dtype) if value.is_floating_point() else value for name, value in inputs.items()
        }
        draws = caption_streams([*seeds, *[0] * missing], num_captions=spec.num_captions, num_steps=spec.max_length)
        sampler = _Sampler(spec, self._vocabulary, draws, parameter.device)
        self._model.generate(**inputs, logits_processor=transformers_package().LogitsProcessorList([sampler]))
        texts = [self._vocabulary.text(row, first_sentence=spec.first_sentence) for row in sampler.ids()]
        count = spec.num_captions
        return [tuple(texts[start : start + count]) for start in range(0, len(prepared) * count, count)]


class _Vocabulary:
    """What the ids of an answer mean.

    Args:
        tokenizer: the model's.
        loaded: the model, whose settings may name more ids that end an answer.
    """

    def __init__(self, tokenizer: Any, loaded: LoadedWeights) -> None:
        self._tokenizer = tokenizer
        ends = loaded.model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        given = ends if isinstance(ends, Iterable) else () if ends is None else (ends,)
        self.end_ids = tuple(int(index) for index in given if index < len(tokenizer))
        if not self.end_ids:
            raise ValueError(f"nothing says which id ends an answer of {loaded.name}; its tokenizer has no end token")
        pad = tokenizer.pad_token_id
        self.pad_id = self.end_ids[0] if pad is None else pad
        words = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
        self.is_visible = torch.tensor([any(map(str.isalnum, word)) for word in words])
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} - {*self.end_ids}
        self.special = torch.tensor(sorted(index for index in special if index < len(tokenizer)), dtype=torch.int64)
        self.is_end = torch.zeros_like(self.is_visible)
        self.is_end[list(self.end_ids)] = True
        self.is_visible[self.special] = False
        self.is_visible[self.is_end] = False

    def text(self, ids: Sequence[int], *, first_sentence: bool) -> str:
        """Return the caption: up to the end, or the first full stop behind a letter or a digit, in one line."""
        length = next((place for place, index in enumerate(ids) if index in self.end_ids), len(ids))
        decoded = self._tokenizer.decode(ids[:length], skip_special_tokens=True).replace(_BROKEN, "")
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in decoded).split())
        if first_sentence:
            text = next((part.strip() for part in text.split(".") if any(map(str.isalnum, part))), text)
        return text


class _Sampler:
    """Leaves one id of every row: that which the caption's own numbers draw.

    No special id is drawn, the end only behind a letter or a digit, and the last id is one where none was before, so
    that no caption is blank.

    Args:
        spec: the choices.
        vocabulary: what ids mean.
        draws: (rows, steps), from [0, 1).
        device: of the logits.
    """

    def __init__(
        self, spec: ImageTextToTextCaptioner, vocabulary: _Vocabulary, draws: Tensor, device: torch.device
    ) -> None:
        self._spec = spec
        self._vocabulary = vocabulary
        # What is drawn is decided in float64, on the CPU where the device has none.
        self._place = device if devices.has_float64(device) else torch.device("cpu")
        self._draws = draws.to(self._place)
        self._says_something = torch.zeros(len(draws), dtype=torch.bool)
        self._drawn: list[Tensor] = []

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores of the next id: 0 of the one that is drawn, minus infinity of all others."""
        vocabulary, spec = self._vocabulary, self._spec
        logits = scores.float().to(self._place).clone()
        logits[:, vocabulary.special.to(self._place)] = -torch.inf
        # Models have room for more ids than their tokenizers know.
        logits[:, len(vocabulary.is_visible) :] = -torch.inf
        silent = torch.nonzero(~self._says_something).flatten().to(self._place)
        mute = ~vocabulary.is_visible if len(self._drawn) == spec.max_length - 1 else vocabulary.is_end
        logits[silent[:, None], mute.nonzero().flatten().to(self._place)] = -torch.inf
        ids = nucleus_ids(logits, self._draws[:, len(self._drawn)], top_p=spec.top_p, temperature=spec.temperature)
        self._drawn.append(ids.cpu())
        self._says_something |= vocabulary.is_visible[ids.cpu()]
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter_(1, ids.to(scores.device)[:, None], 0.0)

    def ids(self) -> list[list[int]]:
        """Return the ids of every row, what comes after its end included."""
        rows: list[list[int]] = torch.stack(self._drawn, dim=1).tolist()
        return rows


def _alike(prepared: Sequence[Mapping[str, Tensor]]) -> list[list[int]]:
    """Return the places of the inputs by their shapes, those of one shape together."""
    groups: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = {}
    for index, inputs in enumerate(prepared):
        shapes = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        groups.setdefault(shapes, []).append(index)
    return list(groups.values())
