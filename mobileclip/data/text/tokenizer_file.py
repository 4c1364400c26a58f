"""CLIP's text cleaning, and `tokenizer.json` files of Hugging Face `tokenizers`: safe reading, use and training.

This module rejects files that make `tokenizers` hang or exhaust memory, leaves all other checks to `tokenizers`, and
converts the errors and panics of `tokenizers` to ValueErrors. On otherwise valid files of up to 32 MiB, `tokenizers`
0.22:

- hangs on regular expressions with catastrophic backtracking, on hundreds of thousands of components, added tokens or
  long words, on words of any length in a WordPiece model, on Unigram tokens of thousands of letters, and on long
  prefixes of byte pairs;
- allocates gigabytes and crashes on texts that grow (replacements longer than their patterns, repeated byte-level
  steps, long prefixes, tables with long texts, added tokens of megabytes), and on a normaliser's table that declares
  more bytes than the table has.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from mobileclip.inputs import MAX_TOKENIZER_BYTES, TextInput, TokenizerFile, tokenizer_sha256
from mobileclip.machine import raise_machine_fault
from mobileclip.storage import AnyPath, printable, read_bytes, without_secrets
from mobileclip.strict import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.trainers import Trainer


# Patterns of texts that repairing can change. An entity has a name or a number after the ampersand. Mojibake has two
# adjacent unusual characters. A single accented letter, dash or quote between ASCII characters is not mojibake (except
# for a few letters, which are left out here), and neither are runs in scripts outside the Western encodings.
_ENTITY = re.compile(r"&[#0-9A-Za-z]")
_ALONE = "ÀÁÄ-ÏÑ-ÖØ-Ýß-ïñ-öø-ýÿ–—‘’“”"
_RUNS = "А-яぁ-んァ-ヴー、。一-\u9fff가-힣\U0001f300-\U0001faff"
_SUSPECT = re.compile(f"[^ -~{_ALONE}{_RUNS}]|(?<![ -~])(?<!^)[{_ALONE}]|[{_ALONE}](?![ -~]|$)")
_STRAIGHT_QUOTES = (("‘", "'"), ("’", "'"), ("“", '"'), ("”", '"'))


def clean(text: str) -> str:
    """Return a text prepared for CLIP's byte pairs: repaired and in lower case."""
    return repaired(text).lower()


def repaired(text: str) -> str:
    """Return the text repaired by ftfy, with HTML entities unescaped (twice).

    The function calls the slow ftfy only for texts that ftfy or unescaping may change.
    """
    if not text.isprintable() or ("&" in text and _ENTITY.search(text)):
        return _repair(text)
    if not text.isascii():
        if _SUSPECT.search(text):
            return _repair(text)
        for curly, straight in _STRAIGHT_QUOTES:
            text = text.replace(curly, straight)
    return text


def _repair(text: str) -> str:
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text)))


START, END = "<start_of_text>", "<end_of_text>"

# CLIP's published pattern ignores case in the property classes too. It therefore drops combining iota below (U+0345),
# the only mark whose upper case is a letter.
SPLIT = START + "|" + END + r"|(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
APOSTROPHES, QUOTES, LAST_SIGMA = r"[\x{2bc}\x{2018}-\x{201b}]", r"[\x{201c}-\x{201f}]", r"(?<=\p{L})Σ(?!\p{L})"

PUNCTUATION = r"[!-/:-@\[-`{-~]"

PATTERNS = frozenset(
    {
        PUNCTUATION,
        # CLIP's byte pairs as this library writes them.
        SPLIT,
        APOSTROPHES,
        QUOTES,
        LAST_SIGMA,
        r"\s+",
        r"\s{2,}",
        r" {2,}",
        r"\s{2,}|[\n\r\t]",
        # GPT-2, CLIP, GPT-4 and Llama 3, Qwen 2.
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        *(
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            for digits in (r"\p{N}{1,3}", r"\p{N}")
        ),
    }
)
"""Regular expressions of published tokenizers; each matches at least one character, in time linear in the text."""

_MAX_TOKENS, _MAX_CHARACTERS, _MAX_ADDED = 1 << 19, 1 << 23, 1 << 14
_MAX_TEXT, _MAX_WORD, _MAX_PARTS, _LONGEST_MAPPED = 512, 1000, 16, 64
# Each list or object becomes a Python object, which takes about twenty times the memory and time of the text.
_MAX_CONTAINERS = 600_000
# Components that cannot lengthen a text; every other kind of component may occur only once.
_REPEATABLE = ("Replace", "Sequence", "Split", "Strip", "CharDelimiterSplit")
_CHARSMAP = "precompiled_charsmap"
_SHOWN = 60


