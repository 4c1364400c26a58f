"""A second text tower for the packaged model of icons, in many languages: its texts, its training, its figures."""

from examples.languages.spec import LanguagesSpec
from examples.languages.texts import build_texts

__all__ = ["LanguagesSpec", "build_texts"]
