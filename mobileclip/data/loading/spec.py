"""The specs of a data pipeline: decoding, sample order, worker processes and caches."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import validators

from mobileclip.data.augmentation.replay import AugmentationSpec
from mobileclip.data.images.limits import ImageLimits
from mobileclip.data.loading.order import NUM_READERS, SAMPLINGS, Sampling
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.files import paths_of
from mobileclip.inputs import DECODES, Decode, ImageInput
from mobileclip.storage import FileCache, StoreLimits
from mobileclip.strict import strict


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
        limits: of the work and memory that one image may cost; one beyond them is skipped.
        sample_limits: of what is read of a sample; what is beyond them is skipped, and never allocated.
        seed: of every choice, and of the order.

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


# Without slots: of two bases that a class has, one alone may have its own.
@attrs.frozen(kw_only=True, field_transformer=strict, slots=False)
class PipelineSpec(ExampleSpec):
    """The choices that all pipelines share, beside those of `ExampleSpec`.

    Args:
        shards: paths or brace patterns of the shards.
        batch_size: samples of a batch: in a training run that of all processes together, which divide it among them;
            the pipeline by itself gives every process batches of so many.
        sampling: `epoch`, every sample once an epoch; or `endless`, which need not know how many samples there are:
            shards in random order, again and again, and an epoch is as many batches as `num_samples` would fill; or
            `with_replacement`, the same but that every shard is drawn among all, as the released scripts do.
        weights: share of each of `shards` of every batch, with another sampling than `epoch`; none takes all shards
            alike.
        epochs: number of epochs that iterating yields.
        shuffle: whether to shuffle the shards and, within a buffer, the samples; without, and with one reader, they
            come as they are stored.
        num_readers: shards that are read at once, all processes together; every batch has the same share of each. The
            number of processes must divide it. Small data has fewer, the largest divisor for which there are samples
            and a quarter as many shards, or otherwise as many shards.
        shuffle_buffer: number of samples, encoded, of every reader's buffer. The order of shards is uniform; that of
            the samples within a shard is not: the buffer takes in two samples for each that leaves it, so none leaves
            before half of its place, and of a shard that fits into the buffer, the first sample comes after 12 % of
            the others in the mean and the last after 70 %. Mix samples when you write shards.
        num_workers: processes that read, decode and augment, at most one for every reader; 0 for none beside the own
            one.
        uids: a list of the samples that are used, with another sampling than `epoch`; none uses all. See
            `mobileclip.data.loading.uids.UidList`.
        cache: folder of copies of remote shards for the next time they are read; none keeps none.
        cache_bytes: of all copies together; the oldest make room.
        worker_seconds: for which one of them is waited for.
        stores: how long stores are waited for. Specs that differ in these, the cache and the number of
            workers alone are equal.
        drop_last: whether to leave out the last samples of an epoch that fill no batch; there are none otherwise.
        num_samples: number of samples in all shards; None to count them where that is needed, except for `len`.

    Raises:
        ValueError: as `ExampleSpec` does, or if there are weights, and not one for each of `shards`, or weights or uids
            with sampling `epoch`.
    """

    shards: tuple[str, ...] = attrs.field(converter=paths_of)
    batch_size: int = attrs.field(validator=validators.gt(0))
    sampling: Sampling = attrs.field(default="epoch", validator=validators.in_(SAMPLINGS))
    epochs: int = attrs.field(default=1, validator=validators.gt(0))
    weights: tuple[float, ...] = attrs.field(default=(), validator=validators.deep_iterable(validators.gt(0)))
    shuffle: bool = True
    num_readers: int = attrs.field(default=NUM_READERS, validator=validators.gt(0))
    shuffle_buffer: int = attrs.field(default=100, validator=validators.gt(0))
    num_workers: int = attrs.field(default=0, validator=validators.ge(0), eq=False)
    uids: Path | None = None
    cache: Path | None = attrs.field(default=None, eq=False)
    cache_bytes: int = attrs.field(default=10**11, validator=validators.gt(0), eq=False)
    worker_seconds: float = attrs.field(default=1800.0, validator=validators.gt(0), eq=False)
    stores: StoreLimits = attrs.field(factory=StoreLimits, eq=False)
    drop_last: bool = True
    num_samples: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.uids is not None and self.sampling == "epoch":
            raise ValueError(
                "an epoch of the samples in `uids` has a length that nobody knows; choose sampling `endless`"
            )
        if self.weights and (self.sampling == "epoch" or len(self.weights) != len(self.shards)):
            raise ValueError(
                f"weights are of sources in sampling `endless`, one for each of shards; got {len(self.weights)} for "
                f"{len(self.shards)} in `{self.sampling}`"
            )

    @property
    def file_cache(self) -> FileCache | None:
        """Where copies of remote shards are kept."""
        return None if self.cache is None else FileCache(path=self.cache, max_bytes=self.cache_bytes)
