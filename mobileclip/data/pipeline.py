"""From shards to named batches: one stored augmentation, one real and one synthetic caption per sample and epoch.

What an epoch makes of a sample depends on the seed, the epoch and the sample's key alone. So the samples of an epoch
are the same to the bit whatever the number of workers; only their order and grouping differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import attrs
from attrs import validators
from torch import Tensor
from torch.utils.data import DataLoader

from mobileclip.data.augmentation import AugmentationSpec
from mobileclip.data.batch import ReinforcedBatch, join_batches
from mobileclip.data.examples import Chunk, ShardDataset
from mobileclip.data.shards import Shards, count_samples, expand_shards, read_reinforced_samples
from mobileclip.data.skips import SkipReport
from mobileclip.data.tokenizer import Tokenizer
from mobileclip.inputs import ImageInput, TextInput

TextToIds = Callable[[Sequence[str]], Tensor]
T = TypeVar("T")


def _patterns(shards: Shards) -> tuple[str, ...]:
    patterns = [shards] if isinstance(shards, (str, os.PathLike)) else shards
    return tuple(os.fspath(pattern) for pattern in patterns)


@attrs.frozen(kw_only=True)
class ReinforcedPipelineSpec:
    """The choices of a data pipeline.

    Args:
        shards: paths or brace patterns of the shards.
        batch_size: samples per batch and process.
        image: the student's image contract; augmentations are replayed at its size.
        text: the student's text contract.
        reinforced: whether to read what the teachers said; without, augmentations are sampled afresh and batches hold
            images and real captions alone.
        synthetic: whether to read a synthetic caption too; samples that have none are skipped. Reinforced only.
        augmentation: the augmentation at the student's size; None for the public data sets' policy, with translations
            in pixels of the teachers' image where it is replayed, and of the student's where it is sampled afresh.
        seed: of the order and of every choice.
        epochs: number of epochs that iterating yields.
        shuffle: whether to shuffle the shards and, within a buffer, the samples.
        shuffle_buffer: number of samples, encoded, of every worker's buffer.
        num_workers: processes that read, decode and augment; 0 for none beside the own one.
        drop_last: whether to leave out the last samples of an epoch that fill no batch.
        num_samples: number of samples in all shards, where it is known; `len` needs it.
        teacher_dim: dim of the concatenated teacher embeddings; None for that of the first usable sample.

    Raises:
        ValueError: if a number is out of its range, or the augmentation has another size than the image contract.
    """

    shards: tuple[str, ...] = attrs.field(converter=_patterns)
    batch_size: int = attrs.field(validator=validators.gt(0))
    image: ImageInput
    text: TextInput = attrs.field(factory=TextInput)
    reinforced: bool = True
    synthetic: bool = True
    augmentation: AugmentationSpec | None = None
    seed: int = 0
    epochs: int = attrs.field(default=1, validator=validators.gt(0))
    shuffle: bool = True
    shuffle_buffer: int = attrs.field(default=1000, validator=validators.gt(0))
    num_workers: int = attrs.field(default=0, validator=validators.ge(0))
    drop_last: bool = True
    num_samples: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    teacher_dim: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))

    def __attrs_post_init__(self) -> None:
        if self.augmentation is not None and self.augmentation.size != self.image.size:
            raise ValueError(
                f"the augmentation makes images of {self.augmentation.size} pixels and the image contract wants "
                f"{self.image.size}; give both the same size"
            )

    def build(self, *, tokenizer: TextToIds | None = None) -> ReinforcedPipeline:
        """Return the pipeline.

        Args:
            tokenizer: texts to ids (B, context length); None for CLIP's own with the text contract.
        """
        return ReinforcedPipeline(self, tokenizer=Tokenizer(self.text) if tokenizer is None else tokenizer)


class ReinforcedPipeline:
    """An iterable of named batches; every epoch sees every usable sample of the shards once.

    In a distributed run the shards are dealt out to the processes, which read `RANK` and `WORLD_SIZE` or ask
    `torch.distributed`, and then to the workers.

    Args:
        spec: the choices.
        tokenizer: texts to ids (B, context length).

    Raises:
        ValueError: if the patterns name no shard, none of the local ones exists, or there are fewer than processes.
    """

    def __init__(self, spec: ReinforcedPipelineSpec, *, tokenizer: TextToIds) -> None:
        self.spec = spec
        self.shards = expand_shards(spec.shards)
        if not any("://" in shard or shard.startswith("pipe:") or Path(shard).exists() for shard in self.shards):
            raise ValueError(f"none of the {len(self.shards)} shards exists, the first is {self.shards[0]}")
        self.rank, self.world_size = _process()
        if len(self.shards) < self.world_size:
            raise ValueError(
                f"{len(self.shards)} shards cannot be dealt out to {self.world_size} processes; split them up"
            )
        self.report = SkipReport()
        """What the current or last epoch read and skipped, in this process."""
        self._tokenizer = tokenizer
        self._dataset: ShardDataset | None = None
        self._loader: DataLoader[Chunk] | None = None

    def __len__(self) -> int:
        """Return the number of batches that iterating yields in this process, if no sample is skipped.

        With several processes it assumes shards of equal size.

        Raises:
            TypeError: if `num_samples` is not known.
        """
        if self.spec.num_samples is None:
            raise TypeError("the number of batches is unknown; give num_samples, count_samples(shards) finds it")
        return self.spec.epochs * self._batches_per_epoch(self.spec.num_samples)

    def __iter__(self) -> Iterator[ReinforcedBatch]:
        for epoch in range(self.spec.epochs):
            yield from self.epoch(epoch)

    def epoch(self, epoch: int) -> Iterator[ReinforcedBatch]:
        """Yield the batches of one epoch: every usable sample once.

        Args:
            epoch: its number, from 0; decides the order, the augmentations and the captions.

        Raises:
            ValueError: if not one sample of the shards can be used.
        """
        self.report = SkipReport()
        waiting: list[ReinforcedBatch] = []
        for chunk in self._chunks(epoch):
            self.report.extend(chunk.skips)
            if chunk.batch is None:
                continue
            self.report.num_read += len(chunk.batch)
            if len(chunk.batch) == self.spec.batch_size:
                yield chunk.batch
                continue
            # Workers end with incomplete batches, which together make complete ones.
            waiting.append(chunk.batch)
            if sum(map(len, waiting)) >= self.spec.batch_size:
                joined = join_batches(waiting)
                yield joined.rows(0, self.spec.batch_size)
                waiting = [joined.rows(self.spec.batch_size, len(joined))] if len(joined) > self.spec.batch_size else []
        if waiting and not self.spec.drop_last:
            yield join_batches(waiting)
        if self.report.num_read == 0:
            raise ValueError(f"not one sample of {len(self.shards)} shards can be used: {self.report}")

    def stream(self, first_batch: int = 0) -> Iterator[ReinforcedBatch]:
        """Yield batches without end, epoch after epoch, from any of them on: a run that resumes sees the same ones.

        Every epoch has the same number of batches, in every process: one that lost samples repeats its first ones.
        Incomplete batches are left out. Resuming reads the batches of the current epoch that came before.

        Args:
            first_batch: number of batches that were consumed before.

        Raises:
            ValueError: if there are fewer samples than one batch needs.
        """
        num_samples = self.spec.num_samples or count_samples(self.shards)
        per_epoch = self._batches_per_epoch(num_samples, drop_last=True)
        if per_epoch == 0:
            raise ValueError(
                f"{num_samples} samples in {self.world_size} processes do not fill a batch of {self.spec.batch_size}"
            )
        epoch, done = divmod(first_batch, per_epoch)
        while True:
            yield from islice(self._filled_epoch(epoch), done, per_epoch)
            epoch, done = epoch + 1, 0

    def _filled_epoch(self, epoch: int) -> Iterator[ReinforcedBatch]:
        while True:
            num_full = 0
            for batch in self.epoch(epoch):
                if len(batch) == self.spec.batch_size:
                    num_full += 1
                    yield batch
            if num_full == 0:
                raise ValueError(
                    f"epoch {epoch} has no complete batch of {self.spec.batch_size} samples: {self.report}"
                )

    def _batches_per_epoch(self, num_samples: int, *, drop_last: bool | None = None) -> int:
        mine = num_samples // self.world_size
        full, rest = divmod(mine, self.spec.batch_size)
        return full + (rest > 0 and not (self.spec.drop_last if drop_last is None else drop_last))

    def _chunks(self, epoch: int) -> Iterator[Chunk]:
        if self._loader is None:
            self._dataset = ShardDataset(
                self.spec,
                shards=self.shards,
                tokenizer=self._tokenizer,
                teacher_dim=self._teacher_dim(),
                world=(self.rank, self.world_size),
            )
            num_workers = min(self.spec.num_workers, len(self.shards[self.rank :: self.world_size]))
            self._loader = DataLoader(
                self._dataset,
                batch_size=None,
                num_workers=num_workers,
                persistent_workers=num_workers > 0,
                collate_fn=_as_it_is,
            )
        assert self._dataset is not None, "made together with the loader"
        self._dataset.epoch.fill_(epoch)
        return iter(self._loader)

    def _teacher_dim(self) -> int | None:
        if not self.spec.reinforced or self.spec.teacher_dim is not None:
            return self.spec.teacher_dim
        # Workers report what is wrong with the samples before the first usable one.
        unheard = SkipReport(log=False)
        return next((sample.dim for sample in read_reinforced_samples(self.shards, unheard)), None)


def _as_it_is(chunk: T) -> T:
    return chunk


def _process() -> tuple[int, int]:
    """Return the rank of this process and the number of processes of the run."""
    from webdataset.utils import pytorch_worker_info  # type: ignore[import-untyped]

    rank, world_size, _, _ = pytorch_worker_info()
    return rank, world_size
