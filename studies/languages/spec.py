"""The settings of the study: languages, texts, the tower and its training."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import validators

from examples.icons import IconDataSpec
from examples.icons.sets import FREE_SETS

# By their codes, each with the script that it is written in.
LANGUAGES = {
    "ar": ("Arabic", "Arabic"),
    "cs": ("Czech", "Latin"),
    "da": ("Danish", "Latin"),
    "de": ("German", "Latin"),
    "el": ("Greek", "Greek"),
    "es": ("Spanish", "Latin"),
    "fi": ("Finnish", "Latin"),
    "fr": ("French", "Latin"),
    "he": ("Hebrew", "Hebrew"),
    "hi": ("Hindi", "Devanagari"),
    "hu": ("Hungarian", "Latin"),
    "id": ("Indonesian", "Latin"),
    "it": ("Italian", "Latin"),
    "ja": ("Japanese", "Kana and Han"),
    "ko": ("Korean", "Hangul"),
    "nb": ("Norwegian", "Latin"),
    "nl": ("Dutch", "Latin"),
    "pl": ("Polish", "Latin"),
    "pt": ("Portuguese", "Latin"),
    "ro": ("Romanian", "Latin"),
    "ru": ("Russian", "Cyrillic"),
    "sv": ("Swedish", "Latin"),
    "th": ("Thai", "Thai"),
    "tr": ("Turkish", "Latin"),
    "uk": ("Ukrainian", "Cyrillic"),
    "vi": ("Vietnamese", "Latin"),
    "zh": ("Chinese", "Han"),
}
# Queries that the tower did not learn.
STRANGERS = {
    "bg": ("Bulgarian", "Cyrillic"),
    "ca": ("Catalan", "Latin"),
    "fa": ("Persian", "Arabic"),
    "hi-Latn": ("Hindi", "Latin"),
    "ka": ("Georgian", "Georgian"),
    "sk": ("Slovak", "Latin"),
    "zh-Hant": ("Chinese", "traditional Han"),
}


def _known(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    unknown = [code for code in value if code not in LANGUAGES]
    if unknown or not value or len(set(value)) != len(value):
        raise ValueError(f"{attribute.name} must be different codes of {', '.join(LANGUAGES)}; got {', '.join(value)}")


@attrs.frozen(kw_only=True)
class LanguagesSpec:
    """The choices.

    Args:
        output: folder for all results.
        icons: data set of icons. The study searches its held-out drawings, and takes the teacher's known English words
            from its captions.
        languages: codes of the languages to use.
        held_out: fraction of the icons' names that the texts leave out in all languages.
        names: share of names of things among the samples; the other samples are keywords and words of forms.
        vocab_size: tokens of the tokenizer.
        texts_per_language: number of texts for training the tokenizer.
        width: width of the tower, a bag of tokens; 24 dimensions hold the teacher's embeddings of names.
        context_length: number of tokens per text, including the end token.
        batch_size: texts of a step.
        steps: number of steps per training.
        learning_rate: peak learning rate of the cosine schedule.
        num_seeds: number of trainings without the held-out names; one more training with all names makes the shipped
            tower.
        words: file of another dictionary with JSON lines, `["de", "heart", "Herz"]`, for searching but not for
            training.

    Raises:
        ValueError: if a number is out of range, or a language is unknown.
    """

    output: Path = Path("outputs/languages")
    icons: IconDataSpec = IconDataSpec(sets=tuple(one.name for one in FREE_SETS))
    languages: tuple[str, ...] = attrs.field(default=tuple(LANGUAGES), validator=_known)
    held_out: float = attrs.field(default=0.15, validator=[validators.gt(0), validators.lt(1)])
    names: float = attrs.field(default=0.75, validator=[validators.gt(0), validators.lt(1)])
    vocab_size: int = attrs.field(default=44_000, validator=validators.ge(300))
    texts_per_language: int = attrs.field(default=6000, validator=validators.gt(0))
    width: int = attrs.field(default=24, validator=validators.gt(0))
    context_length: int = attrs.field(default=16, validator=validators.ge(4))
    batch_size: int = attrs.field(default=1024, validator=validators.gt(0))
    steps: int = attrs.field(default=8000, validator=validators.gt(0))
    learning_rate: float = attrs.field(default=1e-2, validator=validators.gt(0))
    num_seeds: int = attrs.field(default=3, validator=validators.gt(0))
    words: Path | None = None