def check_parts(value: Any) -> None:
    """Raise if a parsed `tokenizer.json` could make `tokenizers` hang or exhaust memory.

    Args:
        value: parsed JSON from `parse_json`.

    Raises:
        ValueError: if the file lacks a model, or has random dropout, an unknown regular expression, a component that
            lengthens texts without bound, too many components, or a component that is too large.
    """
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, dict):
        raise ValueError("the file contains no model")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        vocabulary = [entry[0] for entry in vocabulary if isinstance(entry, list) and entry]
    tokens = [token for token in vocabulary or () if isinstance(token, str)]
    added, longest_word = value.get("added_tokens"), model.get("max_input_chars_per_word")
    _check_count("tokens in its vocabulary", len(tokens), _MAX_TOKENS)
    _check_count("characters in a token of its vocabulary", max(map(len, tokens), default=0), _MAX_TEXT)
    _check_count("characters in its vocabulary", sum(map(len, tokens)), _MAX_CHARACTERS)
    _check_count("added_tokens", len(added) if isinstance(added, list) else 0, _MAX_ADDED)
    _check_count("max_input_chars_per_word", longest_word if isinstance(longest_word, int) else 0, _MAX_WORD)
    if model.get("dropout"):
        raise ValueError("dropout is not 0, so ids would be random; set dropout to null")
    for name, part in [*value.items(), *model.items()]:
        if name not in ("model", "vocab", "merges"):
            longest = max((len(one) for one in _values(part) if isinstance(one, str)), default=0)
            _check_count(f"characters in a text of {printable(name[:_SHOWN])}", longest, _MAX_TEXT)
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        _check_place(value.get(name), name)


def _check_count(what: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"{what}: {count:,}, but at most {most:,} are allowed")


def _check_place(part: Any, name: str) -> None:
    """Check the number of nested components, and that no component lengthens texts without bound."""
    kinds: Counter[str] = Counter()
    for one in _values(part):
        if not isinstance(one, dict):
            continue
        if one.keys() <= {"Regex", "String"}:
            pattern = one.get("Regex")
            if isinstance(pattern, str) and pattern not in PATTERNS:
                raise ValueError(
                    f"{name} has the regular expression {_shown(pattern)}, which no known published tokenizer "
                    "has, so matching might never end. Split by String, ByteLevel, Punctuation, Digits or Whitespace"
                )
            continue
        kinds[str(one.get("type"))] += 1
        pattern, content = one.get("pattern"), one.get("content")
        replaced = pattern.get("String", "x") if isinstance(pattern, dict) else None
        if isinstance(replaced, str) and isinstance(content, str) and len(content) > len(replaced):
            raise ValueError(f"{name} has a Replace that lengthens texts, so texts could grow without bound")
        if isinstance(one.get(_CHARSMAP), str):
            _check_charsmap(one[_CHARSMAP], name)
    _check_count(f"parts of {name}", kinds.total(), _MAX_PARTS)
    for kind, count in kinds.items():
        if count > 1 and kind not in _REPEATABLE:
            raise ValueError(f"{name} has {_shown(kind)} more than once")


def _check_charsmap(value: str, name: str) -> None:
    """Check the table of a sentencepiece normaliser: its declared size, and the length of its texts."""
    with suppress(binascii.Error):  # the library reports the error
        data = base64.b64decode(value.encode(errors="replace"))
        num_bytes = int.from_bytes(data[:4], "little")
        _check_count(f"bytes that the table of {name} claims", num_bytes, len(data) - 4)
        longest = max(map(len, data[4 + num_bytes :].split(b"\0")))
        _check_count(f"bytes in a text of the table of {name}", longest, _LONGEST_MAPPED)


def _values(value: Any) -> Iterator[Any]:
    """Yield a value and all nested values, except for the table of a normaliser."""
    waiting = [value]
    for one in waiting:
        yield one
        if isinstance(one, dict):
            waiting += (item for key, item in one.items() if key != _CHARSMAP)
        elif isinstance(one, list):
            waiting += one


def _shown(value: Any) -> str:
    return printable(repr(value)[:_SHOWN])


