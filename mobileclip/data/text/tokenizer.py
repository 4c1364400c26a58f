"""Tokenizer for CLIP's byte pairs (the ids of the release, several times faster) or for a tokenizer file.

No token spans white space, so the ids of a text are the ids of its words. A bounded cache holds the ids of known words;
the Hugging Face `tokenizers` library encodes new words.

`tokenizers` and open_clip (through `regex`) use different Unicode tables, so the two libraries split differently at a
character that is a letter or digit in only one of the tables.
"""

from __future__ import annotations

import gzip
import itertools
import re
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch

from mobileclip.data.text import tokenizer_file as files
from mobileclip.data.text.tokenizer_file import END, SPLIT, START, clean
from mobileclip.inputs import TextInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import tokenizers

END_OF_WORD = "</w>"
_NUM_BYTE_TOKENS = 2 * 256
_NUM_SPECIAL_TOKENS = 2
# Limits of the cache of word ids of each vocabulary; long words rarely recur, so they are not cached.
_MOST_WORDS, _LONGEST_WORD, _MOST_IDS = 1 << 16, 32, 16
# Text that would be truncated anyway is not read, because normalising may lengthen a text a thousandfold.
_MOST_CHARACTERS, _CHARACTERS_PER_ID = 1 << 16, 8


