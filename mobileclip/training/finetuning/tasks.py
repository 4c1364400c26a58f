"""Fine-tuning tasks: images with classes or captions, training and test splits, and a loss for labelled images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs
import torch
import torch.nn.functional as F

from mobileclip.data import ImageTextSample, SkipReport, read_samples, write_shard
from mobileclip.data.loading.batch import ChangedBatches
from mobileclip.datasets import ClassFolderSource, RowOptions, Source, open_data_set
from mobileclip.losses import ReinforcedLossSpec, losses
from mobileclip.progress import track
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.strict import strict
from mobileclip.terminal import say
from mobileclip.training.finetuning.spec import Kind

if TYPE_CHECKING:
    from mobileclip.data import BatchSource, ReinforcedBatch


INDEX = "index.json"

_SAMPLES_PER_SHARD = 256


@attrs.frozen(kw_only=True)
class HeldOut:
    """A rule that selects the held-out samples: a given set of keys, or all keys with a hash below a fraction.

    Args:
        fraction: held-out fraction of the samples, from 0 to 1.
        keys: keys of the held-out samples; None selects samples by a hash of the key.
    """

    fraction: float
    keys: frozenset[str] | None = None

    def contains(self, key: str) -> bool:
        """Return whether the sample with this key is held out."""
        return _place(key) < self.fraction if self.keys is None else key in self.keys

    def __str__(self) -> str:
        return f"{self.fraction} {'' if self.keys is None else sorted(self.keys)}"


@attrs.frozen(kw_only=True)
class Task:
    """A data set of images for training or testing.

    Args:
        name: name of the task in the report.
        source: data set that yields the samples; see `open_data_set`.
        kind: `classes` (the metadata has the class name as `label`) or `captions`.
        part: split to use: `all` samples, only the held-out samples (`test`), or only the remaining samples (`train`).
        held_out: rule that selects the held-out samples; None uses all samples.
    """

    name: str
    source: Source
    kind: Literal["classes", "captions"]
    part: Literal["all", "train", "test"] = "all"
    held_out: HeldOut | None = None

    def samples(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples of the split, and count skipped samples in `report`."""
        for unit in self.source.units():
            yield from filter(self.contains, unit.read(report))

    def contains(self, sample: ImageTextSample) -> bool:
        """Return whether the sample is in the split."""
        if self.held_out is None:
            return True
        return self.held_out.contains(sample.key) == (self.part == "test")

    @property
    def fingerprint(self) -> str:
        """Hash of the data's content and of the split; each access reads the files."""
        parts = [self.part, str(self.held_out), to_json(self.source, unstructure_as=Source)]
        parts += [unit.content() for unit in self.source.units()]
        return blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=6).hexdigest()


@attrs.frozen(kw_only=True)
class TrainingData:
    """The training split of a task, written to shards.

    Args:
        shards: paths of the shards.
        num_samples: number of images in the shards.
        class_names: names of the classes; empty for captions.
        labels: class of each sample as an index into `class_names`, by the sample's key.
    """

    shards: tuple[str, ...]
    num_samples: int
    class_names: tuple[str, ...]
    labels: dict[str, int]