_PADDING = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
_PROBE, _ODD_PROBE = "a photo of 2 cats", "\u5b57 \ufdfa \U0001f9ff \U0010fffd"
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MAX_REASON = 300


class FileTokenizer:
    """The tokenizer of a `tokenizer.json`, without the file's truncation and padding.

    Args:
        content: content of the file as text.

    Raises:
        ValueError: if the content is not a usable `tokenizer.json`; see `read_text_input`.
    """

    def __init__(self, content: str) -> None:
        from tokenizers import Tokenizer

        _check_count("lists and objects", content.count("[") + content.count("{"), _MAX_CONTAINERS)
        parsed = parse_json(content, max_characters=MAX_TOKENIZER_BYTES)
        check_parts(parsed)
        with _telling("the tokenizer cannot be used"):
            self.backend = backend = Tokenizer.from_str(content)
            backend.no_truncation()
            backend.no_padding()
            inner = backend.encode(_PROBE, add_special_tokens=False).ids
            whole = backend.encode(_PROBE).ids
            backend.encode(_ODD_PROBE)
            vocabulary = backend.get_vocab(with_added_tokens=True)
            special = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
        around = len(whole) - len(inner)
        if not inner or not 1 <= around <= 2 or whole[around - 1 : -1] != inner:
            raise ValueError(
                f"the tokenizer returns {inner[:8]} for {_PROBE!r}, and {whole[:10]} with special tokens; expected one "
                "special token after a text, for the tower's pooling, and at most one before the text; add a "
                "TemplateProcessing such as '<s> $A </s>'"
            )
        self.start, self.end = whole[0] if around == 2 else None, whole[-1]
        self.largest = max(vocabulary.values())
        model = parsed["model"]
        unknown = model.get("unk_id", vocabulary.get(model.get("unk_token")))
        if self.end not in special or self.end == unknown:
            raise ValueError(
                f"the end token {self.end} stands for {'unknown tokens' if self.end == unknown else 'words'} "
                "too, so towers would pool at the wrong token; use a special end token that differs from the "
                "unknown token"
            )
        padding = parsed.get("padding")
        pad = padding.get("pad_id") if isinstance(padding, dict) else None
        named = next((vocabulary[token] for token in _PADDING if token in vocabulary), self.end)
        self.pad: int = pad if type(pad) is int else named

    def encode(self, text: str) -> list[int]:
        """Return all ids of a text, without the start and end tokens.

        Raises:
            ValueError: if `tokenizers` raises an error or panics.
        """
        if not text.isascii() and _SURROGATE.search(text):  # unpaired surrogates, which no encoding can represent
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        with _telling("the tokenizer fails"):
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens.

        Raises:
            ValueError: if `tokenizers` raises an error or panics.
        """
        with _telling("the tokenizer fails"):
            text: str = self.backend.decode(list(ids))
        return text


opened = lru_cache(maxsize=8)(FileTokenizer)
"""Return the cached `FileTokenizer` for the content of a `tokenizer.json`."""


def read_text_input(path: AnyPath, *, context_length: int = 77) -> TextInput:
    """Return the `TextInput` of a model with the tokenizer in a `tokenizer.json`.

    The start, end and padding ids come from the tokenizer; without a padding token, the end token is used
    for padding, as in GPT-2.

    Args:
        path: path or URL of the file; the file may have up to 32 MiB.
        context_length: number of ids per text, start and end included; texts that are too long lose their last
            ids, not the end token.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is not a tokenizer, could make `tokenizers` hang, or appends no end token to texts.
    """
    try:
        content = read_bytes(path, limit=MAX_TOKENIZER_BYTES).decode("utf-8")
        return text_input_of(content, context_length=context_length)
    except ValueError as error:
        raise ValueError(f"{without_secrets(path)} is not a usable tokenizer.json: {error}") from None


def text_input_of(content: str, *, context_length: int) -> TextInput:
    """Return the `TextInput` for the content of a `tokenizer.json`, like `read_text_input` for a file.

    Raises:
        ValueError: if the content is not a usable `tokenizer.json`; see `read_text_input`.
    """
    own = opened(content)
    file = TokenizerFile(sha256=tokenizer_sha256(content), start_id=own.start, end_id=own.end, content=content)
    return TextInput(context_length=context_length, vocab_size=own.largest + 1, pad_id=own.pad, tokenizer=file)


def file_tokenizer(text_input: TextInput) -> FileTokenizer:
    """Return the tokenizer of a `TextInput` that has its own tokenizer file.

    Raises:
        ValueError: if `text_input` lacks the content of the file, the tokenizer is unusable, or `text_input` has
            different special ids or too small a vocabulary.
    """
    file = text_input.tokenizer
    assert file is not None, "CLIP's tokenizer has no file"
    if file.content is None:
        raise ValueError(
            f"the TextInput lacks the content of the tokenizer {file.sha256[:12]}; read the file with "
            "mobileclip.data.read_text_input, or take the TextInput of a model that was loaded from a checkpoint"
        )
    own = opened(file.content)
    if (own.start, own.end) != (file.start_id, file.end_id) or own.largest >= text_input.vocab_size:
        raise ValueError(
            f"the tokenizer has the start token {own.start}, the end token {own.end} and ids up to {own.largest}, "
            f"but the TextInput has the start token {file.start_id}, the end token {file.end_id} and "
            f"{text_input.vocab_size} ids"
        )
    return own


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Convert all errors of `tokenizers` to ValueErrors, including panics, which are not an `Exception`.

    Raises:
        ValueError: if `tokenizers` raises an error or panics.
    """
    try:
        yield
    except BaseException as error:
        raise_machine_fault(error)
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{what}: {printable(str(error)[:_MAX_REASON])}") from None
        raise