@attrs.frozen
class Tokenizer:
    """Convert texts to the token ids of a text tower.

    The ids are `start, byte pairs of the cleaned and lower-cased text, end, padding`; a text that is too long loses its
    last byte pairs, not the end token. Cleaning repairs mojibake, unescapes HTML (twice), collapses white space and
    unifies quotes and widths. If `text_input` has a `tokenizer.json`, Hugging Face `tokenizers` computes the ids, which
    are then truncated and padded.

    Shape: a text or B texts -> (B, context_length), int64.

    Args:
        text_input: context length, vocabulary size, special ids and tokenizer file of the model. A vocabulary smaller
            than CLIP's 49408 ids keeps the most frequent merges.

    Raises:
        ValueError: if `vocab_size` or `pad_id` of `text_input` is out of range, or the tokenizer file is unusable.

    Source: Radford et al. 2021, section 2.4.
    """

    text_input: TextInput = attrs.field(factory=TextInput, validator=attrs.validators.instance_of(TextInput))

    def __attrs_post_init__(self) -> None:
        if self.text_input.tokenizer is not None:
            files.file_tokenizer(self.text_input)
            return
        least, most = _NUM_BYTE_TOKENS + _NUM_SPECIAL_TOKENS, TextInput().vocab_size
        if not least <= self.vocab_size <= most:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but the byte-pair vocabulary has between {least} (no merges) and "
                f"{most} ids; choose a number in that range"
            )
        if self.text_input.pad_id >= self.vocab_size:
            raise ValueError(f"pad_id {self.text_input.pad_id} is not in a vocabulary of {self.vocab_size} ids")

    @property
    def context_length(self) -> int:
        """Number of ids per text."""
        return self.text_input.context_length

    @property
    def vocab_size(self) -> int:
        """Number of ids in the vocabulary, including the start and end tokens."""
        return self.text_input.vocab_size

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Return the ids of one text or several texts.

        Shape: B texts -> (B, context_length), int64; one text counts as B = 1.

        Args:
            texts: a text or a sequence of texts.
            context_length: None or the context length of `text_input`; the argument exists only for compatibility with
                the release's tokenizer.

        Raises:
            ValueError: if a text is not a string, or `context_length` differs from that of `text_input`.
        """
        if context_length not in {None, self.context_length}:
            raise ValueError(
                f"context_length {context_length} differs from the model's {self.context_length} ids per text: "
                "the text tower attends to padding, so a different length silently changes embeddings. Omit "
                "context_length; for a model trained with another length, pass the model's TextInput to Tokenizer"
            )
        own = self._own
        rows = [self._row(own, text) for text in _checked(texts)]
        return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(len(rows), self.context_length))

    def encode(self, text: str) -> list[int]:
        """Return all ids of a text, without truncation, start and end tokens or padding.

        Raises:
            ValueError: if `text` is not a string.
        """
        (text,) = _checked([text])
        return self._ids(self._own, text)

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Return the text of one row of ids; CLIP's tokenizer gives lower case, with spaces around punctuation.

        Args:
            ids: (N,), with or without the start token; ids after the first end token are padding.

        Raises:
            ValueError: if an id is not in the vocabulary, or `ids` is not one row.
        """
        row = torch.as_tensor(ids, dtype=torch.int64)
        if row.ndim != 1:
            raise ValueError(f"decode expects the ids of one text, a tensor of shape (N,), not {tuple(row.shape)}")
        inner = []
        for index in row.tolist():
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"id {index} is not in the vocabulary, which has the ids 0 to {self.vocab_size - 1}")
            if index == self.text_input.end_id:
                break
            if index != self.text_input.start_id:
                inner.append(index)
        return self._own.decode(inner)

    def to_json(self) -> str:
        """Return the `tokenizer.json` of Hugging Face `tokenizers`, for phones, browsers and programs without Python.

        `tokenizers.Tokenizer.from_str` returns a tokenizer whose `encode(text).ids` is the complete padded row.
        Differs: for CLIP's tokenizer, the file unifies quotes, case and white space, but does not repair mojibake,
        entities, ligatures and widths.
        """
        from tokenizers import Tokenizer

        contract, own = self.text_input, self._own
        whole = Tokenizer.from_str(own.backend.to_str())
        if isinstance(own, _BytePairs):
            own.complete(whole)
        whole.enable_truncation(contract.context_length)
        pad_token = whole.id_to_token(contract.pad_id) or ""
        whole.enable_padding(length=contract.context_length, pad_id=contract.pad_id, pad_token=pad_token)
        return whole.to_str()

    @property
    def _own(self) -> _BytePairs | files.FileTokenizer:
        is_clip = self.text_input.tokenizer is None
        return _byte_pairs(self.vocab_size) if is_clip else files.file_tokenizer(self.text_input)

    def _ids(self, own: _BytePairs | files.FileTokenizer, text: str, most: int | None = None) -> list[int]:
        """Return the ids of a text; the function may stop after `most` ids."""
        if isinstance(own, _BytePairs):
            return own.encode(clean(text), most)
        file = self.text_input.tokenizer
        assert file is not None, "CLIP's tokenizer is a _BytePairs"
        text = text if most is None else text[: max(_MOST_CHARACTERS, _CHARACTERS_PER_ID * most)]
        return own.encode(files.repaired(text) if file.repair else text)

    def _row(self, own: _BytePairs | files.FileTokenizer, text: str) -> list[int]:
        contract = self.text_input
        start = [] if contract.start_id is None else [contract.start_id]
        room = contract.context_length - len(start) - 1
        ids = self._ids(own, text, room)[:room]
        return [*start, *ids, contract.end_id] + [contract.pad_id] * (room - len(ids))


def _checked(texts: str | Iterable[object]) -> list[str]:
    """Return the texts as a list; raise an error if an item is not a string."""
    if isinstance(texts, str):
        return [texts]
    try:
        items: list[Any] = list(texts)
    except TypeError:
        raise ValueError(f"expected a text or a sequence of texts, got {type(texts).__name__}: {texts!r:.60}") from None
    for position, item in enumerate(items):
        if not isinstance(item, str):
            raise ValueError(
                f"text {position} is not a string but {type(item).__name__} ({item!r:.60}); decode bytes, and "
                "omit missing captions or replace them with an empty string"
            )
    return items


@lru_cache(maxsize=1)
def _byte_symbols() -> dict[int, str]:
    """Map each byte to its printable character, in the order of ids.

    A byte with a printable Latin-1 character keeps the character; the other bytes take the characters from U+0100.
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte not in {0x20, 0xA0, 0xAD}]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@lru_cache(maxsize=1)
def _bytes_by_symbol() -> dict[str, int]:
    return {symbol: byte for byte, symbol in _byte_symbols().items()} | {" ": ord(" ")}


@lru_cache(maxsize=1)
def _merges() -> list[tuple[str, str]]:
    """Return CLIP's merges, the most frequent first; the published file also has a header and unused merges."""
    path = resources.files("mobileclip.data.text") / "vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
    num_merges = TextInput().vocab_size - _NUM_BYTE_TOKENS - _NUM_SPECIAL_TOKENS
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : num_merges + 1]
    return [(first, second) for first, second in map(str.split, lines)]


