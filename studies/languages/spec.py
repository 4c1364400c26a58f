"""What is chosen: languages, texts, the tower and its training."""

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
# What it was not taught, and is asked all the same.
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
        raise ValueError(f"{attribute.name} are different ones of {', '.join(LANGUAGES)}; got {', '.join(value)}")


@attrs.frozen(kw_only=True)
class LanguagesSpec:
    """The choices.

    Args:
        output: folder of everything that is made.
        icons: the data set of icons, whose held-out drawings are searched and whose captions say which English words
            the teacher knows.
        languages: which of the known ones, by their codes.
        held_out: fraction of the names of icons that no text has, in any language.
        names: share of the samples that are names of things; the others are keywords and words of forms.
        vocab_size: tokens of the tokenizer.
        texts_per_language: that the tokenizer learns from.
        width: of the tower, a bag of tokens; 24 directions hold all that the teacher says of names.
        context_length: in tokens, the end token included.
        batch_size: texts of a step.
        steps: of a training.
        learning_rate: peak of the cosine schedule.
        num_seeds: trainings that leave held-out names out; one more has all names, and ships.
        words: lines of JSON, `["de", "heart", "Herz"]`, of another dictionary: searched for, and never learned from.

    Raises:
        ValueError: if a number is out of its range, or a language is unknown.
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
