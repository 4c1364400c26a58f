"""Captioners: models that write captions for images (for example, a CoCa with nucleus sampling), and captioner sets.

Sampling depends only on the image's seed, with one random stream per caption. Add new captioners here, and register the
captioners' specs by name.
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import attrs
import numpy as np
import torch
from attrs import validators
from PIL import Image
from torch import Tensor

from mobileclip import hardware
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.data.randomness import derived_seed, seeded_rng
from mobileclip.data.samples.sample import SYN_NAME, SYN_TEXT
from mobileclip.encoders import CoCa
from mobileclip.encoders.checkpoints import load_model
from mobileclip.hardware import WIDE_PRECISIONS, WidePrecision, dtype_of
from mobileclip.inputs import TextInput
from mobileclip.interop.open_clip_models import OpenClipSource, coca_of, load_open_clip
from mobileclip.registry import Registry
from mobileclip.serialization import register_spec_base
from mobileclip.strict import repeated, strict
from mobileclip.tensor_files import CheckpointError
from mobileclip.tensor_files.weights import weights_sha256


@runtime_checkable
class Captioner(Protocol):
    """The interface that reinforcement requires of a captioner."""

    @property
    def name(self) -> str:
        """Display name of the captioner."""

    @property
    def weights_sha256(self) -> str:
        """Hash of the captioner's weights, computed like the teachers' `weights_sha256`."""

    @property
    def num_captions(self) -> int:
        """Number of captions per image."""

    def caption(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the captions for every image.

        Captions depend only on the image and the image's seed, not on other images or the order of images.

        Args:
            images: original images, without augmentation.
            seeds: one integer per image.

        Raises:
            ImageError: if an image cannot be converted to the captioner's input; the call then returns no captions for
                the other images either.
        """


def require_seeds(images: Sequence[Image.Image], seeds: Sequence[int]) -> None:
    """Raise a ValueError unless there is one seed per image."""
    if len(seeds) != len(images):
        raise ValueError(f"{len(images)} images have {len(seeds)} seeds; expected one seed per image")


@attrs.frozen(kw_only=True)
class CaptionerSpec(ABC):
    """Base class of captioner specs; register a subclass in `captioners` or with an entry point.

    Examples:
        >>> from mobileclip.serialization import from_json, to_json
        >>> captioner = CocaCaptioner()
        >>> from_json(to_json(captioner, unstructure_as=CaptionerSpec), CaptionerSpec) == captioner
        True
    """

    @abstractmethod
    def build(self, device: str = "cpu") -> Captioner:
        """Return the captioner with loaded weights.

        Args:
            device: device of the captioner, such as `cuda:1`.

        Raises:
            ValueError: if the weights do not exist or cannot be loaded.
        """


captioners: Registry[type[CaptionerSpec]] = Registry("captioner", home="mobileclip.reinforce.image_text_to_text")
"""Captioner specs by name; other packages register specs here or with an entry point in `mobileclip.captioner`."""

register_spec_base(CaptionerSpec, captioners)


@attrs.frozen(kw_only=True, field_transformer=strict)
class CaptionSet:
    """A captioner with the name of the caption set that the captioner writes.

    Args:
        name: name of the caption set, `syn_text` or `syn_text_NAME`.
        captioner: captioner that writes the set.
    """

    name: str = attrs.field(validator=validators.matches_re(SYN_NAME))
    captioner: CaptionerSpec


@captioners.register("several")
@attrs.frozen(kw_only=True, field_transformer=strict)
class SeveralCaptioners(CaptionerSpec):
    """Several captioners with one caption set each, as in MobileCLIP2.

    One job with all captioners stores the same captions as separate jobs with one captioner each.

    Args:
        sets: caption sets, at least one, with different names.

    Raises:
        ValueError: if `sets` is empty, or a name is duplicated.

    Source: MobileCLIP2, section 3: captions of different models are complementary.
    """

    sets: tuple[CaptionSet, ...] = attrs.field(converter=tuple[CaptionSet, ...], validator=validators.min_len(1))

    def __attrs_post_init__(self) -> None:
        if twice := repeated(one.name for one in self.sets):
            raise ValueError(f"two caption sets have the name {twice[0]}; rename one of them to syn_text_NAME")

    def build(self, device: str = "cpu") -> CaptionerEnsemble:
        """Return the captioners with loaded weights.

        Raises:
            ValueError: if the weights of a captioner do not exist or cannot be loaded.
        """
        return CaptionerEnsemble({one.name: one.captioner.build(device) for one in self.sets})


