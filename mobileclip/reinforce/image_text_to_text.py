"""A captioner with any vision-language model of transformers' image-text-to-text interface."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

import attrs
import torch
from attrs import validators
from PIL import Image
from torch import Tensor

from mobileclip.hardware import WIDE_PRECISIONS, WidePrecision
from mobileclip.interop.transformers_models import (
    LoadedWeights,
    TransformersSource,
    load_processor,
    load_weights,
    transformers_package,
)
from mobileclip.reinforce.captioners import (
    CaptionerSpec,
    caption_streams,
    captioners,
    nucleus_ids,
    require_seeds,
    sampling_device,
)
from mobileclip.strict import strict

# Replacement for bytes that are not text, such as a letter that truncation has split.
_BROKEN = "\N{REPLACEMENT CHARACTER}"

PROMPT = "Describe this image in one sentence."


@captioners.register("image_text_to_text")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageTextToTextCaptioner(CaptionerSpec):
    """A vision-language model that answers the same prompt for every image (extra `transformers`).

    Args:
        model: a folder written by `save_pretrained`, or `OWNER/NAME` on the hub, for `AutoModelForImageTextToText` and
            `AutoProcessor`.
        revision: revision of the hub repository; None for the newest revision.
        prompt: the question, as one turn of the processor's chat template. For a processor without a chat template, the
            complete prompt with the image token, such as `USER: <image> Describe it. ASSISTANT:`.
        num_captions: number of captions per image; the captioner keeps duplicates.
        top_p: total probability of the nucleus, in (0, 1].
        temperature: sampling temperature, above 0.
        max_length: maximum number of ids per caption; longer captions are truncated.
        first_sentence: whether a caption ends before its first full stop, like CoCa's captions.
        precision: precision of the weights and the computation; the sampling of ids always uses float64.
        max_batch: number of images per batch. Every step runs with this size, so that a caption does not depend on the
            number of images; calls with fewer images, or with images of different shapes, waste rows.

    Raises:
        ValueError: if a number is out of range, or the prompt is blank.
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
        """Return the captioner with loaded weights.

        Raises:
            ValueError: if the model does not exist, lacks weights, or is not an image-text-to-text model.
            ImportError: if transformers is not installed.
        """
        source = TransformersSource(model=self.model, revision=self.revision)
        kind = transformers_package().AutoModelForImageTextToText
        loaded = load_weights(kind, source, device=device, precision=self.precision)
        return ImageTextToTextModel(self, loaded, load_processor(source))


