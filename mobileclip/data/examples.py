"""What a worker does: read its shards, make an example of every sample, and hand over batches with what was skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import attrs
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mobileclip.data.augmentation import datacompdr_augmentation
from mobileclip.data.batch import ReinforcedBatch
from mobileclip.data.image import ImageTransform
from mobileclip.data.members import parse_sample, parse_stored_sample
from mobileclip.data.randomness import random_index, seeded_rng
from mobileclip.data.sample import ImageTextSample, StoredSample, check_source_image, decode_image
from mobileclip.data.shards import RawSample, parse, read_shard
from mobileclip.data.skips import BadSampleError, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from PIL import Image
    from torch import Tensor

    from mobileclip.data.augmentation import AugmentationSpec
    from mobileclip.data.embeddings import Embeddings
    from mobileclip.data.pipeline import ReinforcedPipelineSpec

T = TypeVar("T")


@attrs.frozen(kw_only=True, eq=False)
class Chunk:
    """What a worker hands over: at most a batch of samples, and what it skipped since the last.

    Args:
        batch: None where there were only skips.
        skips: to be counted by the process that trains.
    """

    batch: ReinforcedBatch | None
    skips: tuple[Skip, ...]


@attrs.frozen(kw_only=True, eq=False)
class Example:
    """What an epoch takes of one sample: one augmentation, one caption, and where there are any, one synthetic one."""

    key: str
    image: Image.Image
    caption: str
    syn_caption: str | None = None
    teacher_image: Embeddings | None = None
    teacher_text: Embeddings | None = None
    teacher_syn_text: Embeddings | None = None


class ShardDataset(IterableDataset[Chunk]):
    """The chunks of the shards that fall to this worker.

    Args:
        spec: the pipeline's choices.
        shards: those of this process, before shuffling.
        tokenizer: texts to ids (B, context length).
        teacher_dim: dim of the concatenated teacher embeddings; other samples are skipped.
        world: rank and number of processes, to which the shuffled shards are dealt out.
    """

    def __init__(
        self,
        spec: ReinforcedPipelineSpec,
        *,
        shards: Sequence[str],
        tokenizer: Callable[[Sequence[str]], Tensor],
        teacher_dim: int | None,
        world: tuple[int, int],
    ) -> None:
        super().__init__()
        # Shared, so that workers that live on see which epoch they are asked for.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._spec = spec
        self._shards = tuple(shards)
        self._tokenizer = tokenizer
        self._teacher_dim = teacher_dim
        self._world = world
        self._transform = ImageTransform(spec.image)
        self._augmentation = spec.augmentation or _default_augmentation(spec)

    def __iter__(self) -> Iterator[Chunk]:
        epoch = int(self.epoch)
        skips: list[Skip] = []
        examples: list[Example] = []
        parser = parse_stored_sample if self._spec.reinforced else parse_sample
        for raw in self._raw_samples(epoch, skips.append):
            sample = parse(raw, parser, skips.append)
            if sample is None:
                continue
            try:
                examples.append(self._example(sample, epoch))
            except BadSampleError as error:
                skips.append(Skip(reason=error.reason, key=raw.key, shard=raw.shard, detail=error.detail))
            if len(examples) == self._spec.batch_size:
                yield Chunk(batch=self._collate(examples), skips=tuple(skips))
                examples.clear()
                skips.clear()
        if examples or skips:
            yield Chunk(batch=self._collate(examples) if examples else None, skips=tuple(skips))

    def _raw_samples(self, epoch: int, on_skip: Callable[[Skip], None]) -> Iterator[RawSample]:
        spec, shards = self._spec, list(self._shards)
        if spec.shuffle:
            shards = list(_shuffled(shards, len(shards), seeded_rng(spec.seed, "shards", epoch)))
        rank, world_size = self._world
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        shards = shards[rank::world_size][worker::num_workers]
        samples = (raw for shard in shards for raw in read_shard(shard, on_skip))
        if not spec.shuffle:
            return samples
        return _shuffled(samples, spec.shuffle_buffer, seeded_rng(spec.seed, "samples", epoch, rank, worker))

    def _example(self, sample: ImageTextSample, epoch: int) -> Example:
        if sample.image is None:
            raise BadSampleError("no_image", "there is no image; join the data set with the one that has the images")
        rng = seeded_rng(self._spec.seed, "example", epoch, sample.key)
        image = decode_image(sample.image)
        if not isinstance(sample, StoredSample):
            params = self._augmentation.sample(rng, image.size)
            caption = sample.captions[random_index(rng, len(sample.captions))]
            return Example(key=sample.key, image=self._augmentation.apply(image, params), caption=caption)
        check_source_image(sample, sample.image, image.size)
        return self._reinforced_example(sample, image, rng)

    def _reinforced_example(self, sample: StoredSample, image: Image.Image, rng: np.random.Generator) -> Example:
        if self._teacher_dim is not None and sample.dim != self._teacher_dim:
            raise BadSampleError("wrong_dim", f"the teacher embeddings have dim {sample.dim}, not {self._teacher_dim}")
        index = random_index(rng, len(sample.augmentations))
        caption = random_index(rng, len(sample.captions))
        example = Example(
            key=sample.key,
            image=self._augmentation.apply(image, sample.augmentations[index]),
            caption=sample.captions[caption],
            teacher_image=sample.row("image_emb", index),
            teacher_text=sample.row("text_emb", caption),
        )
        if not self._spec.synthetic:
            return example
        names = sorted(name for name, texts in sample.syn_captions.items() if texts)
        if not names:
            raise BadSampleError("no_syn_caption", "there is no synthetic caption; synthetic=False does without")
        name = names[random_index(rng, len(names))]
        synthetic = random_index(rng, len(sample.syn_captions[name]))
        return attrs.evolve(
            example,
            syn_caption=sample.syn_captions[name][synthetic],
            teacher_syn_text=sample.row(f"{name}_emb", synthetic),
        )

    def _collate(self, examples: Sequence[Example]) -> ReinforcedBatch:
        pixels = np.stack([np.asarray(example.image) for example in examples])
        syn_captions = [example.syn_caption for example in examples if example.syn_caption is not None]
        return ReinforcedBatch(
            keys=tuple(example.key for example in examples),
            image=self._transform.normalize(pixels),
            text=self._tokenizer([example.caption for example in examples]),
            syn_text=self._tokenizer(syn_captions) if syn_captions else None,
            teacher_image=_stack(example.teacher_image for example in examples),
            teacher_text=_stack(example.teacher_text for example in examples),
            teacher_syn_text=_stack(example.teacher_syn_text for example in examples),
        )


def _default_augmentation(spec: ReinforcedPipelineSpec) -> AugmentationSpec:
    augmentation = datacompdr_augmentation(spec.image.size)
    # Sampled afresh, translations are a fraction of the student's image; replayed, they were of the teachers'.
    return augmentation if spec.reinforced else attrs.evolve(augmentation, reference_size=spec.image.size)


def _stack(rows: Iterable[Embeddings | None]) -> Tensor | None:
    present = [row for row in rows if row is not None]
    return torch.from_numpy(np.stack(present)) if present else None


def _shuffled(items: Iterable[T], buffer_size: int, rng: np.random.Generator) -> Iterator[T]:
    """Yield the items in random order, as far as a buffer of that size allows; all of them, once."""
    buffer: list[T] = []
    for item in items:
        if len(buffer) < buffer_size:
            buffer.append(item)
            continue
        place = random_index(rng, buffer_size)
        yield buffer[place]
        buffer[place] = item
    while buffer:
        place = random_index(rng, len(buffer))
        buffer[place], buffer[-1] = buffer[-1], buffer[place]
        yield buffer.pop()
