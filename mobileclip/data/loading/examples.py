"""From a sample to an example: the crop of its image that is decoded, one or two captions, the teachers' embeddings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np
import torch
from attrs import validators
from PIL import Image

from mobileclip.data.augmentation.replay import AugmentationParams, AugmentationSpec, datacompdr_augmentation
from mobileclip.data.images.jpeg import Jpeg, decode_jpeg, read_jpeg
from mobileclip.data.images.limits import ImageError, ImageLimits
from mobileclip.data.images.metadata import read_orientation
from mobileclip.data.images.resize import Pixels, resized_crop
from mobileclip.data.images.transform import LIMITS
from mobileclip.data.loading.batch import ReinforcedBatch, stack_pixels
from mobileclip.data.randomness import random_index, seeded_rng
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.members import parse_sample, parse_stored_sample
from mobileclip.data.samples.sample import (
    ImageTextSample,
    ReinforcedSample,
    StoredSample,
    check_source_image,
    decode_image,
)
from mobileclip.data.skips import BadSampleError
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.inputs import DECODES, Color, Decode, ImageInput, TextInput
from mobileclip.strict import strict

if TYPE_CHECKING:
    from torch import Tensor

    from mobileclip.data.samples.readers import Embeddings

    _Caption = tuple[str, Embeddings | None]
    _NoCaption = tuple[None, None]


class SourceImage:
    """An encoded image of which one crop is wanted, at one size or several.

    Where the file allows it, the size is read from its header, and decoding waits until the crop is known: the rows
    below it are left out.

    Args:
        data: the encoded image.
        limits: limits of the work and memory that it may cost.
        orient: whether crops are of the upright image, as those that are sampled afresh; stored ones are not.
        background: see `decode_image`.

    Raises:
        BadSampleError: as `decode_image` does, here or when it is replayed.
    """

    def __init__(
        self, data: bytes, limits: ImageLimits = LIMITS, *, orient: bool = False, background: Color | None = None
    ) -> None:
        self._limits = limits
        jpeg = read_jpeg(data)
        self._source: Jpeg | Image.Image
        if jpeg is not None and jpeg.is_plain and not (orient and read_orientation(jpeg.exif, jpeg.xmp) != 1):
            try:
                jpeg.check(limits, "the image")
            except ImageError as error:
                raise BadSampleError(f"image_{error.reason}", error.message) from None
            self._source = jpeg
        else:
            self._source = decode_image(data, orient=orient, background=background, limits=limits)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole image, in pixels."""
        return self._source.size

    def replay(
        self, augmentations: Sequence[AugmentationSpec], params: AugmentationParams, decode: Decode = "exact"
    ) -> list[Pixels]:
        """Return the pixels of the augmented image at the size of each augmentation.

        `exact` gives those of `AugmentationSpec.apply`, to the bit. `fast` decodes a JPEG at a half, a quarter or an
        eighth, by leaving out its high frequencies, where the crop then still has as many pixels as the largest output,
        and resizes any image by `resized_crop`, which is within three levels of 255 where nothing was left out.

        Shape: (size, size, 3) each, uint8.

        Raises:
            BadSampleError: if the image cannot be decoded.
        """
        top, left, height, width = params.crop
        if decode == "exact":
            cut = _cut(self._decoded(top + height), left, top, left + width, top + height)
            crops = [augmentation.resize(cut) for augmentation in augmentations]
        else:
            factor = _factor(min(height, width), max(augmentation.size for augmentation in augmentations))
            factor = factor if isinstance(self._source, Jpeg) else 1
            image = self._decoded(top + height, factor)
            box = (left / factor, top / factor, width / factor, height / factor)
            crops = [resized_crop(image, box, one.size, one.interpolation) for one in augmentations]
        return [
            np.array(augmentation.operate(crop, params.operations))
            for augmentation, crop in zip(augmentations, crops, strict=True)
        ]

    def _decoded(self, bottom: int, factor: int = 1) -> Image.Image | Pixels:
        jpeg = self._source
        if isinstance(jpeg, Image.Image):
            return jpeg
        data, height = jpeg.above(bottom)
        # What is cut ends in bytes that belong to no row.
        pixels = decode_jpeg(data, (jpeg.width, height), reduce=factor, strict=height == jpeg.height)
        return decode_image(data, orient=False, reduce=factor, limits=self._limits) if pixels is None else pixels


