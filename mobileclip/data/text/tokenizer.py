"""Texts to ids: CLIP's byte pairs, equal to the release's to the last id and several times as fast, or a file's.

No token crosses white space, so a text is its words one after another, and the ids of a word are looked up, not
computed, whenever it was seen before. New words go through Hugging Face tokenizers. What is kept of them has a budget
in bytes.

What a letter is, is said by the tables of Unicode in tokenizers; for open_clip, by those in regex. A character that
only one of them knows yet as a letter or a digit is cut from its neighbours otherwise.
"""

from __future__ import annotations

import gzip
import itertools
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

import attrs
import numpy as np
import torch

from mobileclip.data.text.tokenizer_file import (
    APOSTROPHES,
    END,
    LAST_SIGMA,
    QUOTES,
    SPLIT,
    START,
    FileTokenizer,
    clean,
    file_tokenizer,
)
from mobileclip.inputs import TextInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import tokenizers


Ids = tuple[int, ...]

# An entry of a dictionary with its share of what is left free, and the garbage collector's head of the ids.
_ENTRY_BYTES = 128
_NUMBER_BYTES = 28
# Longer ones hardly come again.
_MOST_ENTRY_BYTES = 2**12


class TokenCache(dict[str, Ids]):
    """The ids of words: `memory[word]` makes them where they are not known.

    When half of its bytes are full, those that were asked for since are kept, and the others are forgotten the next
    time. It may be used by several threads, which may make the same ids twice.

    Args:
        make: from a word to its ids.
        max_bytes: of all words and ids.
    """

    def __init__(self, make: Callable[[str], Ids], *, max_bytes: int) -> None:
        super().__init__()
        self._make = make
        self._most = max_bytes // 2
        self._num_bytes = 0
        self._before: dict[str, Ids] = {}

    def __missing__(self, word: str) -> Ids:
        """Return the ids of a word that was not asked for lately, and keep them."""
        ids = self._before.get(word)
        if ids is None:
            ids = self._make(word)
        num_bytes = sys.getsizeof(word) + sys.getsizeof(ids) + _NUMBER_BYTES * len(ids) + _ENTRY_BYTES
        if num_bytes > _MOST_ENTRY_BYTES:
            return ids
        if self._num_bytes + num_bytes > self._most:
            self._before = dict(self)
            self.clear()
            self._num_bytes = 0
        self._num_bytes += num_bytes
        self[word] = ids
        return ids


END_OF_WORD = "</w>"

# The pattern `SPLIT` for words of printable ASCII, for an engine that starts faster.
_SPLIT_ASCII = re.compile(rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^a-z0-9]+")

# Of words and of their pieces, for each vocabulary: some 60,000 words.
_MOST_WORD_BYTES, _MOST_PIECE_BYTES = 2**25, 2**24
_NUM_BYTE_TOKENS = 2 * 256
_NUM_SPECIAL_TOKENS = 2


