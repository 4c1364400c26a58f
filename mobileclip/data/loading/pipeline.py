"""From shards to named batches: one stored augmentation, one real and one synthetic caption per sample and epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from attrs import validators
from torch import Tensor

from mobileclip.data.loading.batch import ReinforcedBatch
from mobileclip.data.loading.examples import CAPTIONS, Captions, ExampleMaker
from mobileclip.data.loading.loading import Pipeline, PipelineSpec
from mobileclip.data.loading.order import TarReader
from mobileclip.data.shards.files import read_reinforced_samples
from mobileclip.data.skips import SkipReport
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.inputs import TextInput
from mobileclip.strict import strict

TextToIds = Callable[[Sequence[str]], Tensor]


def _default_captions(spec: ReinforcedPipelineSpec) -> Captions:
    return "both" if spec.reinforced else "real"


@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcedPipelineSpec(PipelineSpec):
    """The choices of a pipeline of image-text samples, with what teachers said about them or without.

    Args:
        text: the student's text contract.
        reinforced: whether to read what the teachers said; without, augmentations are sampled afresh and batches hold
            images and captions alone.
        captions: which captions `text` holds: `real`, `synthetic`, or `either`, drawn for every sample; with `both`,
            the default where samples are reinforced, `text` has a real and `syn_text` a synthetic one. A sample that
            has no synthetic caption is skipped by `synthetic` and `both`, and taken with a real one by `either`.
        online: sides, in pixels, at which batches hold the same augmented images for teachers that look at them during
            training. Stored augmentations move the image by the pixels that are stored, at any side.
        teacher_dim: dim of the concatenated teacher embeddings; None for that of the first usable sample.
        teacher_columns: which of their columns batches hold, the first and the one behind the last: those of some of
            the teachers; None for all.

    Raises:
        ValueError: if a number is out of its range, or the augmentation has another size than the image contract.

    Examples:
        >>> choices = {"shards": "{000..127}.tar", "batch_size": 512, "image": mobileclip.inputs.ImageInput(size=256)}
        >>> ReinforcedPipelineSpec(**choices).captions, ReinforcedPipelineSpec(**choices, reinforced=False).captions
        ('both', 'real')
    """

    text: TextInput = attrs.field(factory=TextInput)
    reinforced: bool = True
    captions: Captions = attrs.field(
        default=attrs.Factory(_default_captions, takes_self=True), validator=validators.in_(CAPTIONS)
    )
    online: tuple[int, ...] = attrs.field(default=(), validator=validators.deep_iterable(validators.gt(0)))
    teacher_dim: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    teacher_columns: tuple[int, int] | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.teacher_columns is not None and not 0 <= self.teacher_columns[0] < self.teacher_columns[1]:
            raise ValueError(
                f"teacher_columns are the first column and the one behind the last, such as (0, 768), not "
                f"{self.teacher_columns}"
            )
        if len(set(self.online)) < len(self.online):
            raise ValueError(f"online names a side twice: {self.online}; batches hold one image of every side")

    def build(self, *, tokenizer: TextToIds | None = None) -> ReinforcedPipeline:
        """Return the pipeline.

        Args:
            tokenizer: texts to ids (B, context length); None for CLIP's own with the text contract.
        """
        return ReinforcedPipeline(self, tokenizer=Tokenizer(self.text) if tokenizer is None else tokenizer)


class ReinforcedPipeline(Pipeline[ReinforcedBatch]):
    """The pipeline of image-text samples.

    Args:
        spec: the choices.
        tokenizer: texts to ids (B, context length).

    Raises:
        ValueError: if the patterns name no shard, none of the local ones exists, or there are fewer than processes.
    """

    spec: ReinforcedPipelineSpec

    def __init__(self, spec: ReinforcedPipelineSpec, *, tokenizer: TextToIds) -> None:
        super().__init__(spec, reader=TarReader.of(spec.shards))
        self._tokenizer = tokenizer
        self._known_dim = spec.teacher_dim

    def _maker(self) -> ExampleMaker:
        return ExampleMaker(self.spec, tokenizer=self._tokenizer, teacher_dim=self._teacher_dim())

    def _teacher_dim(self) -> int | None:
        if self.spec.reinforced and self._known_dim is None:
            # Workers report what is wrong with the samples before the first usable one.
            unheard = SkipReport(log=False)
            samples = read_reinforced_samples(self.shards, unheard, self.spec.sample_limits)
            self._known_dim = next((sample.dim for sample in samples), None)
        return self._known_dim
