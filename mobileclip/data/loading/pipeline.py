"""From shards to named batches: one stored augmentation, one real and one synthetic caption per sample and epoch."""

from __future__ import annotations

import attrs
from attrs import validators

from mobileclip.data.loading.ablations import ColumnExampleMaker, OnlineExampleMaker
from mobileclip.data.loading.batch import ReinforcedBatch
from mobileclip.data.loading.examples import ExampleMaker, ReinforcedExampleSpec, TextToIds
from mobileclip.data.loading.keeping import Keep
from mobileclip.data.loading.loading import Pipeline
from mobileclip.data.loading.reading import TarReader
from mobileclip.data.loading.spec import PipelineSpec
from mobileclip.data.shards.files import read_reinforced_samples
from mobileclip.data.skips import SkipReport
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.strict import strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcedPipelineSpec(ReinforcedExampleSpec, PipelineSpec):
    """The choices of a pipeline of image-text samples: those of `ReinforcedExampleSpec` and of `PipelineSpec`.

    Args:
        online: sides, in pixels, at which batches hold the same augmented images for teachers that look at them during
            training. Stored augmentations move the image by the pixels that are stored, at any side.
        teacher_columns: which columns of the teachers' embeddings batches hold, the first and the one behind the last:
            those of some of the teachers; None for all.

    Raises:
        ValueError: if a number is out of its range, the augmentation has another size than the image contract, or
            batches are to have online images and some columns alone.

    Examples:
        >>> choices = {"shards": "{000..127}.tar", "batch_size": 512, "image": mobileclip.inputs.ImageInput(size=256)}
        >>> ReinforcedPipelineSpec(**choices).captions, ReinforcedPipelineSpec(**choices, reinforced=False).captions
        ('both', 'real')
    """

    online: tuple[int, ...] = attrs.field(default=(), validator=validators.deep_iterable(validators.gt(0)))
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
        if self.online and self.teacher_columns is not None:
            raise ValueError("teachers that look on say all themselves: give online or teacher_columns, not both")

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
        spec, tokenizer = attrs.evolve(self.spec, teacher_dim=self._teacher_dim()), self._tokenizer
        if spec.online:
            return OnlineExampleMaker(spec, sides=spec.online, tokenizer=tokenizer)
        if spec.teacher_columns is not None:
            return ColumnExampleMaker(spec, columns=spec.teacher_columns, tokenizer=tokenizer)
        return ExampleMaker(spec, tokenizer=tokenizer)

    def _teacher_dim(self) -> int | None:
        if self.spec.reinforced and self._known_dim is None:
            # Workers report what is wrong with the samples before the first usable one.
            unheard = SkipReport(log=False)
            samples = read_reinforced_samples(self.shards, unheard, self.spec.sample_limits)
            self._known_dim = next((sample.dim for sample in samples), None)
        return self._known_dim
