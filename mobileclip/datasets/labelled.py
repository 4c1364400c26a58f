"""Reads labelled training images, from shards or one folder per class, into batches of images and labels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import attrs
import numpy as np
import torch
from attrs import validators

from mobileclip import storage
from mobileclip.data.augmentation.mixing import RandomErasingSpec
from mobileclip.data.augmentation.policy import imagenet_augmentation
from mobileclip.data.images.resize import Pixels
from mobileclip.data.loading.batch import LabelledBatch, stack_pixels
from mobileclip.data.loading.pipeline import Pipeline, PipelineSpec
from mobileclip.data.loading.reading import ShardReader, TarReader
from mobileclip.data.loading.replay import SourceImage
from mobileclip.data.loading.uids import Keep
from mobileclip.data.randomness import seeded_rng
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.members import parse_object
from mobileclip.data.samples.sample import check_key
from mobileclip.data.shards.files import RawSample, Shards, paths_of, runs_program
from mobileclip.data.skips import BadSampleError, Skip, attempt
from mobileclip.datasets.sources.base import read_image
from mobileclip.datasets.sources.folder import ClassFolderSource, FolderSource
from mobileclip.datasets.sources.opening import as_source, split_kind
from mobileclip.datasets.sources.shards import (
    PublicLayoutSource,
    ShardSource,
    class_names_next_to,
    image_of,
    parse_label,
    read_public_layout,
)
from mobileclip.strict import strict

EXPECTED = (
    "expected shards whose samples have a class number in .cls or a class name as `label` in .json, or a folder with "
    "one folder of images per class"
)
_KINDS = ("class_folder", "shards", "labelled_shards", "public_layout")
_MOST_IN_A_PART = 1000
# Enough parts for many processes with several workers each.
_NUM_PARTS = 256


@attrs.frozen(kw_only=True, eq=False)
class ClassData:
    """Labelled images and the names of their classes.

    Args:
        reader: reader of the samples. A `FolderReader` adds the class number as the member `cls`.
        class_names: names of the classes, in the order of the class numbers; empty if unknown.
    """

    reader: ShardReader
    class_names: tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False)
class LabelledSample:
    """An encoded image and its class number.

    Args:
        key: key of the sample.
        image: encoded image.
        label: class number of the image, from 0.
    """

    key: str
    image: bytes
    label: int


@attrs.frozen(kw_only=True)
class LabelParser:
    """Parses the members of a sample into a labelled sample.

    Args:
        num_classes: number of classes; labels are from 0 to `num_classes - 1`.
        class_names: names of the classes, in the order of the labels, for samples with a class name in `.json`. If
            empty, the parser rejects such samples.
        text_bytes: maximum size of a `.json` member, in bytes.
    """

    num_classes: int
    class_names: tuple[str, ...]
    text_bytes: int = SAMPLE_LIMITS.text_bytes
    _numbers: Mapping[str, int] = attrs.field(init=False, repr=False, eq=False)

    @_numbers.default
    def _number_names(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(self.class_names)}

    def __call__(self, key: str, members: Mapping[str, bytes]) -> LabelledSample:
        """Return the labelled sample with the given key and members.

        Raises:
            BadSampleError: if the key is invalid, or the members have no image or no valid class.
        """
        check_key(key)
        return LabelledSample(key=key, image=members[image_of(members)], label=self._label(members))

    def _label(self, members: Mapping[str, bytes]) -> int:
        if "cls" in members or "json" not in members:
            return parse_label(members.get("cls"), self.num_classes)
        name = parse_object(members["json"], "json", limit=self.text_bytes).get("label")
        if name is None:
            raise BadSampleError("no_label", "the sample has neither a .cls nor a `label` in its .json")
        if not self._numbers:
            raise BadSampleError("bad_label", "`label` is a class name, but the pipeline has no class_names")
        if not isinstance(name, str) or name not in self._numbers:
            raise BadSampleError("bad_label", f"{str(name)[:80]!r} is not one of the {len(self._numbers)} classes")
        return self._numbers[name]


@attrs.frozen(kw_only=True, eq=False)
class FolderReader:
    """Reads a folder of labelled images in parts, which take the place of shards.

    Args:
        path: path of the folder.
        parts: name of each part, and JSON with the key, relative path and class number of every image in the part.
            JSON takes less memory per worker than one object per image.
        left_out: skips of unusable files in the folder; `read` reports the skips with the first part.
    """

    path: str
    parts: Mapping[str, bytes]
    left_out: tuple[Skip, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(self.parts)

    @property
    def sources(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parts, as the shards of a single source."""
        return (self.names,)

    def read(self, name: str, on_skip: Callable[[Skip], None], limits: SampleLimits) -> Iterator[RawSample]:
        """Yield the images of one part with their class numbers, and report unreadable images."""
        if name == next(iter(self.parts)):
            for skip in self.left_out:
                on_skip(skip)
        for key, place, number in json.loads(self.parts[name]):
            make = partial(self._raw, key, place, number, shard=name, limits=limits)
            raw = attempt(make, key=key, shard=name, on_skip=on_skip)
            if raw is not None:
                yield raw

    def sizes(self, limits: SampleLimits) -> tuple[int, ...]:
        """Return the number of images in every part."""
        del limits
        return tuple(len(json.loads(part)) for part in self.parts.values())

    def _raw(self, key: str, place: str, number: int, *, shard: str, limits: SampleLimits) -> RawSample:
        image, extension = read_image(storage.join(self.path, place))
        raw = RawSample(key=key, shard=shard)
        raw.enter(place, extension, image, limits)
        raw.enter("cls", "cls", str(number).encode(), limits)
        return raw