class ImageTextToTextModel:
    """A captioner with a loaded vision-language model.

    Args:
        spec: options of the captioner.
        loaded: the model with its name and the hash of its weights.
        processor: the model's processor.

    Raises:
        ValueError: if the processor has no tokenizer, or the model has no end id.
    """

    def __init__(self, spec: ImageTextToTextCaptioner, loaded: LoadedWeights, processor: Any) -> None:
        self.spec, self.name, self.weights_sha256 = spec, loaded.name, loaded.weights_sha256
        self._model, self._processor, self._text = loaded.model, processor, spec.prompt
        if getattr(processor, "tokenizer", None) is None:
            raise ValueError(f"the processor of {loaded.name} has no tokenizer to decode captions")
        if getattr(processor, "chat_template", None):
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": spec.prompt}]}
            self._text = processor.apply_chat_template([turn], add_generation_prompt=True)
        published = self._model.generation_config
        self._vocabulary = AnswerVocabulary(processor.tokenizer, published.eos_token_id, name=loaded.name)
        # Only special ids come from the model's settings; the spec determines all other options.
        settings = transformers_package().GenerationConfig(
            do_sample=False,
            max_new_tokens=spec.max_length,
            bos_token_id=published.bos_token_id,
            eos_token_id=self._vocabulary.end_ids,
            pad_token_id=self._vocabulary.pad_id,
            decoder_start_token_id=published.decoder_start_token_id,
        )
        for module in self._model.modules():
            # Some models generate with an inner model that has its own configuration.
            if hasattr(module, "generation_config"):
                module.generation_config = settings
        # Some models store the state of an answer as attributes, so only one thread at a time may generate.
        self._lock = Lock()

    @property
    def num_captions(self) -> int:
        """Number of captions per image."""
        return self.spec.num_captions

    @torch.inference_mode()
    def caption(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[tuple[str, ...]]:
        """Return `num_captions` captions for every image; duplicates are possible.

        Args:
            images: original images, without augmentation.
            seeds: one integer per image.

        Raises:
            ValueError: if the numbers of seeds and images differ, or the model cannot process an image.
        """
        require_seeds(images, seeds)
        captions: dict[int, tuple[str, ...]] = {}
        alike: dict[Any, list[int]] = defaultdict(list)
        with self._lock:
            prepared = [self._prepared(image) for image in images]
            for index, inputs in enumerate(prepared):
                alike[tuple((name, tuple(value.shape)) for name, value in inputs.items())].append(index)
            for group in alike.values():
                for start in range(0, len(group), self.spec.max_batch):
                    chunk = group[start : start + self.spec.max_batch]
                    answers = self._answers([prepared[index] for index in chunk], [seeds[index] for index in chunk])
                    captions |= zip(chunk, answers, strict=True)
        return [captions[index] for index in range(len(images))]

    def _prepared(self, image: Image.Image) -> Mapping[str, Tensor]:
        inputs = self._processor(images=[image.convert("RGB")], text=[self._text], return_tensors="pt")
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}

    def _answers(self, prepared: Sequence[Mapping[str, Tensor]], seeds: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the captions for at most `max_batch` images with inputs of the same shapes."""
        spec, count, parameter = self.spec, self.spec.num_captions, next(self._model.parameters())
        missing = spec.max_batch - len(prepared)
        rows = [one for one in (*prepared, *[prepared[0]] * missing) for _ in range(count)]
        inputs = {name: torch.cat([row[name] for row in rows]) for name in prepared[0]}
        inputs = {
            name: value.to(parameter if value.is_floating_point() else parameter.device)
            for name, value in inputs.items()
        }
        draws = caption_streams([*seeds, *[0] * missing], num_captions=count, num_steps=spec.max_length)
        sampler = _Sampler(spec, self._vocabulary, draws.to(sampling_device(parameter.device)))
        self._model.generate(**inputs, logits_processor=transformers_package().LogitsProcessorList([sampler]))
        drawn = torch.stack(sampler.drawn, dim=1).tolist()
        texts = [self._vocabulary.text(row, first_sentence=spec.first_sentence) for row in drawn]
        return [tuple(texts[start : start + count]) for start in range(0, len(prepared) * count, count)]


class AnswerVocabulary:
    """The kinds of token ids in an answer: end tokens, tokens to exclude, and text tokens.

    Args:
        tokenizer: tokenizer of the model.
        ends: end ids in the model's settings: one id, several ids, or None for the tokenizer's end id.
        name: name of the model, for messages.

    Raises:
        ValueError: if neither the settings nor the tokenizer define an end id.
    """

    def __init__(self, tokenizer: Any, ends: int | Iterable[int] | None, *, name: str) -> None:
        self._tokenizer = tokenizer
        ends = tokenizer.eos_token_id if ends is None else ends
        given = ends if isinstance(ends, Iterable) else () if ends is None else (ends,)
        self.end_ids = [int(index) for index in given if index < len(tokenizer)]
        if not self.end_ids:
            raise ValueError(f"{name} has no end id: neither its settings nor its tokenizer define an end token")
        self.pad_id = self.end_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        words = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} - {*self.end_ids}
        self.special = torch.tensor(sorted(index for index in special if index < len(tokenizer)), dtype=torch.int64)
        self.is_visible = torch.tensor([any(map(str.isalnum, word)) for word in words])
        self.is_visible[[*self.end_ids, *self.special.tolist()]] = False

    def text(self, ids: Sequence[int], *, first_sentence: bool) -> str:
        """Return the caption in one line: the first sentence, or the whole text up to the end token."""
        length = next((place for place, index in enumerate(ids) if index in self.end_ids), len(ids))
        decoded = self._tokenizer.decode(ids[:length], skip_special_tokens=True).replace(_BROKEN, "")
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in decoded).split())
        if first_sentence:
            text = next((part.strip() for part in text.split(".") if any(map(str.isalnum, part))), text)
        return text


class _Sampler:
    """A logits processor that samples one id per row, with the random numbers of the caption.

    The sampler never selects a special id, and selects the end only after a letter or digit. If no earlier id contains
    a letter or digit, the last id does, so no caption is blank.

    Args:
        spec: options of the captioner.
        vocabulary: kinds of token ids.
        draws: random numbers in [0, 1), of shape (rows, steps).
    """

    def __init__(self, spec: ImageTextToTextCaptioner, vocabulary: AnswerVocabulary, draws: Tensor) -> None:
        self._spec, self._vocabulary, self._draws = spec, vocabulary, draws
        self._is_silent = torch.ones(len(draws), dtype=torch.bool)
        self.drawn: list[Tensor] = []

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores of the next id: 0 for the sampled id, minus infinity for all others."""
        vocabulary, spec, step, place = self._vocabulary, self._spec, len(self.drawn), self._draws.device
        logits = scores.float().to(place).clone()
        logits[:, vocabulary.special.to(place)] = -torch.inf
        # Models may have more ids than their tokenizers.
        logits[:, len(vocabulary.is_visible) :] = -torch.inf
        is_last = step == spec.max_length - 1
        mute = (~vocabulary.is_visible).nonzero().flatten() if is_last else torch.tensor(vocabulary.end_ids)
        logits[self._is_silent.nonzero().to(place), mute.to(place)] = -torch.inf
        ids = nucleus_ids(logits, self._draws[:, step], top_p=spec.top_p, temperature=spec.temperature)
        self.drawn.append(ids.cpu())
        self._is_silent &= ~vocabulary.is_visible[ids.cpu()]
        return torch.full_like(scores, -torch.inf).scatter_(1, ids.to(scores.device)[:, None], 0.0)