TokenizerKind = Literal["unigram", "bpe"]
KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
_UNKNOWN, _TRAINED_PADDING, _TRAINED_END = "<unk>", "<pad>", "</s>"
_SPECIAL = [_TRAINED_PADDING, _TRAINED_END, _UNKNOWN]
_LEAST = 300
_LONGEST_PIECE = 16


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, kind: TokenizerKind = "bpe", lowercase: bool = True
) -> str:
    """Train a tokenizer on texts, and return the text of its `tokenizer.json`, for `mobileclip.data.read_text_input`.

    Texts are normalised (NFKC) and, with `lowercase`, lower-cased. `unigram` splits texts at spaces; `bpe` splits texts
    into words, numbers and punctuation. Every text gets an end token.

    Args:
        texts: training texts, read once; the trainer keeps them in memory.
        vocab_size: maximum number of tokens, including special tokens; few texts give fewer tokens.
        kind: `bpe` or `unigram`. `bpe` merges the most frequent byte pairs, is deterministic and has no unknown
            characters. `unigram` keeps the most probable subwords, like sentencepiece; a few subwords differ between
            runs.
        lowercase: whether to convert all texts to lower case.

    Raises:
        ValueError: if `vocab_size` is below 300, the kind is unknown, or the texts give no usable tokenizer.

    Source: Kudo, "Subword Regularization", 2018; Sennrich et al., "Neural Machine Translation of Rare Words with
        Subword Units", 2016; both as implemented by Hugging Face `tokenizers`.

    Examples:
        >>> content = train_tokenizer(["ein rotes Herz", "une étoile rouge"] * 10, vocab_size=300)
        >>> mobileclip.storage.write_text("tokenizer.json", content)
        >>> mobileclip.data.read_text_input("tokenizer.json", context_length=16).context_length
        16
    """
    from tokenizers import normalizers, processors

    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if vocab_size < _LEAST:
        raise ValueError(f"vocab_size must be at least {_LEAST}, not {vocab_size}")
    backend, trainer = _of_kind(kind, vocab_size)
    steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
    backend.normalizer = normalizers.Sequence(steps)
    backend.train_from_iterator(texts, trainer=trainer)
    end = backend.token_to_id(_TRAINED_END)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {_TRAINED_END}", special_tokens=[(_TRAINED_END, end)]
    )
    backend.enable_padding(pad_id=backend.token_to_id(_TRAINED_PADDING), pad_token=_TRAINED_PADDING)
    content: str = backend.to_str()
    opened(content)
    return content


def _of_kind(kind: TokenizerKind, vocab_size: int) -> tuple[Tokenizer, Trainer]:
    """Return an untrained tokenizer and its trainer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    choices: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": _SPECIAL, "show_progress": False}
    if kind == "bpe":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        return backend, trainers.BpeTrainer(**choices, initial_alphabet=alphabet, max_token_length=_LONGEST_PIECE)
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend, trainers.UnigramTrainer(**choices, unk_token=_UNKNOWN, max_piece_length=_LONGEST_PIECE)