def open_class_data(data: Shards, cache: storage.FileCache | None = None) -> ClassData:
    """Open labelled images at a path, without reading any image.

    Class numbers of folders follow the order of the folder names, as in torchvision's `ImageFolder`; class names come
    from `ClassFolderSource`. For shards, class names come from an optional `classnames.txt` in the shards' folder.

    Args:
        data: shards, as paths, URLs or brace patterns; a folder of shards, including the public layout; or a folder
            with one folder of images per class. `KIND:ARGUMENT` states the kind of source.
        cache: local cache for remote shards; None for no cache.

    Raises:
        ValueError: if the path has no labelled images.
        OSError: if the data cannot be read.
    """
    texts = paths_of(data)
    kind, argument = (split_kind(texts[0]) if len(texts) == 1 else None) or ("", "")
    if kind == "labelled_shards":
        texts = (f"shards:{argument}",)  # here, shards need no class names
    match as_source(texts) if kind in ("", *_KINDS) else None:
        case ShardSource(shards=shards):
            reader = TarReader.of(shards, cache)
            is_file = not runs_program(reader.names[0])
            return ClassData(reader=reader, class_names=class_names_next_to(reader.names[0]) if is_file else ())
        case PublicLayoutSource(path=path, split=split):
            layout = read_public_layout(path, split=split)
            if layout.kind != "classification":
                raise ValueError(f"{path} has captions instead of classes; {EXPECTED}")
            return ClassData(reader=TarReader((layout.shards,)), class_names=layout.class_names)
        case ClassFolderSource(path=path) | FolderSource(path=path):
            return _class_folder(path)
    raise ValueError(f"{texts[0]} has no classes; data with classes are of the kinds {', '.join(_KINDS)}; {EXPECTED}")


def find_class_names(data: Shards) -> tuple[str, ...]:
    """Return the class names of training data in the order of the labels; empty if the data have no class names.

    Args:
        data: see `open_class_data`.

    Raises:
        ValueError, OSError: see `open_class_data`.
    """
    return open_class_data(data).class_names


def _class_folder(path: str) -> ClassData:
    units = ClassFolderSource(path=path).units()
    items = [item for unit in units for item in unit.items]  # the order mixes the classes
    names = {item.folder: item for item in reversed(items)}
    numbers = {folder: number for number, folder in enumerate(sorted(names))}
    rows = [(item.key, item.image, numbers[item.folder]) for item in items]
    size = max(1, min(_MOST_IN_A_PART, math.ceil(len(rows) / _NUM_PARTS)))
    starts = range(0, len(rows), size)
    reader = FolderReader(
        path=path,
        parts={f"{path}/part {start // size}": json.dumps(rows[start : start + size]).encode() for start in starts},
        left_out=tuple(skip for unit in units for skip in (*unit.unmatched_skips, *unit.left_out)),
    )
    return ClassData(reader=reader, class_names=tuple(str(json.loads(names[one].rows[0])["label"]) for one in numbers))