@lru_cache(maxsize=4)
def _vocabulary(vocab_size: int) -> list[str]:
    """Return the tokens by id: bytes, bytes that end a word, merges, start and end."""
    symbols = list(_byte_symbols().values())
    merged = [first + second for first, second in _merges()[: vocab_size - _NUM_BYTE_TOKENS - _NUM_SPECIAL_TOKENS]]
    return [*symbols, *(symbol + END_OF_WORD for symbol in symbols), *merged, START, END]


class _Kept(dict[str, "tuple[int, ...]"]):
    """A cache of the ids of words, cleared when full.

    The cache is thread-safe; two threads may compute the same ids.

    Args:
        make: function from a word to its ids.
    """

    def __init__(self, make: Callable[[str], tuple[int, ...]]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = self._make(word)
        if len(word) <= _LONGEST_WORD and len(ids) <= _MOST_IDS:
            if len(self) >= _MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


class _BytePairs:
    """Backend for CLIP's byte-pair encoding.

    Args:
        vocab_size: number of ids.
    """

    # The pattern `SPLIT` for words of printable ASCII, for an engine that starts faster.
    _split_ascii = re.compile(rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^a-z0-9]+")

    def __init__(self, vocab_size: int) -> None:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        self._words, self._pieces = _Kept(self._of_word), _Kept(self._of_piece)
        self._symbols = _vocabulary(vocab_size)
        vocabulary = {token: index for index, token in enumerate(self._symbols)}
        merges = _merges()[: vocab_size - _NUM_BYTE_TOKENS - _NUM_SPECIAL_TOKENS]
        # The backend's own cache is off, because this class caches words.
        model = models.BPE(vocab=vocabulary, merges=merges, cache_capacity=0, end_of_word_suffix=END_OF_WORD)
        self.backend = Tokenizer(model)
        self.backend.pre_tokenizer = self._split = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._model = self.backend.model
        self._special = {START: (vocab_size - 2,), END: (vocab_size - 1,)}

    def _of_word(self, word: str) -> tuple[int, ...]:
        if word.isascii() and word.isprintable():
            pieces = self._split_ascii.findall(word)
        else:
            pieces = [piece for piece, _ in self._split.pre_tokenize_str(word)]
        return tuple(itertools.chain.from_iterable(map(self._pieces.__getitem__, pieces)))

    def _of_piece(self, piece: str) -> tuple[int, ...]:
        return self._special.get(piece) or tuple(token.id for token in self._model.tokenize(piece))

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """Return the ids of a cleaned text; the function stops reading words after `most` ids."""
        ids: list[int] = []
        for word in text.split():
            ids += self._words[word]
            if most is not None and len(ids) >= most:
                break
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to a text."""
        symbols = "".join(self._symbols[index].replace(END_OF_WORD, " ") for index in ids)
        return bytes(map(_bytes_by_symbol().__getitem__, symbols)).decode("utf-8", errors="replace").rstrip(" ")

    def complete(self, whole: tokenizers.Tokenizer) -> None:
        """Add text cleaning, as far as possible, and the special tokens to a Hugging Face tokenizer."""
        from tokenizers import AddedToken, Regex, normalizers, processors

        whole.add_special_tokens([AddedToken(token, special=True, normalized=True) for token in (START, END)])
        # `Lowercase` handles single characters, but a sigma at the end of a word has its own lower-case form.
        replaced = {files.APOSTROPHES: "'", files.QUOTES: '"', files.LAST_SIGMA: "ς"}
        steps = [normalizers.Replace(Regex(pattern), text) for pattern, text in replaced.items()]
        whole.normalizer = normalizers.Sequence([normalizers.NFC(), *steps, normalizers.Lowercase()])
        special = [(token, index) for token, (index,) in self._special.items()]
        whole.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=special)


_byte_pairs = lru_cache(maxsize=4)(_BytePairs)
