"""Pipelines of image-text samples: with teachers' embeddings, with images for online teachers, or some columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import attrs
from attrs import validators

from mobileclip.data.augmentation.replay import AugmentationSpec
from mobileclip.data.loading.batch import ReinforcedBatch, stack_pixels
from mobileclip.data.loading.examples import Example, ExampleMaker, ReinforcedExampleSpec, TextToIds
from mobileclip.data.loading.pipeline import Pipeline
from mobileclip.data.loading.reading import TarReader
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.data.loading.uids import Keep
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.shards.files import expand_shards, parse, read_reinforced_samples, read_shard
from mobileclip.data.shards.sidecars import ReinforcementCard, card_of_shards
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.strict import strict

if TYPE_CHECKING:
    from mobileclip.data.samples.readers import Embeddings


_SAMPLES_LOOKED_AT, _SHARDS_LOOKED_AT = 64, 8
_LACKING = frozenset(("missing_member", "no_caption", "no_syn_caption", "no_image"))


@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcedPipelineSpec(ReinforcedExampleSpec, PipelineSpec):
    """The choices of a pipeline of image-text samples: those of `ReinforcedExampleSpec` and of `PipelineSpec`.

    Examples:
        >>> choices = {"shards": "{000..127}.tar", "batch_size": 512, "image": mobileclip.inputs.ImageInput(size=256)}
        >>> ReinforcedPipelineSpec(**choices).captions, ReinforcedPipelineSpec(**choices, reinforced=False).captions
        ('both', 'real')
    """

    @property
    def card(self) -> ReinforcementCard | None:
        """The card beside the shards, where there is one."""
        return card_of_shards(expand_shards(self.shards)) if self.reinforced and self.shards else None

    def example_maker(self, tokenizer: TextToIds) -> ExampleMaker:
        """Return the `ExampleMaker` of these settings."""
        return ExampleMaker(self, tokenizer=tokenizer)

    def lacking_samples(self) -> tuple[Sequence[Skip], Sequence[str]]:
        """Return why none of the first samples can be used, and which members they have.

        Up to 64 samples of up to eight shards are read, until one can be used. There is no reason where one can be, or
        where other things than missing members are wrong, which samples further on need not share.
        """
        shards = expand_shards(self.shards)
        looked_at = shards[:: -(-len(shards) // _SHARDS_LOOKED_AT)]
        maker, skips, members = self.example_maker(Tokenizer(self.text)), list[Skip](), set[str]()
        for shard in looked_at:
            samples = read_shard(shard, lambda _: None, self.sample_limits)
            for raw in islice(samples, _SAMPLES_LOOKED_AT // len(looked_at)):
                members.update(raw.members)
                if parse(raw, lambda key, given: maker.example(maker.parse(key, given), 0), skips.append) is not None:
                    return (), ()
        return (skips, sorted(members)) if _LACKING.issuperset(skip.reason for skip in skips) else ((), ())

    def build(self, *, tokenizer: TextToIds | None = None, keep: Keep | None = None) -> ReinforcedPipeline:
        """Return the pipeline.

        Args:
            tokenizer: texts to ids (B, context length); None for CLIP's own with the text contract.
            keep: which samples are used, see `Pipeline`.
        """
        return ReinforcedPipeline(self, tokenizer=Tokenizer(self.text) if tokenizer is None else tokenizer, keep=keep)


class ReinforcedPipeline(Pipeline[ReinforcedBatch]):
    """The pipeline of image-text samples.

    Args:
        spec: the choices.
        tokenizer: texts to ids (B, context length).
        keep: which samples are used, see `Pipeline`.

    Raises:
        ValueError: if the patterns name no shard, or none of the local ones exists.
    """

    spec: ReinforcedPipelineSpec

    def __init__(self, spec: ReinforcedPipelineSpec, *, tokenizer: TextToIds, keep: Keep | None = None) -> None:
        super().__init__(spec, reader=TarReader.of(spec.shards, spec.file_cache), keep=keep)
        self._tokenizer = tokenizer
        self._known_dim = spec.teacher_dim

    def _maker(self) -> ExampleMaker:
        return attrs.evolve(self.spec, teacher_dim=self._teacher_dim()).example_maker(self._tokenizer)

    def _teacher_dim(self) -> int | None:
        if self.spec.reinforced and self._known_dim is None:
            # Workers report what is wrong with the samples before the first usable one.
            unheard = SkipReport(log=False)
            samples = read_reinforced_samples(self.shards, unheard, self.spec.sample_limits)
            self._known_dim = next((sample.dim for sample in samples), None)
        return self._known_dim


@attrs.frozen(kw_only=True, field_transformer=strict)
class OnlinePipelineSpec(ReinforcedPipelineSpec):
    """Pipeline spec whose batches also hold images and texts for teachers that run beside the training.

    Args:
        online: sides, in pixels, of the teachers' images. Stored augmentations move the image by the pixels that are
            stored, at any side.

    Raises:
        ValueError: as `ReinforcedPipelineSpec` does, or if a side is there twice.

    Source: MobileCLIP (arXiv 2311.17049), table 4d.

    Examples:
        >>> data = ReinforcedPipelineSpec(
        ...     shards="{000..127}.tar", batch_size=512, image=mobileclip.inputs.ImageInput(size=256)
        ... )
        >>> OnlinePipelineSpec.of(data, online=(224, 336)).online
        (224, 336)
    """

    online: tuple[int, ...] = attrs.field(validator=validators.deep_iterable(validators.gt(0)))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if len(set(self.online)) < len(self.online):
            raise ValueError(f"online names a side twice: {self.online}; batches hold one image of every side")

    @classmethod
    def of(cls, data: ReinforcedPipelineSpec, *, online: tuple[int, ...]) -> OnlinePipelineSpec:
        """Return an online pipeline with the settings of a reinforced one."""
        return cls(**_choices(data), online=online)

    def example_maker(self, tokenizer: TextToIds) -> ExampleMaker:
        """Return the `OnlineExampleMaker` of these settings."""
        return OnlineExampleMaker(self, sides=self.online, tokenizer=tokenizer)


@attrs.frozen(kw_only=True, field_transformer=strict)
class ColumnPipelineSpec(ReinforcedPipelineSpec):
    """Pipeline spec whose batches hold some columns of the stored embeddings: those of some teachers.

    Args:
        teacher_columns: the first column and the one behind the last.

    Raises:
        ValueError: as `ReinforcedPipelineSpec` does, or if these are no columns.

    Source: MobileCLIP (arXiv 2311.17049), table 2.

    Examples:
        >>> data = ReinforcedPipelineSpec(
        ...     shards="{000..127}.tar", batch_size=512, image=mobileclip.inputs.ImageInput(size=256)
        ... )
        >>> ColumnPipelineSpec.of(data, teacher_columns=(768, 1536)).teacher_columns
        (768, 1536)
    """

    teacher_columns: tuple[int, int]

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not 0 <= self.teacher_columns[0] < self.teacher_columns[1]:
            raise ValueError(
                f"teacher_columns are the first column and the one behind the last, such as (0, 768), not "
                f"{self.teacher_columns}"
            )

    @classmethod
    def of(cls, data: ReinforcedPipelineSpec, *, teacher_columns: tuple[int, int]) -> ColumnPipelineSpec:
        """Return a pipeline of some columns with the settings of a reinforced one."""
        return cls(**_choices(data), teacher_columns=teacher_columns)

    @property
    def card(self) -> ReinforcementCard | None:
        """The card beside the shards, where there is one, with the teachers of these columns alone."""
        card = super().card
        return None if card is None else card.in_columns(self.teacher_columns)

    def example_maker(self, tokenizer: TextToIds) -> ExampleMaker:
        """Return the `ColumnExampleMaker` of these settings."""
        return ColumnExampleMaker(self, columns=self.teacher_columns, tokenizer=tokenizer)


def _choices(data: ReinforcedPipelineSpec) -> dict[str, Any]:
    return {field.name: getattr(data, field.name) for field in attrs.fields(ReinforcedPipelineSpec)}


class OnlineExampleMaker(ExampleMaker):
    """Makes batches that hold the augmented images, and the captions as texts, for teachers that look on as well.

    Args:
        spec: the choices.
        sides: of the images for the teachers, in pixels.
        tokenizer: texts to ids (B, context length); None for CLIP's own with the text contract.

    Source: MobileCLIP (arXiv 2311.17049), table 4d.
    """

    def __init__(
        self, spec: ReinforcedExampleSpec, *, sides: Sequence[int], tokenizer: TextToIds | None = None
    ) -> None:
        super().__init__(spec, tokenizer=tokenizer)
        self._sides = tuple(sides)
        (student,) = self._augmentations
        self._augmentations = (student, *(_at_side(student, side, stored=spec.reinforced) for side in self._sides))

    def collate(self, examples: Sequence[Example]) -> ReinforcedBatch:
        """Return the batch of several examples."""
        syn = tuple(example.syn_caption for example in examples if example.syn_caption is not None)
        return attrs.evolve(
            super().collate(examples),
            online_images={
                side: stack_pixels([example.images[place] for example in examples])
                for place, side in enumerate(self._sides, start=1)
            },
            captions=tuple(example.caption for example in examples),
            syn_captions=syn or None,
        )


class ColumnExampleMaker(ExampleMaker):
    """Makes examples with some columns of the teachers' embeddings: those of some of the teachers.

    Args:
        spec: the choices.
        columns: the first and the one behind the last.
        tokenizer: texts to ids (B, context length); None for CLIP's own with the text contract.

    Source: MobileCLIP (arXiv 2311.17049), table 2.
    """

    def __init__(
        self, spec: ReinforcedExampleSpec, *, columns: tuple[int, int], tokenizer: TextToIds | None = None
    ) -> None:
        super().__init__(spec, tokenizer=tokenizer)
        self._columns = columns

    def example(self, sample: ImageTextSample, epoch: int) -> Example:
        """Return the example that an epoch makes of a sample.

        Raises:
            BadSampleError: if the sample cannot be used, or has fewer columns.
        """
        example = super().example(sample, epoch)
        return attrs.evolve(
            example,
            teacher_image=self._cut(example.teacher_image),
            teacher_text=self._cut(example.teacher_text),
            teacher_syn_text=self._cut(example.teacher_syn_text),
        )

    def _cut(self, row: Embeddings | None) -> Embeddings | None:
        first, stop = self._columns
        if row is not None and stop > len(row):
            raise BadSampleError(
                "wrong_dim", f"the teacher embeddings have dim {len(row)}, and columns to {stop} are asked for"
            )
        return None if row is None else row[first:stop]


def _at_side(student: AugmentationSpec, side: int, *, stored: bool) -> AugmentationSpec:
    if stored or student.scale_translations:
        return attrs.evolve(student, size=side)
    # Sampled at the student's size, the view is moved by the same fraction at another one.
    return attrs.evolve(student, size=side, scale_translations=True, reference_size=student.size)