def _cut(image: Image.Image | Pixels, left: int, top: int, right: int, bottom: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.crop((left, top, right, bottom))
    return Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))


def _factor(side: int, size: int) -> int:
    """Return by how much a crop may be reduced and still have `size` pixels along its shorter side."""
    return next((factor for factor in (8, 4, 2) if side >= factor * size), 1)


@attrs.frozen(kw_only=True, field_transformer=strict)
class ExampleSpec:
    """The settings that make an example of a sample with an image: its size, augmentation, decoding and limits.

    Args:
        image: the student's image contract; augmentations are replayed at its size.
        augmentation: the augmentation at the student's size; None for the public data sets' policy, with translations
            in pixels of the teachers' image where it is replayed, and of the student's where it is sampled afresh.
        decode: `exact`, or `fast` to decode JPEGs at a half, a quarter or an eighth where the crop still has as many
            pixels as the output, and to resize by torch's filters; the pixels then differ a little from those that the
            teachers saw.
        limits: limits of the work and memory that one image may cost; one beyond them is skipped.
        sample_limits: sample limits of what is read of a sample; what is beyond them is skipped, and never allocated.
        seed: seed of every choice, and of the order.

    Raises:
        ValueError: if a number is out of its range, or the augmentation has another size than the image contract.

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
                f"the augmentation makes images of {self.augmentation.size} pixels and the image contract wants "
                f"{self.image.size}; give both the same size"
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
            f"{attribute.name} are the first column and the one behind the last, such as (0, 768), not {value}"
        )


def _are_sides(_: object, attribute: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]) -> None:
    if len(set(value)) < len(value) or any(side < 1 for side in value):
        raise ValueError(f"{attribute.name} are sides above 0, each once, and not {value}")


def _default_captions(spec: ReinforcedExampleSpec) -> Captions:
    return "both" if spec.reinforced else "real"


@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcedExampleSpec(ExampleSpec):
    """The settings that make an example of an image-text sample, with or without teachers' embeddings.

    Args:
        text: the student's text contract.
        reinforced: whether to read what the teachers said; without, augmentations are sampled afresh and batches hold
            images and captions alone.
        captions: which captions `text` holds: `real`, `synthetic`, or `either`, drawn for every sample; with `both`,
            the default where samples are reinforced, `text` has a real and `syn_text` a synthetic one. A sample that
            has no synthetic caption is skipped by `synthetic` and `both`, and taken with a real one by `either`.
        synthetic_share: probability that `either` takes a synthetic caption.
        caption_sets: a regular expression that the names of the sets of synthetic captions match from their start, such
            as `syn_text_dfn_mscoco38k$`; others are as if they were not there. None for all sets.
        num_captions: synthetic captions that are taken of every set, its first ones; None for all. A set that has fewer
            is taken whole.
        num_augmentations: stored augmentations that are taken, the first ones; None for all. A sample that has fewer is
            taken with all of its own.
        teacher_dim: dim of the concatenated teacher embeddings; other samples are refused. A pipeline that is given
            None takes that of the first usable sample.
        teacher_columns: the first column of the teachers' embeddings that is taken and the one behind the last, those
            of some teachers; None for all.
        online: sides, in pixels, of images for teachers that run beside the training: batches hold these and the
            captions too. Stored augmentations move the image by the pixels that are stored, at any side.

    Raises:
        ValueError: as `ExampleSpec` does, or if `caption_sets` is no regular expression, `teacher_columns` are no
            columns, or a side is in `online` twice.

    Source: MobileCLIP (arXiv 2311.17049), tables 3a, 4a and 4b, 2 for columns and 4d for online teachers; MobileCLIP2
        (arXiv 2508.20691) and its released scripts for shares and sets.

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
    online: tuple[int, ...] = attrs.field(default=(), validator=_are_sides)


