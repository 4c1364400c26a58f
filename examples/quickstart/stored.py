"""Everything that training reads, in memory: every stored augmentation replayed once, every caption tokenised once.

The library's pipeline reads, decodes and replays every sample in every epoch, as a data set larger than the memory
needs; on two cores and a small model that would be a third of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import torch
from torch import Tensor

from mobileclip.data import (
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


@attrs.frozen(kw_only=True, eq=False)
class StoredCaptions:
    """The captions of every sample and what the teachers said of them.

    Shape:
        tokens: (texts, context length); rows: (samples, most captions of a sample); counts: (samples,);
        embeddings: (samples, most captions of a sample, dim).

    Args:
        tokens: ids of the different texts.
        rows: the samples' captions as rows of `tokens`; padded.
        counts: how many captions a sample has.
        embeddings: the teachers', in float32; padded.
    """

    tokens: Tensor
    rows: Tensor
    counts: Tensor
    embeddings: Tensor

    def choose(self, samples: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids and the embeddings of one caption of each sample, chosen by a number of [0, 1)."""
        which = (chance[samples] * self.counts[samples]).long()
        return self.tokens[self.rows[samples, which]], self.embeddings[samples, which]


@attrs.frozen(kw_only=True, eq=False)
class StoredSamples:
    """Reinforced samples, ready to be put into batches.

    Shape:
        pixels: (samples, augmentations, size, size, 3), uint8; embeddings: (samples, augmentations, dim).

    Args:
        keys: of the samples.
        pixels: the augmented pictures at the student's size.
        embeddings: the teachers' of the same augmentations.
        real: the real captions.
        synthetic: the synthetic ones.
    """

    keys: tuple[str, ...]
    pixels: Tensor
    embeddings: Tensor
    real: StoredCaptions
    synthetic: StoredCaptions

    def stream(self, first: int, *, batch_size: int, seed: int) -> Iterator[ReinforcedBatch]:
        """Yield batches without end, from any one on: one augmentation and two captions per sample and epoch.

        Args:
            first: number of batches that were consumed before.
            batch_size: samples per batch; what is left of an epoch is left out.
            seed: of the order and of all choices, which depend on it and on the epoch alone.

        Raises:
            ValueError: if there are fewer samples than one batch needs.
        """
        per_epoch = len(self.keys) // batch_size
        if per_epoch == 0:
            raise ValueError(f"{len(self.keys)} samples do not fill a batch of {batch_size}; take a smaller one")
        epoch, done = divmod(first, per_epoch)
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.keys), generator=generator)
            chances = torch.rand(3, len(self.keys), generator=generator)
            for number in range(done, per_epoch):
                yield self._batch(order[number * batch_size : (number + 1) * batch_size], chances)
            epoch, done = epoch + 1, 0

    def _batch(self, samples: Tensor, chances: Tensor) -> ReinforcedBatch:
        view = (chances[0, samples] * self.pixels.shape[1]).long()
        text, teacher_text = self.real.choose(samples, chances[1])
        syn_text, teacher_syn_text = self.synthetic.choose(samples, chances[2])
        return ReinforcedBatch(
            keys=tuple(self.keys[index] for index in samples.tolist()),
            image=self.pixels[samples, view].permute(0, 3, 1, 2),
            text=text,
            syn_text=syn_text,
            teacher_image=self.embeddings[samples, view],
            teacher_text=teacher_text,
            teacher_syn_text=teacher_syn_text,
        )


@attrs.frozen(kw_only=True, eq=False)
class StoredBatches:
    """The batches of one training, as the loop takes them.

    Args:
        samples: what they are made of.
        batch_size: samples per batch.
        seed: of the order and of all choices; the other choices change neither.
        synthetic_captions: whether every picture comes with a synthetic caption.
        num_columns: columns of the teachers' embeddings that come with it: all, the first teachers', or 0 for none.
    """

    samples: StoredSamples
    batch_size: int
    seed: int
    synthetic_captions: bool
    num_columns: int

    def stream(self, position: StreamPosition) -> Iterator[ReinforcedBatch]:
        """Yield batches without end, from a position on."""
        for batch in self.samples.stream(position.first_batch, batch_size=self.batch_size, seed=self.seed):
            yield attrs.evolve(
                batch,
                syn_text=batch.syn_text if self.synthetic_captions else None,
                teacher_image=self._columns(batch.teacher_image),
                teacher_text=self._columns(batch.teacher_text),
                teacher_syn_text=self._columns(batch.teacher_syn_text) if self.synthetic_captions else None,
            )

    def _columns(self, embedding: Tensor | None) -> Tensor | None:
        return None if embedding is None or self.num_columns == 0 else embedding[:, : self.num_columns]

    def position(self, num_batches: int) -> StreamPosition:
        """Return the position behind so many batches: no sample is ever skipped."""
        return StreamPosition(first_batch=num_batches)

    def take_skips(self, num_batches: int) -> Sequence[Skip]:
        """Return nothing, as nothing is left out."""
        del num_batches
        return ()


def store_samples(shards: Sequence[str], *, augmentation: AugmentationSpec, student: DualEncoderSpec) -> StoredSamples:
    """Return what the shards hold, with every augmentation replayed.

    Args:
        shards: reinforced shards.
        augmentation: the policy at the student's size.
        student: whose texts are made into ids.
    """
    keys, pixels, embeddings, real, synthetic = [], [], [], [], []
    for sample in read_reinforced_samples(shards):
        keys.append(sample.key)
        pixels.append(_replayed(sample, augmentation))
        embeddings.append(torch.from_numpy(sample.image_emb))
        real.append((sample.captions, sample.text_emb))
        synthetic.append((sample.syn_captions["syn_text"], sample.syn_text_emb["syn_text"]))
    tokenizer = Tokenizer(student.text.input)
    return StoredSamples(
        keys=tuple(keys),
        pixels=torch.stack(pixels),
        embeddings=torch.stack(embeddings),
        real=_stored_captions(real, tokenizer),
        synthetic=_stored_captions(synthetic, tokenizer),
    )


def _replayed(sample: ReinforcedSample, augmentation: AugmentationSpec) -> Tensor:
    assert sample.image is not None, "the data set stores every picture"
    image = decode_image(sample.image)
    views = [np.asarray(augmentation.apply(image, params)) for params in sample.augmentations]
    return torch.from_numpy(np.stack(views))


def _stored_captions(
    groups: Sequence[tuple[Sequence[str], np.ndarray[tuple[int, ...], np.dtype[np.float32]]]], tokenizer: Tokenizer
) -> StoredCaptions:
    texts = list(dict.fromkeys(text for captions, _ in groups for text in captions))
    row = {text: index for index, text in enumerate(texts)}
    most = max(len(captions) for captions, _ in groups)
    rows = torch.zeros(len(groups), most, dtype=torch.long)
    embeddings = torch.zeros(len(groups), most, groups[0][1].shape[1])
    for index, (captions, embedding) in enumerate(groups):
        rows[index, : len(captions)] = torch.tensor([row[text] for text in captions])
        embeddings[index, : len(captions)] = torch.from_numpy(embedding)
    counts = torch.tensor([len(captions) for captions, _ in groups])
    return StoredCaptions(tokens=tokenizer(texts), rows=rows, counts=counts, embeddings=embeddings)