@attrs.frozen
class Tokenizer:
    """Turn texts into the ids that a text tower was trained on.

    `start, byte pairs of the cleaned and lower-cased text, end, padding`; what does not fit is cut before the end.
    Cleaning repairs mojibake, unescapes HTML (twice), collapses white space and unifies quotes and widths.
    Where the contract names a `tokenizer.json`, ids are those that Hugging Face `tokenizers` gives, cut and padded.

    Shape: a text or B texts -> (B, context_length), int64.

    Args:
        text_input: the contract of the model. A vocabulary smaller than CLIP's 49408 keeps its most frequent merges.

    Raises:
        ValueError: if no such vocabulary exists, or the contract's file is no tokenizer that can be used.

    Source: Radford et al. 2021, section 2.4.
    """

    text_input: TextInput = attrs.field(factory=TextInput, validator=attrs.validators.instance_of(TextInput))

    def __attrs_post_init__(self) -> None:
        if self._of_file is not None:
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
        """Number of ids, the start and the end token included."""
        return self.text_input.vocab_size

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Return the ids of one text or of several.

        Shape: B texts -> (B, context_length), int64; one text counts as B = 1.

        Args:
            texts: a text or a sequence of them.
            context_length: here because the release's tokenizer takes it; the contract's own value, or nothing.

        Raises:
            ValueError: if something is not a string, or if `context_length` is not the contract's.
        """
        if context_length not in {None, self.context_length}:
            raise ValueError(
                f"context_length {context_length} was asked for, but the model reads {self.context_length} ids per "
                "text: its text tower sees the padding, and another length gives other embeddings without an error. "
                "Leave it out; for a model trained with another length pass its TextInput to Tokenizer"
            )
        row = self._row if self._of_file is None else self._of_file.row
        rows = [row(text) for text in _checked(texts)]
        return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(len(rows), self.context_length))

    def encode(self, text: str) -> list[int]:
        """Return all ids of a text, however many, without the start token, the end token and padding.

        Raises:
            ValueError: if `text` is not a string.
        """
        (text,) = _checked([text])
        if self._of_file is not None:
            return self._of_file.encode(text)
        word_ids = _word_ids(self.vocab_size)
        return [index for word in clean(text).split() for index in word_ids[word]]

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Return the text of one row of ids: CLIP's cleaned, lower-cased, words and punctuation apart by one space.

        Args:
            ids: (N,), with or without the start token; what follows the first end token is padding.

        Raises:
            ValueError: if an id is not in the vocabulary, or `ids` is not one row.
        """
        row = torch.as_tensor(ids, dtype=torch.int64)
        if row.ndim != 1:
            raise ValueError(f"decode takes the ids of one text, a tensor of shape (N,), not {tuple(row.shape)}")
        inner = []
        for index in row.tolist():
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"id {index} is not in the vocabulary, which has the ids 0 to {self.vocab_size - 1}")
            if index == self.text_input.end_id:
                break
            if index != self.text_input.start_id:
                inner.append(index)
        if self._of_file is not None:
            return self._of_file.decode(inner)
        vocabulary = _vocabulary(self.vocab_size)
        symbols = "".join(vocabulary[index].replace(END_OF_WORD, " ") for index in inner)
        byte_of = {symbol: byte for byte, symbol in _byte_symbols().items()} | {" ": ord(" ")}
        return bytes(byte_of[symbol] for symbol in symbols).decode("utf-8", errors="replace").rstrip(" ")

    def to_json(self) -> str:
        """Return the `tokenizer.json` of Hugging Face `tokenizers`, for phones, browsers and other languages.

        `tokenizers.Tokenizer.from_str` on it gives a tokenizer whose `encode(text).ids` is the whole padded row.
        Differs: CLIP's unifies quotes, case and white space, but repairs no mojibake, entities, ligatures and widths.
        """
        if self._of_file is not None:
            return self._of_file.to_json()
        from tokenizers import AddedToken, Regex, Tokenizer, normalizers, processors

        contract = self.text_input
        whole = Tokenizer.from_str(_backend(contract.vocab_size).to_str())
        whole.add_special_tokens([AddedToken(token, special=True, normalized=True) for token in (START, END)])
        whole.normalizer = normalizers.Sequence(
            [
                normalizers.NFC(),
                normalizers.Replace(Regex(APOSTROPHES), "'"),
                normalizers.Replace(Regex(QUOTES), '"'),
                # Lowercase sees single characters, and a sigma at the end of a word is another one.
                normalizers.Replace(Regex(LAST_SIGMA), "ς"),
                normalizers.Lowercase(),
            ]
        )
        whole.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}", special_tokens=[(START, contract.vocab_size - 2), (END, contract.end_id)]
        )
        whole.enable_truncation(contract.context_length)
        pad_token = _vocabulary(contract.vocab_size)[contract.pad_id]
        whole.enable_padding(length=contract.context_length, pad_id=contract.pad_id, pad_token=pad_token)
        return whole.to_str()

    @property
    def _of_file(self) -> FileTokenizer | None:
        return None if self.text_input.tokenizer is None else file_tokenizer(self.text_input)

    def _row(self, text: str) -> list[int]:
        contract, room = self.text_input, self.text_input.context_length - 2
        word_ids = _word_ids(contract.vocab_size)
        ids: list[int] = []
        for word in clean(text).split():
            ids += word_ids[word]
            if len(ids) >= room:
                del ids[room:]
                break
        return [contract.vocab_size - 2, *ids, contract.end_id] + [contract.pad_id] * (room - len(ids))


