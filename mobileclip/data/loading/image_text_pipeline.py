"""The pipeline of image-text samples, optionally with teacher embeddings or images for online teachers.

`mobileclip.data.loading.examples` chooses each sample's captions and its stored augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import attrs

from mobileclip.data.loading.batch import ReinforcedBatch
from mobileclip.data.loading.examples import ExampleMaker, ReinforcedExampleSpec, TextToIds
from mobileclip.data.loading.pipeline import Pipeline, PipelineSpec
from mobileclip.data.loading.reading import TarReader
from mobileclip.data.loading.uids import Keep
from mobileclip.data.shards.files import expand_shards, parse, read_reinforced_samples, read_shard
from mobileclip.data.shards.sidecars import ReinforcementCard, card_of_shards
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.strict import strict

_SAMPLES_LOOKED_AT, _SHARDS_LOOKED_AT = 64, 8
_LACKING = frozenset(("missing_member", "no_caption", "no_syn_caption", "no_image"))


@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcedPipelineSpec(ReinforcedExampleSpec, PipelineSpec):
    """Options of an image-text pipeline: all options of `ReinforcedExampleSpec` and `PipelineSpec`.

    Examples:
        >>> choices = {"shards": "{000..127}.tar", "batch_size": 512, "image": mobileclip.inputs.ImageInput(size=256)}
        >>> ReinforcedPipelineSpec(**choices).captions, ReinforcedPipelineSpec(**choices, reinforced=False).captions
        ('both', 'real')
    """

    @property
    def card(self) -> ReinforcementCard | None:
        """Card of the reinforced shards, restricted to the teachers in `teacher_columns`; None if there is no card."""
        card = card_of_shards(expand_shards(self.shards)) if self.reinforced and self.shards else None
        return card if card is None or self.teacher_columns is None else card.in_columns(self.teacher_columns)

    def lacking_samples(self) -> tuple[Sequence[Skip], Sequence[str]]:
        """Return the skips and the member extensions of the first samples, if all of these samples are incomplete.

        The function reads at most 64 samples in total, from up to eight shards. If a sample is usable, or has a problem
        other than a missing member, image or caption, both sequences are empty, because later samples may be usable.
        """
        shards = expand_shards(self.shards)
        looked_at = shards[:: -(-len(shards) // _SHARDS_LOOKED_AT)]
        maker, skips, members = ExampleMaker(self), list[Skip](), set[str]()
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
            tokenizer: function from texts to token ids (B, context length); None uses the tokenizer of `text`.
            keep: function that selects the samples to use; see `Pipeline`.
        """
        return ReinforcedPipeline(self, tokenizer=Tokenizer(self.text) if tokenizer is None else tokenizer, keep=keep)


class ReinforcedPipeline(Pipeline[ReinforcedBatch]):
    """A pipeline of image-text samples.

    Args:
        spec: options of the pipeline.
        tokenizer: function from texts to token ids (B, context length).
        keep: function that selects the samples to use; see `Pipeline`.

    Raises:
        ValueError: if the patterns match no shard, or none of the matching shards exists.
    """

    spec: ReinforcedPipelineSpec

    def __init__(self, spec: ReinforcedPipelineSpec, *, tokenizer: TextToIds, keep: Keep | None = None) -> None:
        super().__init__(spec, reader=TarReader.of(spec.shards, spec.file_cache), keep=keep)
        self._tokenizer = tokenizer
        self._known_dim = spec.teacher_dim

    def _maker(self) -> ExampleMaker:
        return ExampleMaker(attrs.evolve(self.spec, teacher_dim=self._teacher_dim()), tokenizer=self._tokenizer)

    def _teacher_dim(self) -> int | None:
        if self.spec.reinforced and self._known_dim is None:
            # Workers report the problems of the samples before the first usable sample.
            unheard = SkipReport(log=False)
            samples = read_reinforced_samples(self.shards, unheard, self.spec.sample_limits)
            self._known_dim = next((sample.dim for sample in samples), None)
        return self._known_dim