@attrs.frozen(kw_only=True, eq=False)
class Example:
    """An example of one sample: its augmented image, its captions, and the teachers' embeddings.

    Args:
        key: the sample's.
        images: pixels of the augmented image at every size that the maker replays it at, the student's first.
        caption: what the student reads.
        syn_caption: what it reads beside, where it does.
        teacher_image: the teachers' embedding of the same augmentation, where there is one.
        teacher_text: that of the caption.
        teacher_syn_text: that of the caption beside.
    """

    key: str
    images: Sequence[Pixels]
    caption: str
    syn_caption: str | None = None
    teacher_image: Embeddings | None = None
    teacher_text: Embeddings | None = None
    teacher_syn_text: Embeddings | None = None


class ExampleMaker:
    """Makes examples and batches of them; what it chooses depends on the seed, the epoch and the key alone.

    Args:
        spec: the choices; those of a pipeline are such ones.
        tokenizer: texts to ids (B, context length); None for CLIP's own with the text contract.
    """

    def __init__(self, spec: ReinforcedExampleSpec, *, tokenizer: TextToIds | None = None) -> None:
        self._spec = spec
        self._tokenizer = Tokenizer(spec.text) if tokenizer is None else tokenizer
        self._caption_sets = re.compile(spec.caption_sets or "")
        self._parser = parse_stored_sample if spec.reinforced else parse_sample
        self.limits: SampleLimits = (
            attrs.evolve(spec.sample_limits, dim=spec.teacher_dim) if spec.reinforced else spec.sample_limits
        )
        """What may be read of a sample."""
        student = spec.augmentation or _default_augmentation(spec)
        self._augmentations = (student, *(_at_side(student, side, stored=spec.reinforced) for side in spec.online))

    def parse(self, key: str, members: Mapping[str, bytes]) -> ImageTextSample:
        """Return the sample that members of a shard make.

        Raises:
            BadSampleError: if they make none.
        """
        return self._parser(key, members, self.limits)

    def example(self, sample: ImageTextSample, epoch: int) -> Example:
        """Return the example that an epoch makes of a sample.

        Args:
            sample: a `StoredSample` or `ReinforcedSample` where the teachers' embeddings are wanted.
            epoch: its number.

        Raises:
            BadSampleError: if the sample cannot be used.
        """
        if sample.image is None:
            raise BadSampleError("no_image", "there is no image; join the data set with the one that has the images")
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
        """Return the batch of several examples."""
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
            return "the sample has no synthetic caption; captions='real' needs none"
        return f"no set of synthetic captions is called like {chosen!r}; the sample has {', '.join(there)}"

    def _row(self, sample: ImageTextSample, name: str, index: int) -> Embeddings | None:
        if not isinstance(sample, _WITH_TEACHERS):
            return None
        row = sample.row(name, index)
        if self._spec.teacher_columns is None:
            return row
        first, stop = self._spec.teacher_columns
        if stop > len(row):
            raise BadSampleError(
                "wrong_dim", f"the teacher embeddings have dim {len(row)}, and columns to {stop} are asked for"
            )
        return row[first:stop]


def _first(stored: int, wanted: int | None) -> int:
    """Return how many of what is stored are taken."""
    return stored if wanted is None else min(stored, wanted)


def _at_side(student: AugmentationSpec, side: int, *, stored: bool) -> AugmentationSpec:
    if stored or student.scale_translations:
        return attrs.evolve(student, size=side)
    # Sampled at the student's size, the view is moved by the same fraction at another one.
    return attrs.evolve(student, size=side, scale_translations=True, reference_size=student.size)


def _default_augmentation(spec: ReinforcedExampleSpec) -> AugmentationSpec:
    augmentation = datacompdr_augmentation(spec.image.size)
    # Sampled afresh, translations are a fraction of the student's image; replayed, they were of the teachers'.
    return augmentation if spec.reinforced else attrs.evolve(augmentation, reference_size=spec.image.size)


def _stack(rows: Iterable[Embeddings | None]) -> Tensor | None:
    present = [row for row in rows if row is not None]
    return torch.from_numpy(np.stack(present)) if present else None