class CaptionerEnsemble:
    """Loaded captioners by the names of their caption sets, with the interface of a single captioner.

    Args:
        sets: captioners by the names of their caption sets, at least one.
    """

    def __init__(self, sets: Mapping[str, Captioner]) -> None:
        self.sets = dict(sets)

    @property
    def name(self) -> str:
        """Display name of the captioner."""
        return " + ".join(one.name for one in self.sets.values())

    @property
    def weights_sha256(self) -> str:
        """Combined SHA-256 of the captioners' `weights_sha256`."""
        return hashlib.sha256("".join(one.weights_sha256 for one in self.sets.values()).encode()).hexdigest()

    @property
    def num_captions(self) -> int:
        """Total number of captions per image."""
        return sum(one.num_captions for one in self.sets.values())

    def caption(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the captions for every image, captioner by captioner; each captioner has its own random numbers."""
        written = [one.caption(images, [derived_seed(seed, name) for seed in seeds]) for name, one in self.sets.items()]
        return [tuple(text for texts in of_image for text in texts) for of_image in zip(*written, strict=True)]


def caption_sets(captioner: Captioner, name: str) -> Mapping[str, Captioner]:
    """Return captioners by the names of their caption sets.

    Args:
        captioner: a captioner or a `CaptionerEnsemble`.
        name: name of the caption set of a single captioner.
    """
    return captioner.sets if isinstance(captioner, CaptionerEnsemble) else {name: captioner}


# Numbers of ids to sort, tried in turn until the sorted ids contain the nucleus. A trained captioner's nucleus is far
# smaller than the first number.
_SIZES = (256, 4096)
# In the release, the end may only be the fifth or a later id, counting the start token.
_MIN_LENGTH = 5
_PAD_ID = 0  # CLIP's


def caption_seed(seed: int, key: str, caption_set: str) -> int:
    """Return the seed for the captions of an image.

    Args:
        seed: seed of the run.
        key: key of the sample.
        caption_set: name of the caption set.
    """
    return derived_seed(seed, "captions", caption_set, key)


def caption_streams(seeds: Sequence[int], *, num_captions: int, num_steps: int) -> Tensor:
    """Return the random numbers in [0, 1) for every caption of every image.

    Shape: (number of seeds * num_captions, num_steps) float64; the rows of an image's captions are adjacent.

    Args:
        seeds: one seed per image.
        num_captions: number of captions per image; the random numbers of the first captions do not depend on this
            number.
        num_steps: number of random numbers per caption, one per token id.
    """
    streams = [seeded_rng(seed, "caption", index).random(num_steps) for seed in seeds for index in range(num_captions)]
    return torch.from_numpy(np.stack(streams)) if streams else torch.zeros(0, num_steps, dtype=torch.float64)


def nucleus_ids(logits: Tensor, draws: Tensor, *, top_p: float, temperature: float) -> Tensor:
    """Return one id per row, sampled from the smallest set of most probable ids with total probability `top_p`.

    The distribution is `P(id) ~ softmax(logits)[id] ** (1 / temperature)` on the nucleus of `softmax(logits)`, and 0
    elsewhere. Sampling inverts the cumulative probability in float64, starting with the most probable id; equally
    probable ids are in ascending order. Rows are independent.

    Shape:
        logits (rows, vocab), draws (rows,) float64 -> (rows,) int64.

    Args:
        logits: logits of the ids; minus infinity for ids that must not be sampled.
        draws: random numbers in [0, 1).
        top_p: total probability of the nucleus, in (0, 1].
        temperature: sampling temperature, above 0; values below 1 sharpen the distribution.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    # The total of 49408 terms only determines the nucleus' edge, so float32 terms suffice; sampling is in float64.
    most = logits.amax(-1, keepdim=True)
    log_total = most.double() + (logits - most).exp().sum(-1, keepdim=True, dtype=torch.float64).log()
    result = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    vocab_size = logits.shape[-1]
    for size in (*_SIZES, vocab_size):
        ids, log_probs = _most_probable(logits[rows], min(size, vocab_size), log_total[rows])
        result[rows] = _inverse_cdf(ids, log_probs, draws[rows], top_p=top_p, temperature=temperature)
        # Ids with the same probability as the last id may be missing, so only more probable ids count.
        certain = torch.where(log_probs > log_probs[:, -1:], log_probs.exp(), 0).sum(-1)
        rows = rows[certain < top_p]
        if not len(rows):
            break
    return result


def _most_probable(logits: Tensor, size: int, log_total: Tensor) -> tuple[Tensor, Tensor]:
    """Return the `size` most probable ids, most probable first, and the ids' log probabilities in float64."""
    if size < logits.shape[-1]:
        # In ascending order, so that the stable sort breaks ties by id, as in a sort of all ids.
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


def sampling_device(device: torch.device) -> torch.device:
    """Return the device for sampling: the CPU if the device lacks float64."""
    return device if hardware.has_float64(device) else torch.device("cpu")


@attrs.frozen(kw_only=True, field_transformer=strict)
class NucleusSpec(CaptionerSpec):
    """Base class of captioner specs with nucleus sampling; a caption ends before its first full stop.

    Args:
        num_captions: number of captions per image; the captioner keeps duplicates.
        top_p: total probability of the nucleus, in (0, 1].
        temperature: sampling temperature, above 0.
        max_length: maximum number of ids per caption, including start and end.
        precision: precision of the weights and the computation; the sampling of ids always uses float64.
        max_batch: number of images per batch. Every step runs with this size, so that a caption does not depend on the
            number of images; calls with fewer images waste the remaining rows.
    """

    num_captions: int = attrs.field(default=5, validator=validators.gt(0))
    top_p: float = attrs.field(default=0.9, validator=[validators.gt(0), validators.le(1)])
    temperature: float = attrs.field(default=1.0, validator=validators.gt(0))
    max_length: int = attrs.field(default=30, validator=validators.gt(_MIN_LENGTH))
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))
    max_batch: int = attrs.field(default=8, validator=validators.gt(0))