@attrs.frozen(kw_only=True, field_transformer=strict)
class LabelledPipelineSpec(PipelineSpec):
    """The options of a pipeline for labelled images.

    The pipeline applies a crop with RandAugment, a flip, then random erasing. The training objective mixes the images
    of a batch.

    Args:
        shards: shards of images with a class number in `.cls` or a class name as `label` in `.json`; or a folder with
            one folder of images per class. See `mobileclip.datasets.labelled.open_class_data`.
        augmentation: crop and RandAugment; None for `imagenet_augmentation`.
        num_classes: number of classes; labels are from 0 to `num_classes - 1`.
        class_names: names of the classes, in the order of the labels; if empty, all labels must be numbers.
        flip_probability: probability of a horizontal flip.
        erasing: options of random erasing; None for no erasing.

    Raises:
        ValueError: if a number is out of range, `augmentation` and `image` have different sizes, or the number of
            `class_names` is not `num_classes`.

    Source: FastViT (arXiv 2303.14189).

    Examples:
        >>> spec = LabelledPipelineSpec(
        ...     shards="imagenet/train/{0000..1023}.tar", batch_size=128, image=mobileclip.inputs.ImageInput(size=256)
        ... )
        >>> spec.num_classes, spec.flip_probability
        (1000, 0.5)
    """

    num_classes: int = attrs.field(default=1000, validator=validators.gt(0))
    class_names: tuple[str, ...] = ()
    flip_probability: float = attrs.field(default=0.5, validator=[validators.ge(0), validators.le(1)])
    erasing: RandomErasingSpec | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes}, but there are {len(self.class_names)} class_names")

    def build(self, *, keep: Keep | None = None) -> LabelledPipeline:
        """Return the pipeline.

        Args:
            keep: function that selects samples, see `Pipeline`; None for no selection.

        Raises:
            ValueError: see `LabelledPipeline`.
            OSError: if the data cannot be read.
        """
        return LabelledPipeline(self, keep=keep)


class LabelledPipeline(Pipeline[LabelledBatch]):
    """The data pipeline for images and labels.

    Args:
        spec: the options.
        keep: function that selects samples, see `Pipeline`; None for no selection.

    Raises:
        ValueError: if there are no data, or the class names of the data and the spec differ in number, name or order.
    """

    spec: LabelledPipelineSpec

    def __init__(self, spec: LabelledPipelineSpec, *, keep: Keep | None = None) -> None:
        data = open_class_data(spec.shards, spec.file_cache)
        names, where = data.class_names, spec.shards[0]
        if names and len(names) != spec.num_classes:
            raise ValueError(f"{where} has {len(names)} classes, but the pipeline's num_classes is {spec.num_classes}")
        for found, expected in zip(names, spec.class_names, strict=False):
            if found != expected:
                raise ValueError(
                    f"{where} has the class name {found[:80]!r}, but the pipeline has {expected[:80]!r}; the names and "
                    "their order must be equal"
                )
        super().__init__(spec, reader=data.reader, keep=keep)

    def _maker(self) -> LabelledMaker:
        return LabelledMaker(self.spec)


@attrs.frozen(kw_only=True, eq=False)
class LabelledExample:
    """The augmented pixels and the class number of an image."""

    key: str
    pixels: Pixels
    label: int


class LabelledMaker:
    """Builds batches of images and labels; random choices depend only on seed, epoch and key."""

    def __init__(self, spec: LabelledPipelineSpec) -> None:
        self.limits = spec.sample_limits
        self._spec = spec
        self._augmentation = spec.augmentation or imagenet_augmentation(spec.image.size)
        self.parse = LabelParser(
            num_classes=spec.num_classes, class_names=spec.class_names, text_bytes=spec.sample_limits.text_bytes
        )

    def example(self, sample: LabelledSample, epoch: int) -> LabelledExample:
        """Return the augmented example of a sample for an epoch.

        Raises:
            BadSampleError: if the image cannot be decoded, or exceeds the limits.
        """
        rng = seeded_rng(self._spec.seed, "example", epoch, sample.key)
        source = SourceImage(sample.image, self._spec.limits, orient=True, background=self._spec.image.background_color)
        params = self._augmentation.sample(rng, source.size)
        (pixels,) = source.replay((self._augmentation,), params, self._spec.decode)
        if rng.random() < self._spec.flip_probability:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        if self._spec.erasing is not None:
            pixels = self._spec.erasing.apply(pixels, rng)
        return LabelledExample(key=sample.key, pixels=pixels, label=sample.label)

    def collate(self, examples: Sequence[LabelledExample]) -> LabelledBatch:
        """Return a batch of the examples."""
        return LabelledBatch(
            keys=tuple(example.key for example in examples),
            image=stack_pixels([example.pixels for example in examples]),
            label=torch.tensor([example.label for example in examples]),
        )
