"""The training data in memory: all stored augmentations replayed once, and all captions tokenised once.

The library's pipeline reads, decodes and replays every sample in every epoch, since a data set may be larger than the
memory; with two cores and a small model, this would take a third of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mobileclip.data import (
    AugmentationParams,
    AugmentationSpec,
    ReinforcedBatch,
    ReinforcedSample,
    Skip,
    StreamPosition,
    Tokenizer,
    decode_image,
    read_reinforced_samples,
)
from mobileclip.encoders import DualEncoderSpec
from mobileclip.inputs import Color


@attrs.frozen(kw_only=True, eq=False)
class StoredCaptions:
    """The captions of every sample.

    Shape:
        tokens: (texts, context length); rows: (samples, most captions of a sample); counts: (samples,).

    Args:
        tokens: ids of the distinct texts.
        rows: row indices in `tokens` of the samples' captions, padded.
        counts: number of captions per sample.
    """

    tokens: Tensor
    rows: Tensor
    counts: Tensor

    def choose(self, samples: Tensor, chance: Tensor, *, at_most: int | None = None) -> Tensor:
        """Return the caption index per sample that a number in [0, 1) selects among the first `at_most` captions."""
        counts = self.counts[samples] if at_most is None else self.counts[samples].clamp(max=at_most)
        return (chance * counts).long()

    def ids(self, samples: Tensor, which: Tensor) -> Tensor:
        """Return the ids of one caption per sample.

        Shape:
            samples, which: (batch,) -> (batch, context length).
        """
        return self.tokens[self.rows[samples, which]]


@attrs.frozen(kw_only=True, eq=False)
class StoredTeacher:
    """The embeddings of a teacher, or of an ensemble, for every sample, in float32.

    Shape:
        image: (samples, augmentations, dim); real, synthetic: (samples, most captions of a sample, dim), padded.
    """

    image: Tensor
    real: Tensor
    synthetic: Tensor


@attrs.frozen(kw_only=True, eq=False)
class StoredSamples:
    """Reinforced samples, ready for batching.

    Shape:
        pixels: (samples, augmentations, size, size, 3), uint8.

    Args:
        keys: keys of the samples.
        pixels: augmented images at the student's size.
        real: the real captions.
        synthetic: the synthetic captions.
        teachers: embeddings of the same augmentations and captions, one entry per ensemble.
    """

    keys: tuple[str, ...]
    pixels: Tensor
    real: StoredCaptions
    synthetic: StoredCaptions
    teachers: tuple[StoredTeacher, ...]


@attrs.frozen(kw_only=True, eq=False)
class StoredBatches:
    """The batches of one training: one augmentation and two captions per sample and epoch.

    Args:
        samples: samples for the batches.
        batch_size: number of samples per batch; an incomplete last batch is dropped.
        seed: seed of the order and of all random choices. Choices depend only on the seed and the epoch; other
            arguments only restrict choices.
        synthetic_captions: whether batches have a synthetic caption per image.
        teachers: indices in `samples.teachers` of the embeddings in the batches.
        num_views: number of augmentations to use, from the first on; None for all.
        num_captions: number of synthetic captions to use, from the first on; None for all.
        matched: whether the teachers' embedding of an image belongs to the student's augmentation; otherwise it belongs
            to an independently chosen augmentation.
        members: indices of the samples to use; None for all.
    """

    samples: StoredSamples
    batch_size: int
    seed: int
    synthetic_captions: bool = True
    teachers: tuple[int, ...] = (0,)
    num_views: int | None = None
    num_captions: int | None = None
    matched: bool = True
    members: Tensor | None = None

    def stream(self, position: StreamPosition) -> Iterator[ReinforcedBatch]:
        """Yield batches endlessly, from a position on.

        Raises:
            ValueError: if there are fewer samples than the batch size.
        """
        members = torch.arange(len(self.samples.keys)) if self.members is None else self.members
        per_epoch = len(members) // self.batch_size
        if per_epoch == 0:
            raise ValueError(
                f"{len(members)} samples do not fill a batch of {self.batch_size}; choose a smaller batch_size"
            )
        epoch, done = divmod(position.first_batch, per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = members[torch.randperm(len(members), generator=generator)]
            chances = torch.rand(3, len(self.samples.keys), generator=generator)
            others = torch.rand(len(self.samples.keys), generator=generator)
            for number in range(done, per_epoch):
                rows = order[number * self.batch_size : (number + 1) * self.batch_size]
                yield self._batch(rows, chances[:, rows], others[rows])
            epoch, done = epoch + 1, 0

    def _batch(self, rows: Tensor, chances: Tensor, other_chance: Tensor) -> ReinforcedBatch:
        stored = self.samples
        num_views = self.num_views or stored.pixels.shape[1]
        view = (chances[0] * num_views).long()
        seen_by_teachers = view if self.matched else (other_chance * num_views).long()
        real = stored.real.choose(rows, chances[1])
        synthetic = stored.synthetic.choose(rows, chances[2], at_most=self.num_captions)
        chosen = [stored.teachers[index] for index in self.teachers]

        def said(parts: Sequence[Tensor]) -> Tensor | None:
            return torch.cat(list(parts), dim=-1) if parts else None

        return ReinforcedBatch(
            keys=tuple(stored.keys[row] for row in rows.tolist()),
            image=stored.pixels[rows, view].permute(0, 3, 1, 2),
            text=stored.real.ids(rows, real),
            syn_text=stored.synthetic.ids(rows, synthetic) if self.synthetic_captions else None,
            teacher_image=said([one.image[rows, seen_by_teachers] for one in chosen]),
            teacher_text=said([one.real[rows, real] for one in chosen]),
            teacher_syn_text=said([one.synthetic[rows, synthetic] for one in chosen])
            if self.synthetic_captions
            else None,
        )

    def position(self, num_batches: int) -> StreamPosition:
        """Return the position after a number of batches; samples are never skipped."""
        return StreamPosition(first_batch=num_batches)

    def take_skips(self, num_batches: int) -> Sequence[Skip]:
        """Return an empty result, since no sample is left out."""
        del num_batches
        return ()


def store_samples(shards: Sequence[str], *, augmentation: AugmentationSpec, student: DualEncoderSpec) -> StoredSamples:
    """Return the samples of the shards, with all augmentations replayed.

    Args:
        shards: reinforced shards.
        augmentation: augmentation policy at the student's size.
        student: student spec, which defines the tokenization of texts and the resizing of images.

    Raises:
        ValueError: if the student's spec and `augmentation` have different image sizes or resize filters.
    """
    image = student.image.input
    if (augmentation.size, augmentation.interpolation) != (image.size, image.interpolation):
        raise ValueError(
            f"the student learns from {augmentation.interpolation} views of {augmentation.size} pixels, but its spec "
            f"has {image.interpolation} and {image.size}; use the same values for both"
        )
    samples = list(read_reinforced_samples(shards))
    tokenizer = Tokenizer(student.text.input)
    return StoredSamples(
        keys=tuple(sample.key for sample in samples),
        pixels=torch.stack(
            [replayed(one.image, one.augmentations, augmentation, image.background_color) for one in samples]
        ),
        real=stored_captions([sample.captions for sample in samples], tokenizer),
        synthetic=stored_captions([sample.syn_captions["syn_text"] for sample in samples], tokenizer),
        teachers=(stored_teacher(samples),),
    )


def stored_teacher(samples: Sequence[ReinforcedSample]) -> StoredTeacher:
    """Return the teachers' embeddings in reinforced samples."""
    return StoredTeacher(
        image=torch.stack([torch.from_numpy(sample.image_emb) for sample in samples]),
        real=_padded([sample.text_emb for sample in samples]),
        synthetic=_padded([sample.syn_text_emb["syn_text"] for sample in samples]),
    )


def replayed(
    png: bytes | None, augmentations: Sequence[AugmentationParams], policy: AugmentationSpec, background: Color | None
) -> Tensor:
    """Return the views of an image.

    Shape:
        (augmentations, size, size, 3), uint8.
    """
    assert png is not None, "the data set stores every picture"
    image = decode_image(png, orient=False, background=background)
    return torch.from_numpy(np.stack([np.asarray(policy.apply(image, params)) for params in augmentations]))


def stored_captions(groups: Sequence[Sequence[str]], tokenizer: Tokenizer) -> StoredCaptions:
    """Return the captions of samples as ids, with each text only once."""
    texts = list(dict.fromkeys(text for captions in groups for text in captions))
    row = {text: index for index, text in enumerate(texts)}
    rows = [torch.tensor([row[text] for text in captions]) for captions in groups]
    return StoredCaptions(
        tokens=tokenizer(texts),
        rows=pad_sequence(rows, batch_first=True),
        counts=torch.tensor([len(captions) for captions in groups]),
    )


def _padded(groups: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> Tensor:
    return pad_sequence([torch.from_numpy(group) for group in groups], batch_first=True)
