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
        tokens: ids of the different texts.
        rows: the samples' captions as rows of `tokens`; padded.
        counts: how many captions a sample has.
    """

    tokens: Tensor
    rows: Tensor
    counts: Tensor

    def choose(self, samples: Tensor, chance: Tensor, *, at_most: int | None = None) -> Tensor:
        """Return which caption of each sample a number of [0, 1) chooses, among the first `at_most` ones."""
        counts = self.counts[samples] if at_most is None else self.counts[samples].clamp(max=at_most)
        return (chance * counts).long()

    def ids(self, samples: Tensor, which: Tensor) -> Tensor:
        """Return the ids of one caption of each sample.

        Shape:
            samples, which: (batch,) -> (batch, context length).
        """
        return self.tokens[self.rows[samples, which]]


@attrs.frozen(kw_only=True, eq=False)
class StoredTeacher:
    """What a teacher, or an ensemble, said of every sample, in float32.

    Shape:
        image: (samples, augmentations, dim); real, synthetic: (samples, most captions of a sample, dim), padded.
    """

    image: Tensor
    real: Tensor
    synthetic: Tensor


@attrs.frozen(kw_only=True, eq=False)
class StoredSamples:
    """Reinforced samples, ready to be put into batches.

    Shape:
        pixels: (samples, augmentations, size, size, 3), uint8.

    Args:
        keys: of the samples.
        pixels: the augmented pictures at the student's size.
        real: the real captions.
        synthetic: the synthetic ones.
        teachers: what was said of the same augmentations and captions; one for each ensemble.
    """

    keys: tuple[str, ...]
    pixels: Tensor
    real: StoredCaptions
    synthetic: StoredCaptions
    teachers: tuple[StoredTeacher, ...]


@attrs.frozen(kw_only=True, eq=False)
class StoredBatches:
    """The batches of one training, as the loop takes them: one augmentation and two captions per sample and epoch.

    Args:
        samples: what they are made of.
        batch_size: samples per batch; what is left of an epoch is left out.
        seed: of the order and of all choices, which depend on it and on the epoch alone: the other arguments change
            none that they do not restrict.
        synthetic_captions: whether every picture comes with a synthetic caption.
        teachers: whose embeddings come with it, as indices into `samples.teachers`.
        num_views: augmentations that are used, from the first on; None for all.
        num_captions: synthetic captions that are used, from the first on; None for all.
        matched: whether the teachers' embedding of a picture is that of the augmentation that the student sees; if not,
            it is of one chosen for itself.
        members: the samples that are used; None for all.
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
        """Yield batches without end, from a position on.

        Raises:
            ValueError: if there are fewer samples than one batch needs.
        """
        members = torch.arange(len(self.samples.keys)) if self.members is None else self.members
        per_epoch = len(members) // self.batch_size
        if per_epoch == 0:
            raise ValueError(f"{len(members)} samples do not fill a batch of {self.batch_size}; take a smaller one")
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
        student: whose texts are made into ids, and whose contract says how pictures are resized.

    Raises:
        ValueError: if the student will see pictures resized in another way than in training.
    """
    image = student.image.input
    if (augmentation.size, augmentation.interpolation) != (image.size, image.interpolation):
        raise ValueError(
            f"the student learns from {augmentation.interpolation} views of {augmentation.size} pixels, and its spec "
            f"says {image.interpolation} and {image.size}; give both the same"
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
    """Return what the teachers of reinforced samples said."""
    return StoredTeacher(
        image=torch.stack([torch.from_numpy(sample.image_emb) for sample in samples]),
        real=_padded([sample.text_emb for sample in samples]),
        synthetic=_padded([sample.syn_text_emb["syn_text"] for sample in samples]),
    )


def replayed(
    png: bytes | None, augmentations: Sequence[AugmentationParams], policy: AugmentationSpec, background: Color | None
) -> Tensor:
    """Return the views of a picture.

    Shape:
        (augmentations, size, size, 3), uint8.
    """
    assert png is not None, "the data set stores every picture"
    image = decode_image(png, orient=False, background=background)
    return torch.from_numpy(np.stack([np.asarray(policy.apply(image, params)) for params in augmentations]))


def stored_captions(groups: Sequence[Sequence[str]], tokenizer: Tokenizer) -> StoredCaptions:
    """Return the captions of samples as ids, each text once."""
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
