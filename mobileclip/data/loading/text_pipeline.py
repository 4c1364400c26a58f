"""Batches of stored texts; the texts of a step depend only on the spec and the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import attrs
import numpy as np
from attrs import validators

from mobileclip.data.loading.batch import TextBatch
from mobileclip.data.loading.order import StreamPosition
from mobileclip.data.randomness import seeded_rng
from mobileclip.data.skips import Skip
from mobileclip.data.text.stored import StoredTexts, TextsCard
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.inputs import TextInput
from mobileclip.processes import this_process
from mobileclip.strict import strict

_TEXTS_AT_ONCE = 4096


@attrs.frozen(kw_only=True, field_transformer=strict)
class TextPipelineSpec:
    """Options of a pipeline of texts with teacher embeddings.

    Args:
        texts: folder of stored texts, see `mobileclip.reinforce.reinforce_texts`.
        batch_size: number of texts per step. In a training run, the processes share this number; a pipeline used
            directly yields this number in every process.
        text: the student's `TextInput`: tokenizer, vocabulary size and context length.
        shares: relative share of each language in every batch, such as `{"de": 2, "fr": 1}`; batches contain no other
            languages. None uses all texts equally often.
        seed: seed of the order.

    Raises:
        ValueError: if `batch_size` or a share is not positive.

    Examples:
        >>> TextPipelineSpec(texts="texts", batch_size=256, text=mobileclip.inputs.TextInput(context_length=16)).seed
        0
    """

    texts: Path = attrs.field(converter=Path)
    batch_size: int = attrs.field(validator=validators.gt(0))
    text: TextInput
    shares: Mapping[str, float] | None = None
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        """Check that every share is positive."""
        wrong = [name for name, share in (self.shares or {}).items() if not share > 0]
        if wrong:
            raise ValueError(f"shares must be above 0; omit {', '.join(map(repr, wrong))}")

    def build(self) -> TextPipeline:
        """Return the pipeline.

        Raises:
            FileNotFoundError: if the folder of stored texts does not exist, or is incomplete.
            ValueError: if the stored texts are damaged, or a language in `shares` has no texts.
        """
        return TextPipeline(self)


class TextPipeline:
    """An endless stream of text batches, divided among the processes.

    Each language is shuffled separately, and reshuffled in every pass. Languages are mixed so that the number of
    texts of each language always stays within about one text of the language's share.

    Args:
        spec: options of the pipeline.

    Raises:
        FileNotFoundError: if the folder of stored texts does not exist, or is incomplete.
        ValueError: if the stored texts are damaged, or a language in `shares` has no texts.
    """

    def __init__(self, spec: TextPipelineSpec) -> None:
        self.spec = spec
        self.texts = StoredTexts(spec.texts)
        self._tokenizer = Tokenizer(spec.text)
        self._place = this_process()
        shares = self._shares(self.texts.card)
        self._languages = [self.texts.by_language[name] for name in shares]
        self._weights = np.array(list(shares.values())) / sum(shares.values())
        self._permutation = lru_cache(maxsize=2 * len(shares))(self._drawn)

    def _shares(self, card: TextsCard) -> dict[str, float]:
        if not self.spec.shares:
            return {name: float(count) for name, count in card.languages.items()}
        unknown = [name for name in self.spec.shares if name not in card.languages]
        if unknown:
            raise ValueError(
                f"shares name {', '.join(map(repr, unknown))}, but {self.texts.folder} has texts of "
                f"{', '.join(map(repr, card.languages))}"
            )
        return dict(self.spec.shares)

    @property
    def space(self) -> str:
        """JSON that identifies the model of the embedding space; empty if unknown."""
        return self.texts.card.space

    def seen_texts(self) -> Iterator[str]:
        """Yield every text that batches may contain, once."""
        for numbers in self._languages:
            for start in range(0, len(numbers), _TEXTS_AT_ONCE):
                yield from self.texts.at(numbers[start : start + _TEXTS_AT_ONCE].tolist())[0]

    def stream(self, position: StreamPosition) -> Iterator[TextBatch]:
        """Yield this process's share of the batches from a position.

        Raises:
            ValueError: if the position was saved with different texts.
        """
        if position.data and position.data != self.texts.card.digest:
            raise ValueError(
                f"the checkpoint was not trained on the texts in {self.texts.folder}; use the texts of the "
                "checkpoint, or a new output folder"
            )
        step = position.first_batch
        while True:
            yield self.batch(step)
            step += 1

    def position(self, num_batches: int) -> StreamPosition:
        """Return the position after the first `num_batches` batches."""
        return StreamPosition(first_batch=num_batches, data=self.texts.card.digest)

    def take_skips(self, num_batches: int) -> Sequence[Skip]:
        """Return an empty sequence, because no stored text is skipped."""
        del num_batches
        return ()

    def batch(self, step: int) -> TextBatch:
        """Return this process's share of the batch of a step."""
        whole = self.spec.batch_size * self._place.size
        numbers = self._numbers(step * whole, (step + 1) * whole)[self._place.rank :: self._place.size]
        texts, teacher = self.texts.at(numbers.tolist())
        keys = tuple(str(number) for number in numbers)
        return TextBatch(keys=keys, text=self._tokenizer(texts), teacher_text=teacher)

    def _numbers(self, start: int, stop: int) -> np.ndarray:
        """Return the shuffled text indices of the run's samples `start` to `stop`."""
        found = [
            self._of_language(language, int(first), int(last))
            for language, (first, last) in enumerate(
                zip(counts_after(start, self._weights), counts_after(stop, self._weights), strict=True)
            )
        ]
        numbers = np.concatenate(found)
        return numbers[np.argsort(seeded_rng(self.spec.seed, "mix", start).random(len(numbers)), kind="stable")]

    def _of_language(self, language: int, first: int, last: int) -> np.ndarray:
        own = self._languages[language]
        turns = np.arange(first, last)
        return np.array([own[self._permutation(language, turn // len(own))[turn % len(own)]] for turn in turns], int)

    def _drawn(self, language: int, epoch: int) -> np.ndarray:
        rng = seeded_rng(self.spec.seed, "texts", language, epoch)
        return np.argsort(rng.random(len(self._languages[language])), kind="stable")


def counts_after(num_samples: int, shares: np.ndarray) -> np.ndarray:
    """Return the number of samples of each kind among the first `num_samples`.

    Sample `i` of a kind is due at position `(i + 1/2) / share`. The count of every kind stays within about one of
    `num_samples * share`, and never decreases as `num_samples` grows.

    Shape: shares (K,), which sum to 1 -> (K,) int64, which sum to `num_samples`.
    """
    counts = np.floor(num_samples * shares + 0.5).astype(np.int64)
    while (excess := int(counts.sum()) - num_samples) != 0:
        if excess > 0:
            last = np.where(counts > 0, (counts - 0.5) / shares, -np.inf)
            counts[len(shares) - 1 - int(last[::-1].argmax())] -= 1
        else:
            counts[int(((counts + 0.5) / shares).argmin())] += 1
    return counts