# Several captioners often have the same tokenizer, and decoding all ids takes longer than loading a small model.
@lru_cache(maxsize=8)
def _stops(text: TextInput) -> Tensor:
    """Return for every id whether the id ends a caption: the end token, or a token with a full stop."""
    tokenizer, special = Tokenizer(text), {text.start_id, text.end_id, text.pad_id}
    words = ("" if index in special else tokenizer.decode([index]) for index in range(text.vocab_size))
    return torch.tensor([index == text.end_id or "." in word for index, word in enumerate(words)])


class NucleusCaptioner:
    """A loaded CoCa that writes captions.

    Args:
        spec: sampling options.
        model: model in float32; the class moves and casts the model in place.
        name: display name.
        weights_sha256: hash of the model's weights.
        device: device of the computation.

    Raises:
        ValueError: if the model's context is too short, or its tokenizer has no start token.
    """

    def __init__(self, spec: NucleusSpec, model: CoCa, *, name: str, weights_sha256: str, device: str) -> None:
        self.image, text = model.spec.image.input, model.spec.text.input
        if spec.max_length > text.context_length:
            raise ValueError(
                f"max_length is {spec.max_length}, but the context length of {name} is {text.context_length} ids"
            )
        if text.start_id is None:
            raise ValueError("captions begin with a start token, but this model's tokenizer has no start token")
        self.spec, self.name, self.weights_sha256 = spec, name, weights_sha256
        self._model = model.eval().requires_grad_(requires_grad=False).to(device=device, dtype=dtype_of(spec.precision))
        self._transform, self._tokenizer = ImageTransform(self.image), Tokenizer(text)
        self._start_id, self._end_id, self._stops = text.start_id, text.end_id, _stops(text)

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
            ImageError: if an image cannot be converted to the model's input.
            ValueError: if the numbers of seeds and images differ.
        """
        require_seeds(images, seeds)
        size, count = self.spec.max_batch, self.spec.num_captions
        texts: list[str] = []
        for start in range(0, len(images), size):
            pixels = [self._transform(image) for image in images[start : start + size]]
            texts += self._texts(pixels, seeds[start : start + size])
        return [tuple(texts[start : start + count]) for start in range(0, len(texts), count)]

    def _texts(self, pixels: list[Tensor], seeds: Sequence[int]) -> list[str]:
        """Return captions for at most `max_batch` images; a caption ends before a full stop or the end token."""
        spec, model, num_steps = self.spec, self._model, self.spec.max_length - 2
        missing = spec.max_batch - len(pixels)
        stacked = torch.stack([*pixels, *[torch.zeros_like(pixels[0])] * missing]).to(model.logit_scale)
        state = model.start(model.image_tokens(stacked)[1], num_captions=spec.num_captions, max_length=num_steps)
        place = sampling_device(stacked.device)
        draws = caption_streams([*seeds, *[0] * missing], num_captions=spec.num_captions, num_steps=num_steps).to(place)
        stops = self._stops.to(place)
        ids = torch.full((len(draws),), self._start_id, device=place)
        # The rows of missing images and of ended captions stay in every step, but their ids are not sampled.
        running = torch.arange(len(pixels) * spec.num_captions, device=place)
        drawn: list[Tensor] = []
        while len(drawn) < num_steps and len(running):
            logits = model.step(state, ids.to(stacked.device)).float().to(place)[running]
            logits[:, [_PAD_ID, self._start_id]] = -torch.inf
            if len(drawn) + 1 < _MIN_LENGTH:
                logits.masked_fill_(stops, -torch.inf)
            ids = torch.full_like(ids, self._end_id)
            ids[running] = nucleus_ids(
                logits, draws[running, len(drawn)], top_p=spec.top_p, temperature=spec.temperature
            )
            drawn.append(ids)
            running = running[~stops[ids[running]]]
        rows = torch.stack(drawn, dim=1)[: len(pixels) * spec.num_captions]
        return [self._text(row) for row in rows.cpu()]

    def _text(self, ids: Sequence[int] | Tensor) -> str:
        return self._tokenizer.decode(ids).split(".", maxsplit=1)[0].strip()


@captioners.register("coca")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CocaCaptioner(NucleusSpec):
    """An open_clip CoCa with nucleus sampling; a caption ends before the first full stop.

    Args:
        model: name or path of an open_clip model; see `OpenClipTeacher`.
        pretrained: open_clip's tag for the weights, or the path of a weights file; see `OpenClipTeacher`.

    Raises:
        ValueError: if `model` and `pretrained` together name no weights, or two sources of weights.

    Source: MobileCLIP, section 4; the release's generator for the length limits. Differs: sampling depends only on the
        image's seed, not on the batch. The first four ids are neither a full stop nor the end, so no caption is empty.
        This class never samples padding (the release may, and decodes padding as exclamation marks).
    """

    model: str = attrs.field(default="coca_ViT-L-14", validator=validators.min_len(1))
    pretrained: str | None = "mscoco_finetuned_laion2B-s13B-b90k"

    def __attrs_post_init__(self) -> None:
        self._source()

    def build(self, device: str = "cpu") -> NucleusCaptioner:
        """Return the captioner with loaded weights.

        Raises:
            ImportError: if open_clip is not installed.
            ValueError: if open_clip does not have the model or the tag, the weights do not fit, or the model is not a
                supported CoCa.
        """
        opened = load_open_clip(self._source())
        sha256 = opened.weights_sha256
        return NucleusCaptioner(self, coca_of(opened), name=opened.name, weights_sha256=sha256, device=device)

    def _source(self) -> OpenClipSource:
        return OpenClipSource(model=self.model, pretrained=self.pretrained)


@captioners.register("checkpoint")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CheckpointCaptioner(NucleusSpec):
    """A `CoCa` from a file with nucleus sampling, like `CocaCaptioner` but without open_clip.

    Args:
        checkpoint: a file in this library's or open_clip's layout (see `load_model`), a training checkpoint, or
            `hf-hub:OWNER/NAME`.
    """

    checkpoint: str = attrs.field(converter=os.fspath)

    def build(self, device: str = "cpu") -> NucleusCaptioner:
        """Return the captioner with loaded weights.

        Raises:
            FileNotFoundError: if the file does not exist.
            CheckpointError: if the file does not contain a captioner.
            ValueError: if the model's context is shorter than `max_length`, or its tokenizer has no start token.
        """
        model = load_model(self.checkpoint, fold=False)
        if not isinstance(model, CoCa):
            raise CheckpointError(
                f"{self.checkpoint} contains a {type(model).__name__}; expected a captioner", code="another_model"
            )
        sha256 = weights_sha256(model.state_dict())
        name = f"{Path(self.checkpoint).stem}-{sha256[:8]}"
        called = name if self.precision == "float32" else f"{name}/{self.precision}"
        return NucleusCaptioner(self, model, name=called, weights_sha256=sha256, device=device)


def with_weights(captioner: NucleusSpec, weights: Sequence[str]) -> CaptionerSpec:
    """Return a captioner for the model in each file; with several files, each model writes a separate caption set.

    Args:
        captioner: spec with the sampling options.
        weights: checkpoints as for `CheckpointCaptioner`; with several files, the caption set of NAME.pt or
            hf-hub:OWNER/NAME is `syn_text_NAME`.

    Raises:
        ValueError: if two files have the same name.
    """
    kept = {name: getattr(captioner, name) for name in attrs.fields_dict(NucleusSpec)}  # type: ignore[type-abstract]
    sets = []
    for one in weights:
        name = Path(re.sub(r"^(hf-hub:[^@#]*).*", r"\1", one)).stem
        called = f"{SYN_TEXT}_{re.sub(r'[^A-Za-z0-9]+', '_', name)}"
        sets.append(CaptionSet(name=called, captioner=CheckpointCaptioner(checkpoint=one, **kept)))
    return SeveralCaptioners(sets=sets) if len(sets) > 1 else sets[0].captioner