def open_task(
    path: str,
    kind: Kind,
    templates: tuple[str, ...],
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> Task:
    """Return the task at `path`, which can be any data set; see `open_data_set`.

    Raises:
        ValueError, OSError: if the data does not exist or cannot be read.
    """
    # The shards are small, so that each process gets several shards.
    opened = open_data_set(path, kind=kind, templates=templates, samples_per_shard=_SAMPLES_PER_SHARD, rows=rows)
    return Task(name=opened.name, source=opened.source, kind=opened.kind)


def split(task: Task, fraction: float) -> tuple[Task, Task]:
    """Split a task into a training split and a test split.

    In a folder of classes, the test split has `fraction` of the images of each class, at least one image. For other
    data, a hash of the key selects the samples of the test split.
    """
    held_out = HeldOut(fraction=fraction, keys=_keys_by_class(task, fraction))
    train, test = (attrs.evolve(task, part=part, held_out=held_out) for part in ("train", "test"))
    return train, test


def _keys_by_class(task: Task, fraction: float) -> frozenset[str] | None:
    if not isinstance(task.source, ClassFolderSource):
        return None
    keys: dict[str, list[str]] = {}
    for unit in task.source.units():
        for item in unit.items:
            keys.setdefault(item.image.partition("/")[0], []).append(item.key)
    return frozenset(
        key for group in keys.values() for key in sorted(group, key=_place)[: max(1, round(fraction * len(group)))]
    )


def _place(key: str) -> float:
    """Return a number in [0, 1) that depends only on the key."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def write_training_data(task: Task, folder: Path) -> TrainingData:
    """Write the training split to shards with an index, or reuse the shards of an earlier run.

    Raises:
        ValueError: if there are no training images, a labelled image has no class, or two labelled images have the
            same key.
    """
    if (written := read_index(folder)) is not None:
        return written
    folder.mkdir(parents=True, exist_ok=True)
    report = SkipReport()
    shards = []
    units = task.source.units()
    for number, unit in enumerate(track(units, total=len(units), title="writing shards", unit="shards")):
        path = folder / f"{number:08d}.tar"
        if not path.exists():
            samples = filter(task.contains, unit.read(report))
            first = next(samples, None)
            if first is None:
                continue
            write_shard(path, chain([first], samples))
        shards.append(str(path))
    if not shards:
        raise ValueError(f"{task.name} has no training images: {report}")
    data = _indexed(task, tuple(shards))
    write_text(folder / INDEX, to_json(data))
    say(f"{data.num_samples} training images, {len(data.class_names)} classes; {report}")
    return data


def label_of(sample: ImageTextSample) -> str:
    """Return the class name of a sample.

    Raises:
        ValueError: if the metadata has no class name.
    """
    label = sample.metadata.get("label")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"sample {sample.key!r} has no class; its metadata must have the class name as `label`")
    return label


def _indexed(task: Task, shards: tuple[str, ...]) -> TrainingData:
    labels: dict[str, str] = {}
    num_samples = 0
    for sample in read_samples(shards):
        num_samples += 1
        if task.kind == "classes":
            if sample.key in labels:
                raise ValueError(f"{task.name} has the key {sample.key!r} twice; labelled images need unique keys")
            labels[sample.key] = label_of(sample)
    names = tuple(sorted(set(labels.values())))
    place = {name: index for index, name in enumerate(names)}
    return TrainingData(
        shards=shards,
        num_samples=num_samples,
        class_names=names,
        labels={key: place[name] for key, name in labels.items()},
    )


def read_index(folder: Path) -> TrainingData | None:
    """Return the training data listed in a folder's index; None if the folder has no index."""
    path = folder / INDEX
    return from_json(path.read_text(encoding="utf-8"), TrainingData) if path.exists() else None


# Difference of the teacher's logits between two classes: in float32, exp(-100) is negligible next to 1.
_LABEL_LOGIT_SCALE = 100.0


@losses.register("labelled_contrastive")
@attrs.frozen(kw_only=True, field_transformer=strict)
class LabelledContrastiveSpec(ReinforcedLossSpec):
    """The contrastive loss with targets shared by all samples of a class.

    Examples:
        >>> isinstance(labelled_contrastive(10), LabelledContrastiveSpec)
        True
    """

    @property
    def term_names(self) -> tuple[str | None, str | None]:
        """The loss has a single term, the contrastive term."""
        return None, "contrastive"


def labelled_contrastive(num_classes: int) -> LabelledContrastiveSpec:
    """Return a two-way cross-entropy for batches from `with_labels`, with targets shared by all samples of a class.

    For image i, the target is 1/n for the n texts of the image's class and 0 for other texts; targets of texts are
    analogous. The loss is the KL divergence from the targets, with minimum 0. If no class occurs twice in a batch,
    the loss equals the contrastive loss. With a single template, the gradient equals the contrastive loss's gradient;
    with several templates, the two gradients differ.

    Args:
        num_classes: total number of classes, at least 2.

    Raises:
        ValueError: if there are fewer than two classes.

    Source: Khosla et al., "Supervised Contrastive Learning", Eq. 2, with texts in place of augmented images; Yang et
        al., "Unified Contrastive Learning in Image-Text-Label Space", Eq. 2.
    """
    if num_classes < 2:
        raise ValueError(f"a contrastive loss needs at least two classes, got {num_classes}")
    return LabelledContrastiveSpec(
        teacher_dims=(num_classes,),
        teacher_logit_scales=(_LABEL_LOGIT_SCALE,),
        contrastive_weight=0.0,
        distill_weight=1.0,
    )


def with_labels(
    batches: BatchSource[ReinforcedBatch], labels: Mapping[str, int], *, num_classes: int
) -> BatchSource[ReinforcedBatch]:
    """Return the batches with one-hot teacher embeddings of the labels, for `labelled_contrastive`.

    Args:
        batches: batches of images with texts that name the image's class.
        labels: class index of each sample (from 0), by the sample's key.
        num_classes: total number of classes.

    Raises:
        ValueError: while iterating, if a key has no label or the label is not a class index.
    """
    return _Labelled(batches=batches, labels=labels, num_classes=num_classes)


@attrs.frozen(kw_only=True, eq=False)
class _Labelled(ChangedBatches["ReinforcedBatch"]):
    batches: BatchSource[ReinforcedBatch]
    labels: Mapping[str, int]
    num_classes: int

    def changed(self, batch: ReinforcedBatch) -> ReinforcedBatch:
        codes = F.one_hot(self._indices(batch.keys), self.num_classes).float().to(batch.image.device)
        return attrs.evolve(batch, teacher_image=codes, teacher_text=codes)

    def _indices(self, keys: tuple[str, ...]) -> torch.Tensor:
        unknown = [key for key in keys if not 0 <= self.labels.get(key, -1) < self.num_classes]
        if unknown:
            raise ValueError(
                f"sample {unknown[0]!r} has no label in [0, {self.num_classes}); the labels belong to different "
                "data, or the data has changed"
            )
        return torch.tensor([self.labels[key] for key in keys])
