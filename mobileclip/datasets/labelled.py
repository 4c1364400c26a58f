"""From images of classes to batches of images and labels: one augmentation per image and epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
import torch
from attrs import validators

from mobileclip.data.augmentation.erasing import RandomErasingSpec
from mobileclip.data.augmentation.replay import imagenet_augmentation
from mobileclip.data.images.resize import Pixels
from mobileclip.data.loading.batch import LabelledBatch, stack_pixels
from mobileclip.data.loading.examples import SourceImage
from mobileclip.data.loading.pipeline import Pipeline
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.data.loading.uids import Keep
from mobileclip.data.randomness import seeded_rng
from mobileclip.datasets.class_data import ClassData, LabelledSample, LabelParser, open_class_data
from mobileclip.strict import strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class LabelledPipelineSpec(PipelineSpec):
    """The choices of a pipeline of images and the numbers of their classes.

    A crop with RandAugment, a flip, then an erased rectangle; mixing images of a batch is the objective's.

    Args:
        shards: of images with the number of their class in `.cls`, or its name as `label` in their `.json`; or one
            folder with a folder of images for every class. See `mobileclip.datasets.class_data.open_class_data`.
        augmentation: crop and RandAugment; None for `imagenet_augmentation`.
        num_classes: labels are below it.
        class_names: what the classes are called, in the order of their numbers; none where nothing says.
        flip_probability: of an image to be mirrored.
        erasing: what is erased of it; none erases nothing.

    Raises:
        ValueError: if a number is out of its range, the augmentation has another size than the image contract, or there
            are not as many names as classes.

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
            raise ValueError(f"there are {self.num_classes} classes and {len(self.class_names)} class_names")

    def build(self, *, keep: Keep | None = None) -> LabelledPipeline:
        """Return the pipeline.

        Args:
            keep: which samples are used, see `Pipeline`.

        Raises:
            ValueError: see `LabelledPipeline`.
            OSError: if the data cannot be read.
        """
        return LabelledPipeline(self, keep=keep)


class LabelledPipeline(Pipeline[LabelledBatch]):
    """The pipeline of images and labels.

    Args:
        spec: the choices.
        keep: which samples are used, see `Pipeline`.

    Raises:
        ValueError: if there is no data, or it has other classes than the spec.
    """

    spec: LabelledPipelineSpec

    def __init__(self, spec: LabelledPipelineSpec, *, keep: Keep | None = None) -> None:
        data = open_class_data(spec.shards, spec.file_cache)
        _check_classes(spec, data)
        super().__init__(spec, reader=data.reader, keep=keep)

    def _maker(self) -> LabelledMaker:
        return LabelledMaker(self.spec)


@attrs.frozen(kw_only=True, eq=False)
class LabelledExample:
    """The augmented pixels of an image and the number of its class."""

    key: str
    pixels: Pixels
    label: int


class LabelledMaker:
    """Makes batches of images and labels; what it chooses depends on the seed, the epoch and the key alone."""

    def __init__(self, spec: LabelledPipelineSpec) -> None:
        self.limits = spec.sample_limits
        self._spec = spec
        self._augmentation = spec.augmentation or imagenet_augmentation(spec.image.size)
        self._parser = LabelParser(
            num_classes=spec.num_classes, class_names=spec.class_names, text_bytes=spec.sample_limits.text_bytes
        )

    def parse(self, key: str, members: Mapping[str, bytes]) -> LabelledSample:
        """Return the sample that members of a shard make.

        Raises:
            BadSampleError: if there is no image, or no class.
        """
        return self._parser(key, members)

    def example(self, sample: LabelledSample, epoch: int) -> LabelledExample:
        """Return what an epoch takes of a sample.

        Raises:
            BadSampleError: if the image cannot be used.
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
        """Return the batch of several examples."""
        return LabelledBatch(
            keys=tuple(example.key for example in examples),
            image=stack_pixels([example.pixels for example in examples]),
            label=torch.tensor([example.label for example in examples]),
        )


def _check_classes(spec: LabelledPipelineSpec, data: ClassData) -> None:
    names = data.class_names
    if not names:
        return
    if len(names) != spec.num_classes:
        raise ValueError(
            f"{spec.shards[0]} has {len(names)} classes, and the pipeline's num_classes is {spec.num_classes}"
        )
    different = [pair for pair in zip(names, spec.class_names, strict=False) if pair[0] != pair[1]]
    if different:
        found, expected = different[0]
        raise ValueError(
            f"{spec.shards[0]} calls a class {found[:80]!r} that the pipeline calls {expected[:80]!r}; give both "
            "the same names in the same order"
        )
