"""From samples to examples: decode an image crop, choose one or two captions, and read teacher embeddings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np
import torch
from attrs import validators

from mobileclip.data.augmentation.policy import AugmentationParams, AugmentationSpec, datacompdr_augmentation
from mobileclip.data.images.limits import ImageLimits
from mobileclip.data.images.resize import Pixels
from mobileclip.data.loading.batch import ReinforcedBatch, stack_pixels
from mobileclip.data.loading.replay import SourceImage
from mobileclip.data.randomness import random_index, seeded_rng
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.members import parse_sample, parse_stored_sample
from mobileclip.data.samples.sample import (
    ImageTextSample,
    ReinforcedSample,
    StoredSample,
    check_source_image,
)
from mobileclip.data.skips import BadSampleError
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.inputs import DECODES, Decode, ImageInput, TextInput
from mobileclip.strict import strict

if TYPE_CHECKING:
    from torch import Tensor

    from mobileclip.data.samples.readers import Embeddings

    _Caption = tuple[str, Embeddings | None]
    _NoCaption = tuple[None, None]


@attrs.frozen(kw_only=True, field_transformer=strict)
class ExampleSpec:
    """Settings for making an example from a sample with an image: size, augmentation, decoding and limits.

    Args:
        image: the student's `ImageInput`; augmentations are replayed at `image.size`.
        augmentation: augmentation at the student's size. None uses the policy of the public data sets;
            translations are then in pixels of the teachers' image for replayed augmentations, and in pixels of the
            student's image for newly sampled augmentations.
        decode: `exact` or `fast`. `fast` decodes JPEGs at 1/2, 1/4 or 1/8 of their size if the crop is then still at
            least as large as the output, and resizes with torch's filters; the pixels differ slightly from the
            teachers' input.
        limits: limits on work and memory per image; images beyond the limits are skipped.
        sample_limits: limits on the data of a sample; readers skip samples beyond the limits without allocating memory
            for the data.
        seed: seed of all random choices and of the sample order.

    Raises:
        ValueError: if `decode` is unknown, or `augmentation.size` differs from `image.size`.

    Examples:
        >>> ExampleSpec(image=mobileclip.inputs.ImageInput(size=256)).decode
        'exact'
    """

    image: ImageInput
    augmentation: AugmentationSpec | None = None
    decode: Decode = attrs.field(default="exact", validator=validators.in_(DECODES))
    limits: ImageLimits = attrs.field(factory=ImageLimits)
    sample_limits: SampleLimits = SAMPLE_LIMITS
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        if self.augmentation is not None and self.augmentation.size != self.image.size:
            raise ValueError(
                f"the augmentation has size {self.augmentation.size}, but the student's image has size "
                f"{self.image.size}; set both to the same size"
            )


Captions = Literal["real", "synthetic", "either", "both"]
CAPTIONS: tuple[Captions, ...] = ("real", "synthetic", "either", "both")
_WITH_TEACHERS = (StoredSample, ReinforcedSample)
TextToIds = Callable[[Sequence[str]], "Tensor"]


def _is_pattern(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(
            f"{attribute.name} must be a regular expression such as '^syn_text_NAME$', not {value[:80]!r}: {error}"
        ) from None


def _are_columns(_: object, attribute: attrs.Attribute[tuple[int, int]], value: tuple[int, int]) -> None:
    if not 0 <= value[0] < value[1]:
        raise ValueError(
            f"{attribute.name} must be the first column and the end column (exclusive), such as (0, 768), not {value}"
        )


def _are_sizes(_: object, attribute: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]) -> None:
    if len(set(value)) < len(value) or any(size < 1 for size in value):
        raise ValueError(f"{attribute.name} must be distinct image sizes above 0, not {value}")


def _default_captions(spec: ReinforcedExampleSpec) -> Captions:
    return "both" if spec.reinforced else "real"


@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcedExampleSpec(ExampleSpec):
    """Settings for making an example from an image-text sample, with or without teacher embeddings.

    Args:
        text: the student's `TextInput`: tokenizer, vocabulary size and context length.
        reinforced: whether to read teacher embeddings and stored augmentations. If False, augmentations are newly
            sampled and batches contain only images and captions.
        captions: kind of caption in `text`: `real`, `synthetic`, or `either`, which draws one kind per sample. `both`,
            the default for reinforced samples, puts a real caption into `text` and a synthetic caption into `syn_text`.
            For a sample without synthetic captions, `synthetic` and `both` skip the sample, and `either` uses a real
            caption.
        synthetic_share: probability that `either` chooses a synthetic caption.
        caption_sets: regular expression, such as `syn_text_dfn_mscoco38k$`, that must match the name of a synthetic
            caption set from the start. Other sets are ignored. None uses all sets.
        num_captions: maximum number of synthetic captions to use from the start of every set; None uses all.
        num_augmentations: maximum number of stored augmentations to use from the start of a sample's list; None uses
            all.
        teacher_dim: dimension of the concatenated teacher embeddings; samples with a different dimension are skipped.
            If None, a pipeline uses the dimension of the first usable sample.
        teacher_columns: first and (exclusive) end column of the teacher embeddings, to use only some of the teachers;
            None uses all columns.
        online: image sizes, in pixels, for teachers that run during training. If there are any, batches also contain
            the images at each of these sizes, and the captions as strings. Stored translations are in pixels and are
            not rescaled.

    Raises:
        ValueError: if an option of `ExampleSpec` is invalid, `captions` is unknown, a number is out of range,
            `caption_sets` is not a regular expression, or a size in `online` is repeated.

    Source: MobileCLIP (arXiv 2311.17049), tables 3a, 4a and 4b, table 2 for columns and table 4d for online teachers;
        MobileCLIP2 (arXiv 2508.20691) and its released scripts for shares and sets of captions.

    Examples:
        >>> spec = ReinforcedExampleSpec(image=mobileclip.inputs.ImageInput(size=64), reinforced=False)
        >>> spec.captions, ExampleMaker(spec).limits.num_members
        ('real', 1000)
    """

    text: TextInput = attrs.field(factory=TextInput)
    reinforced: bool = True
    captions: Captions = attrs.field(
        default=attrs.Factory(_default_captions, takes_self=True), validator=validators.in_(CAPTIONS)
    )
    synthetic_share: float = attrs.field(default=0.5, validator=[validators.ge(0), validators.le(1)])
    caption_sets: str | None = attrs.field(default=None, validator=validators.optional(_is_pattern))
    num_captions: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    num_augmentations: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    teacher_dim: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    teacher_columns: tuple[int, int] | None = attrs.field(default=None, validator=validators.optional(_are_columns))
    online: tuple[int, ...] = attrs.field(default=(), validator=_are_sizes)


@attrs.frozen(kw_only=True, eq=False)
class Example:
    """A training example from one sample: the augmented image, the captions and the teacher embeddings.

    Args:
        key: key of the sample.
        images: pixels of the augmented image at the student's size, then at every size in `online`.
        caption: caption for the student.
        syn_caption: additional synthetic caption for the student, or None.
        teacher_image: teacher embedding of the augmented image, or None.
        teacher_text: teacher embedding of `caption`, or None.
        teacher_syn_text: teacher embedding of `syn_caption`, or None.
    """

    key: str
    images: Sequence[Pixels]
    caption: str
    syn_caption: str | None = None
    teacher_image: Embeddings | None = None
    teacher_text: Embeddings | None = None
    teacher_syn_text: Embeddings | None = None


class ExampleMaker:
    """Makes examples and collates examples into batches; random choices depend only on seed, epoch and key.

    Args:
        spec: settings of the examples, such as a `ReinforcedPipelineSpec`.
        tokenizer: function from texts to token ids (B, context length); None uses the tokenizer of `spec.text`.
    """

    def __init__(self, spec: ReinforcedExampleSpec, *, tokenizer: TextToIds | None = None) -> None:
        self._spec = spec
        self._tokenizer = Tokenizer(spec.text) if tokenizer is None else tokenizer
        self._caption_sets = re.compile(spec.caption_sets or "")
        self._parser = parse_stored_sample if spec.reinforced else parse_sample
        self.limits: SampleLimits = (
            attrs.evolve(spec.sample_limits, dim=spec.teacher_dim) if spec.reinforced else spec.sample_limits
        )
        """Limits on the data of a sample."""
        student = spec.augmentation or _default_augmentation(spec)
        self._augmentations = (student, *(_at_side(student, side, stored=spec.reinforced) for side in spec.online))

    def parse(self, key: str, members: Mapping[str, bytes]) -> ImageTextSample:
        """Parse a sample from its shard members.

        Raises:
            BadSampleError: if the members do not form a valid sample.
        """
        return self._parser(key, members, self.limits)

    def example(self, sample: ImageTextSample, epoch: int) -> Example:
        """Return the example of a sample in an epoch.

        Args:
            sample: a sample; teacher embeddings require a `StoredSample` or `ReinforcedSample`.
            epoch: number of the epoch, from 0.

        Raises:
            BadSampleError: if the image or a synthetic caption is missing, the image or a teacher embedding is damaged,
                the image does not match the stored augmentations, or the embeddings have the wrong dimension.
        """
        if sample.image is None:
            raise BadSampleError("no_image", "the sample has no image; join the data set with a data set of images")
        rng = seeded_rng(self._spec.seed, "example", epoch, sample.key)
        source = SourceImage(
            sample.image,
            self._spec.limits,
            orient=not isinstance(sample, _WITH_TEACHERS),
            background=self._spec.image.background_color,
        )
        index, params = self._augmentation(sample, source, rng)
        (caption, text_row), (syn_caption, syn_row) = self._captions(sample, rng)
        return Example(
            key=sample.key,
            images=source.replay(self._augmentations, params, self._spec.decode),
            caption=caption,
            syn_caption=syn_caption,
            teacher_image=self._row(sample, "image_emb", index),
            teacher_text=text_row,
            teacher_syn_text=syn_row,
        )

    def collate(self, examples: Sequence[Example]) -> ReinforcedBatch:
        """Collate examples into a batch."""
        texts = tuple(example.caption for example in examples)
        syn_texts = tuple(example.syn_caption for example in examples if example.syn_caption is not None)
        online = {
            side: stack_pixels([example.images[place] for example in examples])
            for place, side in enumerate(self._spec.online, start=1)
        }
        return ReinforcedBatch(
            keys=tuple(example.key for example in examples),
            image=stack_pixels([example.images[0] for example in examples]),
            text=self._tokenizer(texts),
            syn_text=self._tokenizer(syn_texts) if syn_texts else None,
            teacher_image=_stack(example.teacher_image for example in examples),
            teacher_text=_stack(example.teacher_text for example in examples),
            teacher_syn_text=_stack(example.teacher_syn_text for example in examples),
            online_images=online or None,
            captions=texts if online else None,
            syn_captions=(syn_texts or None) if online else None,
        )

    def _augmentation(
        self, sample: ImageTextSample, source: SourceImage, rng: np.random.Generator
    ) -> tuple[int, AugmentationParams]:
        if not isinstance(sample, _WITH_TEACHERS):
            return 0, self._augmentations[0].sample(rng, source.size)
        assert sample.image is not None, "it was decoded"
        check_source_image(sample, sample.image, source.size)
        wanted = self._spec.teacher_dim
        if wanted is not None and sample.dim != wanted:
            raise BadSampleError("wrong_dim", f"the teacher embeddings have dim {sample.dim}, not {wanted}")
        index = random_index(rng, _first(len(sample.augmentations), self._spec.num_augmentations))
        return index, sample.augmentations[index]

    def _captions(self, sample: ImageTextSample, rng: np.random.Generator) -> tuple[_Caption, _NoCaption | _Caption]:
        choice = self._spec.captions
        sets = (name for name, texts in sample.syn_captions.items() if texts)
        names = sorted(name for name in sets if self._caption_sets.match(name))
        if choice == "either":
            choice = "synthetic" if names and rng.random() >= 1 - self._spec.synthetic_share else "real"
        if choice != "real" and not names:
            raise BadSampleError("no_syn_caption", self._no_synthetic(sample))
        if choice == "synthetic":
            return self._synthetic(sample, names, rng), (None, None)
        index = random_index(rng, len(sample.captions))
        real = sample.captions[index], self._row(sample, "text_emb", index)
        return real, self._synthetic(sample, names, rng) if choice == "both" else (None, None)

    def _synthetic(self, sample: ImageTextSample, names: Sequence[str], rng: np.random.Generator) -> _Caption:
        name = names[random_index(rng, len(names))]
        index = random_index(rng, _first(len(sample.syn_captions[name]), self._spec.num_captions))
        return sample.syn_captions[name][index], self._row(sample, f"{name}_emb", index)

    def _no_synthetic(self, sample: ImageTextSample) -> str:
        chosen, there = self._spec.caption_sets, sorted(sample.syn_captions)
        if chosen is None or not there:
            return "the sample has no synthetic caption; set captions='real' to use only real captions"
        return f"no set of synthetic captions matches {chosen!r}; the sample has {', '.join(there)}"

    def _row(self, sample: ImageTextSample, name: str, index: int) -> Embeddings | None:
        if not isinstance(sample, _WITH_TEACHERS):
            return None
        row = sample.row(name, index)
        if self._spec.teacher_columns is None:
            return row
        first, stop = self._spec.teacher_columns
        if stop > len(row):
            raise BadSampleError(
                "wrong_dim", f"the teacher embeddings have dim {len(row)}, but teacher_columns end at {stop}"
            )
        return row[first:stop]


def _first(stored: int, wanted: int | None) -> int:
    """Return the number of stored items to use."""
    return stored if wanted is None else min(stored, wanted)


def _at_side(student: AugmentationSpec, side: int, *, stored: bool) -> AugmentationSpec:
    if stored or student.scale_translations:
        return attrs.evolve(student, size=side)
    # A view sampled at the student's size is moved by the same fraction at any other size.
    return attrs.evolve(student, size=side, scale_translations=True, reference_size=student.size)


def _default_augmentation(spec: ReinforcedExampleSpec) -> AugmentationSpec:
    augmentation = datacompdr_augmentation(spec.image.size)
    # New translations are a fraction of the student's image; stored translations, of the teachers' image.
    return augmentation if spec.reinforced else attrs.evolve(augmentation, reference_size=spec.image.size)


def _stack(rows: Iterable[Embeddings | None]) -> Tensor | None:
    present = [row for row in rows if row is not None]
    return torch.from_numpy(np.stack(present)) if present else None