def _checked(texts: str | Iterable[object]) -> list[str]:
    """Return the texts as a list, or raise what a person can act on."""
    if isinstance(texts, str):
        return [texts]
    try:
        items = list(texts)
    except TypeError:
        raise ValueError(f"expected a text or a sequence of texts, got {type(texts).__name__}: {texts!r:.60}") from None
    checked = [text for text in items if isinstance(text, str)]
    if len(checked) < len(items):
        position, item = next((i, item) for i, item in enumerate(items) if not isinstance(item, str))
        raise ValueError(
            f"text {position} is not a string but {type(item).__name__} ({item!r:.60}); decode bytes, and leave "
            "missing captions out or replace them by an empty string"
        )
    return checked


@lru_cache(maxsize=1)
def _byte_symbols() -> dict[int, str]:
    """Byte -> the printable character that stands for it, in the order of their ids.

    Bytes that Latin-1 prints are themselves; the others take the characters from U+0100 on.
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte not in {0x20, 0xA0, 0xAD}]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@lru_cache(maxsize=1)
def _merges() -> list[tuple[str, str]]:
    """Return all merges that CLIP uses, the most frequent first; the published file has a header and many more."""
    path = resources.files("mobileclip.data.text") / "vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
    num_merges = TextInput().vocab_size - _NUM_BYTE_TOKENS - _NUM_SPECIAL_TOKENS
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : num_merges + 1]
    return [(first, second) for first, second in map(str.split, lines)]


@lru_cache(maxsize=4)
def _vocabulary(vocab_size: int) -> list[str]:
    """Id -> token: bytes, bytes that end a word, merges, start and end."""
    symbols = list(_byte_symbols().values())
    merged = [first + second for first, second in _merges()[: vocab_size - _NUM_BYTE_TOKENS - _NUM_SPECIAL_TOKENS]]
    return [*symbols, *(symbol + END_OF_WORD for symbol in symbols), *merged, START, END]


@lru_cache(maxsize=4)
def _backend(vocab_size: int) -> tokenizers.Tokenizer:
    """Build the pattern that splits words into pieces and the byte-pair model of the pieces."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(_vocabulary(vocab_size))}
    merges = _merges()[: vocab_size - _NUM_BYTE_TOKENS - _NUM_SPECIAL_TOKENS]
    # Without a memory of its own: whoever asks it has one.
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, cache_capacity=0, end_of_word_suffix=END_OF_WORD))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


@lru_cache(maxsize=4)
def _word_ids(vocab_size: int) -> TokenCache:
    """Return the memory from a cleaned word to its ids."""
    backend = _backend(vocab_size)
    split, model = backend.pre_tokenizer, backend.model
    special = {START: (vocab_size - 2,), END: (vocab_size - 1,)}

    def pieces_of(word: str) -> list[str]:
        if word.isascii() and word.isprintable():
            return _SPLIT_ASCII.findall(word)
        return [piece for piece, _ in split.pre_tokenize_str(word)]

    def ids_of(piece: str) -> Ids:
        return special.get(piece) or tuple(token.id for token in model.tokenize(piece))

    pieces = TokenCache(ids_of, max_bytes=_MOST_PIECE_BYTES)
    return TokenCache(
        lambda word: tuple(itertools.chain.from_iterable(map(pieces.__getitem__, pieces_of(word)))),
        max_bytes=_MOST_WORD_BYTES,
    )
